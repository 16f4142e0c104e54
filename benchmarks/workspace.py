"""Where a run keeps what it makes, what it has to leave out, and how its contenders are started."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from action_export.serve.installation import KEEP_MEMORY

from benchmarks import driver
from benchmarks.driver import Process, Start
from benchmarks.models import ENGINES, SERVED, Case, Model
from benchmarks.results import Series

MMDEPLOY = Path(__file__).with_name("mmdeploy_contender.py")
BY_HAND = "by_hand"
WIRES = ("onnx", "onnx-jpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """mmdeploy_python: of an environment that has mmdeploy, or None.

    skipped: why an engine, a contender or a section is left out, by its name; grows as a run goes.
    ends: of `time.perf_counter`, when no answer is waited for any more.
    """

    folder: Path
    mmdeploy_python: Path | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    ends: float = math.inf

    @property
    def left_s(self) -> float:
        return self.ends - time.perf_counter()

    def started(
        self, starts: Sequence[Start], failed: dict[str, str] | None = None
    ) -> AbstractContextManager[dict[str, Process]]:
        """Like `driver.started`."""
        return driver.started(starts, self.folder, failed, self.ends)

    def leave_out(self) -> None:
        """Notes what this code or this machine does not have."""
        for engine in ENGINES.values():
            if why := engine.missing():
                self.skipped[engine.name] = why
        if self.mmdeploy_python is None:
            self.skipped["mmdeploy"] = "--mmdeploy-python PATH was not given"
        elif not MMDEPLOY.is_file():
            self.skipped["mmdeploy"] = f"there is no {MMDEPLOY.name}"

    def engines(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that there are; ONNX Runtime where there is none of them."""
        return tuple(name for name in names if name not in self.skipped) or ("onnx",)

    def video(self, name: str) -> Path:
        return self.folder / f"{name}.mp4"

    def repo(self, case: Case, engine: str) -> Path:
        return self.folder / case.name / engine

    def contract(self, case: Case, engine: str) -> Path:
        return self.folder / f"{case.name}-{engine}.json"

    def checkpoint(self, model: Model) -> Path:
        from action_export import example

        return example.CHECKPOINT if model.config is None else self.folder / f"{model.name}.pth"

    def ours(self, case: Case, engine: str) -> tuple[Start, Start]:
        """The runtime alone, and our client with a server."""
        repo = str(self.repo(case, engine))
        alone = Start.ours(f"runtime {engine}", "runtime", repo=repo)
        return (
            # with the memory that the server has
            replace(alone, variables={"GLIBC_TUNABLES": KEEP_MEMORY}),
            Start.ours(f"ours {engine}", "ours", repo=repo),
        )

    def peer(self, name: str, case: Case) -> Start:
        """One of those that we are compared with."""
        config, checkpoint = config_of(case.model), str(self.checkpoint(case.model))
        match name:
            case "mmaction2":
                return Start.ours(
                    name, "mmaction2", case=case.name, config=config, checkpoint=checkpoint
                )
            case "by hand":
                repo, contract = self.repo(case, BY_HAND), self.contract(case, "onnx")
                return Start.ours(name, BY_HAND, repo=str(repo), contract=str(contract))
            case _:
                return self._mmdeploy(name, case, config, checkpoint)

    def _mmdeploy(self, name: str, case: Case, config: str, checkpoint: str) -> Start:
        work = self.folder / "mmdeploy" / case.name
        work.mkdir(parents=True, exist_ok=True)
        arguments = {
            "config": config,
            "checkpoint": checkpoint,
            "folder": str(work),
            "threads": len(os.sched_getaffinity(0)),
        }
        command = (str(self.mmdeploy_python), str(MMDEPLOY), json.dumps(arguments))
        return Start(name=name, command=command)

    def graph_bytes(self, case: Case, engine: str) -> int:
        """Of the files of the recognizer, weights included."""
        files = (self.repo(case, engine) / f"{SERVED}_recognizer" / "1").glob("*")
        return sum(file.stat().st_size for file in files)

    def failure(self, case: Case, contender: str, why: str) -> Series:
        return Series(section="latency", case=case.name, contender=contender, error=why)


def config_of(model: Model) -> str:
    from action_export import example

    return model.config or str(example.CONFIG)
