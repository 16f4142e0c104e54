"""The sections of a measurement; each starts its contenders, and gives their series."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks import driver, videos
from benchmarks.driver import Budget, ContenderError, Process, Reply, Runner, Start
from benchmarks.models import ENGINES, SERVED, Case
from benchmarks.plans import Group
from benchmarks.replies import Facts, Replies, loop_series, reference_of, series_of
from benchmarks.results import Series
from benchmarks.targets import FULL, VIDEO, native_bytes
from benchmarks.workspace import WIRES, Workspace


def group(wanted: Group, space: Workspace) -> list[Series]:
    """Latencies on each video, and closed loops."""
    case, engines = wanted.case, space.engines(wanted.engines)
    others = [name for name in wanted.others if name not in space.skipped]
    starts = [start for engine in engines for start in space.ours(case, engine)]
    peers = [space.peer(name, case) for name in others]
    failed: dict[str, str] = {}
    found: list[Series] = []
    reference: Reply | None = None
    alone = _each_alone(peers, space) if wanted.slow else {}
    beside = [] if wanted.slow else peers
    with space.started([*starts, *beside], failed) as running:
        for number, video in enumerate(wanted.videos):
            extra = alone if number == 0 else {}
            replies, facts = _latency(
                wanted, engines[0], running, space, video, extra, first=number == 0
            )
            like = Series(section="latency", case=case.name, contender="", video=video)
            found += series_of(like, replies, facts)
            if number == 0:
                reference = reference_of(replies)
        if wanted.requests:
            engine = space.engines(wanted.loop_engine)[0]
            found += _loops(wanted, engine, running, space, reference)
    return [*found, *(space.failure(case, name, why) for name, why in failed.items())]


def _each_alone(peers: Sequence[Start], space: Workspace) -> dict[str, Sequence[Reply]]:
    """One answer of each, which takes long and much memory; with nothing else beside it."""
    replies: dict[str, Sequence[Reply]] = {}
    for peer in peers:
        try:
            with space.started([peer]) as running:
                process = running[peer.name]
                reply = process.ask(str(space.video(VIDEO)))
                replies[peer.name] = [{**reply, "memory": asdict(process.memory())}]
        except ContenderError as exc:
            replies[peer.name] = [{"error": str(exc)}]
    return replies


def _latency(
    wanted: Group,
    engine: str,
    running: Mapping[str, Process],
    space: Workspace,
    video: str,
    alone: Mapping[str, Sequence[Reply]],
    *,
    first: bool,
) -> tuple[Replies, Facts]:
    """File to scores of all, and frames to scores of ours, in turn.

    Of the videos after the first only ours and the runtime alone: others decode alike.
    alone: what has answered before.
    """
    path = str(space.video(video))
    runners = [
        Runner(key=name, process=process, question=path)
        for name, process in running.items()
        if first or name.startswith(("ours", "runtime"))
    ]
    if first and wanted.case.views == "one" and f"ours {engine}" in running:
        question = {"video": path, "how": "frames"}
        process = running[f"ours {engine}"]
        runners.append(Runner(key=f"frames {engine}", process=process, question=question))
    budget = wanted.budget
    if not first:
        budget = replace(budget, seconds=budget.seconds / 3, least=min(2, budget.least))
    replies = {**driver.alternate(runners, budget), **alone}
    facts: dict[str, dict[str, Any]] = {
        name: {"memory": answers[-1]["memory"]}
        for name, answers in alone.items()
        if "memory" in answers[-1]
    }
    for runner in runners:
        facts[runner.key] = {
            "memory": asdict(runner.process.memory()),
            "idle_cpu": round(runner.process.idle_cpu, 4),
        }
        served = runner.key.partition(" ")[2]
        if served in ENGINES:
            facts[runner.key]["graph_bytes"] = space.graph_bytes(wanted.case, served)
    return replies, facts


def _loops(
    wanted: Group,
    engine: str,
    running: Mapping[str, Process],
    space: Workspace,
    reference: Reply | None,
) -> list[Series]:
    """Ours and the runtime in every round; others, which no target needs, in the first.

    reference: the answer that all are compared with.
    """
    path = str(space.video(wanted.videos[0]))
    keys = {f"runtime {engine}": f"runtime {engine}", f"ours {engine}": f"frames {engine}"}
    runners = {}
    for callers, count in (wanted.requests or {}).items():
        question = {"video": path, "callers": callers, "requests": count}
        for name, key in keys.items():
            if name in running:
                how = "frames" if key.startswith("frames") else "file"
                runners[key, callers] = Runner(
                    key=f"{key} {callers}",
                    process=running[name],
                    question={**question, "how": how},
                )
        for name in ("mmaction2", "by hand", f"ours {engine}") if wanted.loop_peers else ():
            if name in running:
                runners[name, callers] = Runner(
                    key=f"{name} {callers}", process=running[name], question=question, rounds=1
                )
    replies = driver.alternate(list(runners.values()), wanted.loops)
    like = Series(section="throughput", case=wanted.case.name, contender="", video=wanted.videos[0])
    return [
        loop_series(like, key, callers, replies[runner.key], reference)
        for (key, callers), runner in runners.items()
    ]


def batching(budget: Budget, space: Workspace) -> list[Series]:
    """A request by itself, where the server may wait for others and where it may not."""
    case = Case.named("tsm-one")
    published = space.repo(case, "onnx")
    without = space.folder / "no-batching"
    shutil.copytree(published, without)
    file = without / f"{SERVED}_recognizer" / "config.pbtxt"
    pattern = re.compile(r"dynamic_batching \{.*?\}\n", re.DOTALL)
    text, removed = pattern.subn("", file.read_text("utf-8"))
    if not removed:
        raise ContenderError("what is published has no dynamic batching")
    file.write_text(text, "utf-8")
    starts = [
        Start.ours("on", "ours", repo=str(published)),
        Start.ours("off", "ours", repo=str(without)),
    ]
    question = {"video": str(space.video(VIDEO)), "how": "frames"}
    like = Series(section="batching", case=case.name, contender="", video=VIDEO)
    with space.started(starts) as running:
        return _in_turn(like, running, question, budget)


def preprocess(name: str, engine: str, budget: Budget, space: Workspace) -> list[Series]:
    """The step alone in a server, and OpenCV's bound, on frames of native size."""
    case = Case.named(name)
    repo = str(space.repo(case, engine))
    alone = str(space.folder / f"{name}-preprocess")
    starts = [
        Start.ours("preprocess", "preprocess", repo=repo, folder=alone),
        Start.ours("cv2", "cv2", repo=repo),
    ]
    found = []
    with space.started(starts) as running:
        for video in ("340x256", "720p"):
            like = Series(section="preprocess", case=name, contender="", video=video)
            found += _in_turn(like, running, str(space.video(video)), budget)
    return found


