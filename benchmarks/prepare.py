"""Makes what a plan measures; of each model in a process of its own:

    python -m benchmarks.prepare JSON_ARGS

arguments: model; folder; publish: [case, engine] pairs; by_hand: cases; contracts: pairs of which
only the contract is wanted; videos: real ones, which the random weights are calibrated on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import driver, videos
from benchmarks.driver import ContenderError
from benchmarks.models import ENGINES, MODELS, Case, publish_unproved, request
from benchmarks.plans import Plan
from benchmarks.targets import FULL
from benchmarks.workspace import BY_HAND, WIRES, Workspace, config_of

LIMIT_S = 900


def prepare(plan: Plan, space: Workspace, real_videos: Sequence[Path]) -> None:
    """Videos, weights and repositories; two models at a time.

    Raises ContenderError where a model cannot be made.
    """
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_run, job, space) for job in jobs_of(plan, space, real_videos)]
        made = [
            pool.submit(videos.make, real_videos[0], name, space.video(name))
            for name in videos.SIZES
        ]
        for job in jobs:
            job.result()
        for video in made:
            video.result()


def jobs_of(plan: Plan, space: Workspace, real_videos: Sequence[Path]) -> list[dict[str, Any]]:
    """The arguments of each process, that with most to do first."""
    jobs: dict[str, dict[str, Any]] = {}
    for group in plan.groups:
        name = group.case.name
        job = jobs.setdefault(
            group.case.model.name,
            {
                "model": group.case.model.name,
                "folder": str(space.folder),
                "videos": [str(path) for path in real_videos],
                "publish": [],
                "by_hand": [],
                "contracts": [],
            },
        )
        job["publish"] += [[name, engine] for engine in space.engines(group.engines)]
        by_hand = "by hand" in group.others
        job["by_hand"] += [name] if by_hand else []
        kinds = WIRES if name == FULL else ("onnx",) if by_hand else ()
        job["contracts"] += [[name, kind] for kind in kinds if kind not in space.skipped]
    return sorted(jobs.values(), key=lambda job: -len(job["publish"]))


def _run(job: Mapping[str, Any], space: Workspace) -> None:
    try:
        done = _process(job, max(0.0, min(LIMIT_S, space.left_s)))
    except subprocess.TimeoutExpired as exc:
        raise ContenderError(f"{job['model']} was not made in {exc.timeout:.0f} s") from exc
    if done.returncode:
        raise ContenderError(f"{job['model']} cannot be made:\n{done.stderr[-3000:]}")


def _process(job: Mapping[str, Any], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.prepare", json.dumps(job)],
        cwd=driver.ROOT,
        env=driver.environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def main(arguments: Mapping[str, Any]) -> None:
    from action_export import api
    from support.weights import write_checkpoint

    from benchmarks.by_hand.write import write

    model, space = MODELS[arguments["model"]], Workspace(folder=Path(arguments["folder"]))
    checkpoint = space.checkpoint(model)
    if model.config is not None:
        write_checkpoint(model.config, checkpoint, [Path(video) for video in arguments["videos"]])
    for name, engine in arguments["publish"]:
        case = Case.named(name)
        wanted = request(case, ENGINES[engine], space.repo(case, engine), checkpoint)
        publish_unproved(ENGINES[engine], wanted)
    for case in map(Case.named, arguments["by_hand"]):
        write(config_of(model), checkpoint, case.options, space.repo(case, BY_HAND))
    for name, engine in arguments["contracts"]:
        case = Case.named(name)
        wanted = request(case, ENGINES[engine], space.folder / "never", checkpoint)
        contract = api.export(replace(wanted, dry_run=True)).contract
        space.contract(case, engine).write_text(contract.to_json(), "utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
