"""Repositories of a model that nobody has traced, and what a server would make of each."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from action_export.publishing import Operation, Publication, publish
from action_export.repository import Names, Plan, plan, write
from action_export.staging import beside
from action_export.types import Tensors
from action_runtime.spec import PARAMETER, Contract, Crop, KeepRatioResize, SampleFrames
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

CONTRACT = Contract(
    sampler=SampleFrames(clip_len=4, num_clips=2),
    resize=KeepRatioResize(short=32),
    crop=Crop(kind="three", width=32, height=32),
    classes=3,
    average="prob",
    labels=("wave", 'say "hi"', "fête \\ 🎉"),
    provenance={"config": "tiny"},
)
RETRAINED = replace(CONTRACT, provenance={"config": "retrained"})
NAMES = Names(ensemble="tiny")


def planned(repo: Path, contract: Contract = CONTRACT, **changes: Any) -> Plan:
    names = changes.pop("names", NAMES)
    tensors = Tensors.of(contract, changes.pop("max_batch_size", 4))
    return plan(repo, names, contract=contract, tensors=tensors, **changes)


def fill(what: Plan, stage: Path, content: str) -> None:
    """Stages everything; the graph and the manifest are stand-ins with this content."""
    write(what, stage)
    (stage / what.graph).write_text(content)
    (stage / what.manifest).write_text(content)


def publish_one(
    repo: Path, contract: Contract = CONTRACT, content: str = "graph", **changes: Any
) -> Plan:
    what = planned(repo, contract, **changes)
    with beside(repo) as stage:
        fill(what, stage, content)
        publish(what, stage)
    return what


def observe(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None], after: Callable[[int], None]
) -> None:
    """Calls these around each operation, with its number from 0."""
    real, count = Publication.act, 0

    def act(self: Publication, operation: Operation) -> None:
        nonlocal count
        number, count = count, count + 1
        before(number)
        real(self, operation)
        after(number)

    monkeypatch.setattr(Publication, "act", act)


def nothing(number: int) -> None:
    """For the side that a test does not look at."""


def killed(repo: Path, after: int, **changes: Any) -> None:
    """Publishes in another process, which is killed once `after` operations are done."""
    kill_later(repo, after, **changes)(lambda: None)


def kill_later(repo: Path, after: int, **changes: Any) -> Callable[[Callable[[], object]], None]:
    """As `killed`, when it is called: a process that has used gRPC had better not fork.

    What it is called with is done whenever servers that poll are waited for.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        try:
            if theirs.recv(1):
                _publish_until(repo, after, theirs, changes)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # never on into the tests
    theirs.close()

    def kill(settle: Callable[[], object]) -> None:
        with ours:
            ours.send(b"!")
            while ours.recv(1):
                settle()
                ours.send(b"!")
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL

    return kill


def _publish_until(repo: Path, after: int, parent: socket.socket, changes: dict[str, Any]) -> None:
    def die(number: int) -> None:
        if number == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def settle() -> None:
        parent.send(b"?")
        parent.recv(1)

    with pytest.MonkeyPatch.context() as monkeypatch:
        observe(monkeypatch, die, nothing)
        what = planned(repo, RETRAINED, **changes)
        with beside(repo) as stage:
            fill(what, stage, "killed")
            publish(what, stage, settle)
            die(after)


def as_older_releases_did(repo: Path, names: Names = NAMES) -> None:
    """Makes of what is published what was before versions were named: the latest is served."""
    for name in names:
        config = read_config(repo, name)
        (version,) = config.version_policy.specific.versions
        config.version_policy.latest.num_versions = 1
        for step in config.ensemble_scheduling.step:
            step.model_version = -1
        labels = repo / name / str(version) / "labels.txt"
        if labels.exists():
            config.output[0].label_filename = ""
            labels.rename(repo / names.recognizer / "labels.txt")
        if name == names.recognizer:
            config.output[0].label_filename = "labels.txt"
        (repo / name / "config.pbtxt").write_text(text_format.MessageToString(config, as_utf8=True))


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of everything below `root`; of a folder, that it is there."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


def read_config(repo: Path, name: str) -> Any:
    text = (repo / name / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def loaded(config: Any, folder: Path) -> set[int]:
    """The versions that a server loads (core, `VersionsToLoad`)."""
    there = {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
    if config.version_policy.HasField("specific"):
        return there & set(config.version_policy.specific.versions)
    assert config.version_policy.HasField("latest")
    return set(sorted(there)[-config.version_policy.latest.num_versions :])


Served = dict[int, tuple[int, ...]]


def served(ensemble: Any, repo: Path, names: Names = NAMES) -> Served:
    """By version of the ensemble, the versions of the steps that it runs; none if one is missing.

    As core has it (`ModelRepositoryManager::CheckNode`): an ensemble is loaded if each step has a
    version and, where it names one, that one.
    """
    runs = {}
    for step in ensemble.ensemble_scheduling.step:
        if not (repo / step.model_name / "config.pbtxt").is_file():
            return {}
        versions = loaded(read_config(repo, step.model_name), repo / step.model_name)
        wanted = max(versions, default=0) if step.model_version == -1 else step.model_version
        if wanted not in versions:
            return {}
        runs[step.model_name] = wanted
    versions = loaded(ensemble, repo / names.ensemble)
    return {version: tuple(runs[name] for name in names.steps) for version in versions}


def served_now(repo: Path, names: Names = NAMES) -> Served:
    """What a server that starts now answers with under the ensemble's name."""
    if not (repo / names.ensemble / "config.pbtxt").is_file():
        return {}
    return served(read_config(repo, names.ensemble), repo, names)


def provenance(repo: Path, name: str) -> Any:
    contract = read_config(repo, name).parameters[PARAMETER].string_value
    return Contract.from_json(contract).provenance