def wire(space: Workspace) -> list[Series]:
    """Bytes of a request of each video, lossless and as JPEG."""
    from action_runtime.spec import Contract

    case = Case.named(FULL)
    found = []
    for kind in (kind for kind in WIRES if kind not in space.skipped):
        contract = space.contract(case, kind)
        positions = Contract.from_json(contract.read_text("utf-8")).positions
        with space.started([Start.ours(kind, "wire", contract=str(contract))]) as running:
            for video in videos.SIZES:
                like = Series(
                    section="wire",
                    case=FULL,
                    contender="",
                    video=video,
                    facts={"native_bytes": native_bytes(positions, video)},
                )
                once = Budget(seconds=0, least=1, warm=0)
                found += _in_turn(like, running, str(space.video(video)), once)
    return found


def export(name: str, rounds: int, space: Workspace) -> list[Series]:
    """In each round a fresh process of either kind, which has imported what it needs."""
    case = Case.named(name)
    folder = space.folder / "exports"
    folder.mkdir(exist_ok=True)
    arguments = {
        "case": name,
        "engine": "onnx",
        "checkpoint": str(space.checkpoint(case.model)),
        "folder": str(folder),
    }
    starts = [
        Start.ours("torch", "torch_export", **arguments),
        Start.ours("ours", "export", **arguments),
    ]
    replies: dict[str, list[Reply]] = {start.name: [] for start in starts}
    for _ in range(rounds):
        with space.started(starts) as running:
            for key, process in running.items():
                replies[key].append(process.ask("run"))
    return series_of(Series(section="export", case=name, contender=""), replies)


def _in_turn(
    like: Series,
    running: Mapping[str, Process],
    question: str | Mapping[str, Any],
    budget: Budget,
) -> list[Series]:
    runners = [
        Runner(key=key, process=process, question=question) for key, process in running.items()
    ]
    return series_of(like, driver.alternate(runners, budget))
