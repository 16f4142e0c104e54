"""One measurement: makes what a plan needs, lets the contenders alternate, and judges."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import driver, machine, videos
from benchmarks.driver import ContenderError, Process, Reply, Runner, Start
from benchmarks.models import ENGINES, SERVED, Case
from benchmarks.plans import Group, Plan
from benchmarks.prepare import checkpoint_of, config_of, contract_of, repo_of
from benchmarks.results import Results, Series
from benchmarks.targets import FULL, all_targets, native_bytes

# Of the scores, as a share of their spread over the classes: float32 added in another order.
FP32_BOUND = 1e-3
BF16_BOUND = 40 * 2**-8  # as that of int8, whose rounding error is the same
OnStep = Callable[[str], None]
PREPARE_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A run. folder: where all that it makes lies. say: a line of progress.

    mmdeploy_python: the python of an environment that has mmdeploy, or None.
    """

    plan: Plan
    quick: bool
    folder: Path
    source: tuple[Path, ...]
    mmdeploy_python: Path | None
    say: OnStep
    began: float = field(default_factory=time.perf_counter)
    skipped: dict[str, str] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)

    def run(self) -> Results:
        self._leave_out()
        self._prepare()
        for group in self.plan.groups:
            self._section(group.case.title, partial(self._group, group))
            if group.requests and group.case.name == "tsm-one":
                self._section("dynamic batching", self._batching)
            if group.case.name == FULL:
                self._section("preprocess step", self._preprocess)
                self._section("bytes on the wire", self._wire)
                for case, rounds in self.plan.exports.items():
                    self._section("export", partial(self._export, case, rounds))
        return Results(
            quick=self.quick,
            seconds=time.perf_counter() - self.began,
            machine=machine.describe(),
            versions=machine.versions(),
            series=tuple(self.series),
            targets=all_targets(self.series, self.skipped),
            skipped=tuple(self.skipped.items()),
        )

    def _section(self, title: str, measure: Callable[[], None]) -> None:
        """A section that fails costs its own figures, and says why."""
        if time.perf_counter() - self.began > self.plan.limit_s:
            self.skipped[title] = f"no time was left of {self.plan.limit_s:g} s"
            return
        self.say(title)
        try:
            measure()
        except ContenderError as exc:
            self.skipped[title] = str(exc)

    def _leave_out(self) -> None:
        for engine in ENGINES.values():
            if why := engine.missing():
                self.skipped[engine.name] = why
        if self.mmdeploy_python is None:
            self.skipped["mmdeploy"] = "--mmdeploy-python PATH was not given"
        elif not MMDEPLOY.is_file():
            self.skipped["mmdeploy"] = f"there is no {MMDEPLOY.name}"

    def _engines(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that there are; ONNX Runtime where there is none of them."""
        return tuple(name for name in names if name not in self.skipped) or ("onnx",)

    def _prepare(self) -> None:
        self.say("videos, weights and repositories")
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(self._prepare_model, job) for job in self._jobs()]
            made = [pool.submit(self._video, name) for name in self.plan.videos]
            for job in jobs:
                job.result()
            for video in made:
                video.result()

    def _jobs(self) -> list[dict[str, Any]]:
        """One for each model, that with most to do first."""
        jobs: dict[str, dict[str, Any]] = {}
        for group in self.plan.groups:
            job = jobs.setdefault(
                group.case.model.name,
                {"model": group.case.model.name, "publish": [], "by_hand": [], "contracts": []},
            )
            name = group.case.name
            job["publish"] += [[name, engine] for engine in self._engines(group.engines)]
            job["by_hand"] += [name] if "by hand" in group.others else []
            if name == FULL:
                kinds = [kind for kind in WIRES if kind not in self.skipped]
                job["contracts"] += [[name, kind] for kind in kinds]
        for job in jobs.values():
            job["folder"] = str(self.folder)
            job["videos"] = [str(path) for path in self.source]
        return sorted(jobs.values(), key=lambda job: -len(job["publish"]))

    def _prepare_model(self, job: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", "benchmarks.prepare", json.dumps(job)]
        done = subprocess.run(
            command,
            cwd=driver.ROOT,
            env=driver.environment(),
            capture_output=True,
            text=True,
            timeout=PREPARE_S,
        )
        if done.returncode:
            raise ContenderError(f"{job['model']} cannot be made:\n{done.stderr[-3000:]}")

    def _video(self, name: str) -> Path:
        return videos.make(self.source[0], name, self._path(name))

    def _path(self, video: str) -> Path:
        return self.folder / f"{video}.mp4"

    def _group(self, group: Group) -> None:
        case, engines = group.case, self._engines(group.engines)
        others = [name for name in group.others if name not in self.skipped]
        starts = [start for engine in engines for start in self._starts(case, engine)]
        starts += [self._peer(name, case, engines[0]) for name in others]
        failed: dict[str, str] = {}
        with driver.started(starts, self.folder, failed) as running:
            for name, why in failed.items():
                self.series.append(
                    Series(section="latency", case=case.name, contender=name, error=why)
                )
            for number, video in enumerate(group.videos):
                self._latency(group, engines, running, video, first=number == 0)
            if group.requests is not None:
                self._loops(group, group.requests, engines[0], running)

    def _starts(self, case: Case, engine: str) -> list[Start]:
        repo = str(repo_of(self.folder, case.name, engine))
        return [
            Start.ours(f"runtime {engine}", "runtime", repo=repo),
            Start.ours(f"ours {engine}", "ours", repo=repo),
        ]

    def _peer(self, name: str, case: Case, engine: str) -> Start:
        arguments = {
            "case": case.name,
            "config": config_of(case.model),
            "checkpoint": str(checkpoint_of(self.folder, case.model)),
        }
        match name:
            case "mmaction2":
                return Start.ours(name, "mmaction2", **arguments)
            case "by hand":
                repo = repo_of(self.folder, case.name, "by_hand")
                contract = repo_of(self.folder, case.name, engine)
                return Start.ours(name, "by_hand", repo=str(repo), contract=str(contract))
            case _:
                assert self.mmdeploy_python is not None
                del arguments["case"]
                work = self.folder / "mmdeploy" / case.name
                work.mkdir(parents=True, exist_ok=True)
                cores = len(os.sched_getaffinity(0))
                text = json.dumps({**arguments, "folder": str(work), "threads": cores})
                return Start(name=name, command=(str(self.mmdeploy_python), str(MMDEPLOY), text))

    def _latency(
        self,
        group: Group,
        engines: Sequence[str],
        running: Mapping[str, Process],
        video: str,
        *,
        first: bool,
    ) -> None:
        """File to scores of all, and frames to scores of ours, in turn.

        Of the videos after the first only ours and the runtime alone: others decode alike.
        """
        path = str(self._path(video))
        runners = []
        for name, process in running.items():
            of_ours = name.startswith(("ours", "runtime"))
            if first or of_ours:
                rounds = 1 if group.slow and not of_ours else None
                runners.append(Runner(key=name, process=process, question=path, rounds=rounds))
            if first and not group.slow and name == f"ours {engines[0]}":
                question = {"video": path, "how": "frames"}
                key = f"frames {engines[0]}"
                runners.append(Runner(key=key, process=process, question=question))
        budget = group.budget
        if not first:
            budget = driver.Budget(seconds=budget.seconds / 3, least=2, most=budget.most)
        replies = driver.alternate(runners, budget)
        memories = {name: asdict(process.memory()) for name, process in running.items()}
        for runner in runners:
            facts = {
                "memory": memories[runner.process.name],
                "idle_cpu": round(runner.process.idle_cpu, 4),
                **self._graph_facts(group.case, runner.key),
            }
            self._add("latency", group.case, runner.key, replies, video=video, facts=facts)

    def _loops(
        self,
        group: Group,
        requests: Mapping[int, int],
        engine: str,
        running: Mapping[str, Process],
    ) -> None:
        path = str(self._path(group.videos[0]))
        keys = {f"runtime {engine}": f"runtime {engine}", f"ours {engine}": f"frames {engine}"}
        runners, callers_of = [], {}
        for callers, count in requests.items():
            for name, key in ((name, keys[name]) for name in keys if name in running):
                question = {"video": path, "callers": callers, "requests": count}
                if key.startswith("frames"):
                    question["how"] = "frames"
                name_of_both = f"{key} {callers}"
                callers_of[name_of_both] = (key, callers)
                runners.append(Runner(key=name_of_both, process=running[name], question=question))
        for both, answers in driver.alternate(runners, group.loops).items():
            key, callers = callers_of[both]
            error = next((reply["error"] for reply in answers if "error" in reply), "")
            each = [seconds for reply in answers for seconds in reply.get("each", ())]
            self.series.append(
                Series(
                    section="throughput",
                    case=group.case.name,
                    contender=key,
                    video=group.videos[0],
                    callers=callers,
                    values=()
                    if error
                    else tuple(reply["requests"] / reply["seconds"] for reply in answers),
                    facts={"latencies": each},
                    error=error,
                )
            )

    def _batching(self) -> None:
        """A request by itself, where the server may wait for others and where it may not."""
        case = Case.named("tsm-one")
        with_it = repo_of(self.folder, case.name, "onnx")
        without = self.folder / "no-batching"
        shutil.copytree(with_it, without)
        file = without / f"{SERVED}_recognizer" / "config.pbtxt"
        text, removed = re.subn(
            r"dynamic_batching \{.*?\}\n", "", file.read_text("utf-8"), flags=re.DOTALL
        )
        if not removed:
            raise ContenderError("what is published has no dynamic batching")
        file.write_text(text)
        question = {"video": str(self._path("340x256")), "how": "frames"}
        starts = [
            Start.ours("on", "ours", repo=str(with_it)),
            Start.ours("off", "ours", repo=str(without)),
        ]
        self._alternate("batching", case, starts, question, self.plan.batching)

    def _preprocess(self) -> None:
        engine = self._engines(("openvino",))[0]
        for name in self.plan.preprocess:
            repo = str(repo_of(self.folder, name, engine))
            alone = str(self.folder / f"{name}-preprocess")
            starts = [
                Start.ours("preprocess", "preprocess", repo=repo, folder=alone),
                Start.ours("cv2", "cv2", repo=repo),
            ]
            with driver.started(starts, self.folder) as running:
                for video in ("340x256", "720p"):
                    runners = [
                        Runner(key=key, process=process, question=str(self._path(video)))
                        for key, process in running.items()
                    ]
                    replies = driver.alternate(runners, self.plan.preprocess_budget)
                    for key in running:
                        self._add("preprocess", Case.named(name), key, replies, video=video)

    def _wire(self) -> None:
        from action_runtime.spec import Contract

        for kind in WIRES:
            if kind in self.skipped:
                continue
            contract = contract_of(self.folder, FULL, kind)
            positions = Contract.from_json(contract.read_text("utf-8")).positions
            start = Start.ours(kind, "wire", contract=str(contract))
            with driver.started([start], self.folder) as running:
                for video in videos.SIZES:
                    runner = Runner(
                        key=kind, process=running[kind], question=str(self._path(video))
                    )
                    replies = driver.alternate([runner], driver.Budget(seconds=1, least=1, warm=0))
                    facts = {"native_bytes": native_bytes(positions, video)}
                    self._add("wire", Case.named(FULL), kind, replies, video=video, facts=facts)

    def _export(self, name: str, rounds: int) -> None:
        """In each round a fresh process of either kind, which has imported what it needs."""
        case = Case.named(name)
        folder = self.folder / "exports"
        arguments = {
            "case": name,
            "engine": "onnx",
            "checkpoint": str(checkpoint_of(self.folder, case.model)),
            "folder": str(folder),
        }
        folder.mkdir(exist_ok=True)
        starts = [
            Start.ours("torch", "torch_export", **arguments),
            Start.ours("ours", "export", **arguments),
        ]
        collected: dict[str, list[Reply]] = {"torch": [], "ours": []}
        for _ in range(rounds):
            with driver.started(starts, self.folder) as running:
                for key, process in running.items():
                    collected[key].append(process.ask("run"))
        for key in collected:
            self._add("export", case, key, collected)

    def _alternate(
        self,
        section: str,
        case: Case,
        starts: Sequence[Start],
        question: str | Mapping[str, Any],
        budget: driver.Budget,
    ) -> None:
        with driver.started(starts, self.folder) as running:
            runners = [
                Runner(key=key, process=process, question=question)
                for key, process in running.items()
            ]
            replies = driver.alternate(runners, budget)
        for key in running:
            self._add(section, case, key, replies, video="340x256")

    def _add(
        self,
        section: str,
        case: Case,
        key: str,
        replies: Mapping[str, Sequence[Reply]],
        *,
        video: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        found = replies[key]
        error = next((reply["error"] for reply in found if "error" in reply), "")
        error = error or disagreement(key, replies)
        names = found[0].get("parts", {}) if not error else {}
        self.series.append(
            Series(
                section=section,
                case=case.name,
                contender=key,
                video=video,
                values=() if error else tuple(reply["seconds"] for reply in found),
                parts={
                    name: tuple(reply["parts"].get(name, 0.0) for reply in found) for name in names
                },
                facts={
                    "bytes": found[-1].get("bytes", 0),
                    "top1": found[-1].get("top1"),
                    **(facts or {}),
                },
                error=error,
            )
        )

    def _graph_facts(self, case: Case, key: str) -> dict[str, int]:
        engine = key.partition(" ")[2]
        if engine not in ENGINES:
            return {}
        repo = repo_of(self.folder, case.name, engine)
        files = (repo / f"{SERVED}_recognizer" / "1").glob("*")
        return {"graph_bytes": sum(file.stat().st_size for file in files)}


WIRES = ("onnx", "onnx-jpeg")
MMDEPLOY = Path(__file__).with_name("mmdeploy_contender.py")


def disagreement(key: str, replies: Mapping[str, Sequence[Reply]]) -> str:
    """How a contender's answer differs from mmaction2's, or from the first that answered; or "".

    Of scores as a share of their spread over the classes; where there are none, the best class.
    """
    reference = _answer(replies.get("mmaction2", ())) or next(
        (answer for answers in replies.values() if (answer := _answer(answers))), None
    )
    mine = replies[key][-1]
    if reference is None or mine.get("top1") is None:
        return ""
    if mine.get("scores"):
        wanted, got = np.array(reference["scores"]), np.array(mine["scores"])
        off = float(np.abs(wanted - got).max() / np.ptp(wanted))
        bound = _bound(key)
        return "" if off <= bound else f"wrong: off by {off:.2g} of the spread, {bound:.2g} allowed"
    same = mine["top1"] == reference["top1"]
    return "" if same else f"wrong: class {mine['top1']}, not {reference['top1']}"


def _answer(answers: Sequence[Reply]) -> Reply | None:
    return answers[-1] if answers and answers[-1].get("scores") else None


def _bound(key: str) -> float:
    from action_export.precision import BOUNDS

    bounds: Mapping[Any, float] = BOUNDS
    return bounds.get("bf16", BF16_BOUND) if key.endswith("bf16") else FP32_BOUND
