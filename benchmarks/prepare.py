"""Makes what is measured of one model, in a process of its own: weights, repositories, contracts.

    python -m benchmarks.prepare JSON_ARGS

arguments: model; folder; publish: [case, engine] pairs; by_hand: cases; contracts: pairs of which
only the contract is wanted; videos: two real ones, which the random weights are calibrated on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.models import ENGINES, MODELS, Case, Model, publish_unproved, request


def checkpoint_of(folder: Path, model: Model) -> Path:
    from action_export import example

    return example.CHECKPOINT if model.config is None else folder / f"{model.name}.pth"


def config_of(model: Model) -> str:
    from action_export import example

    return model.config or str(example.CONFIG)


def repo_of(folder: Path, case: str, engine: str) -> Path:
    return folder / case / engine


def contract_of(folder: Path, case: str, engine: str) -> Path:
    return folder / f"{case}-{engine}.json"


def main(arguments: Mapping[str, Any]) -> None:
    from action_export import api
    from support.weights import write_checkpoint

    from benchmarks.by_hand.write import write

    model, folder = MODELS[arguments["model"]], Path(arguments["folder"])
    checkpoint = checkpoint_of(folder, model)
    if model.config is not None:
        write_checkpoint(model.config, checkpoint, [Path(video) for video in arguments["videos"]])
    for name, engine in arguments["publish"]:
        repo = repo_of(folder, name, engine)
        publish_unproved(
            ENGINES[engine], request(Case.named(name), ENGINES[engine], repo, checkpoint)
        )
    for name in arguments["by_hand"]:
        repo = repo_of(folder, name, "by_hand")
        write(config_of(model), checkpoint, Case.named(name).options, repo)
    for name, engine in arguments["contracts"]:
        wanted = request(Case.named(name), ENGINES[engine], folder / "never", checkpoint)
        contract = api.export(replace(wanted, dry_run=True)).contract
        contract_of(folder, name, engine).write_text(contract.to_json(), "utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
