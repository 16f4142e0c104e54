"""The export whose time is measured, and torch's bare one of the same network beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.models import ENGINES, Case, request
from benchmarks.workspace import config_of


def warm_up(folder: Path) -> None:
    """Imports what both would import on first use: torch's exporter, mmaction2, the runtimes.

    Next to nothing is traced, because torch loads the parts of its exporter when it runs.
    """
    import torch
    import tritonclient.grpc  # noqa: F401
    from action_export import api, tracing  # noqa: F401
    from action_export.dependencies import import_onnxruntime
    from action_export.mmaction_compat import import_mmaction

    import_onnxruntime()
    import_mmaction()
    folder.mkdir(parents=True, exist_ok=True)
    with tracing.quiet():
        torch.onnx.export(
            torch.nn.Identity(), (torch.zeros(1),), folder / "nothing.onnx", dynamo=True
        )


def export(arguments: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each step. arguments: case, engine, checkpoint, folder."""
    from action_export import api

    with tempfile.TemporaryDirectory(dir=arguments["folder"]) as folder:
        result = api.export(
            request(
                Case.named(arguments["case"]),
                ENGINES[arguments["engine"]],
                Path(folder) / "repo",
                Path(arguments["checkpoint"]),
            )
        )
    return {step.step: step.seconds for step in result.steps}


def bare(arguments: Mapping[str, Any]) -> Callable[[], None]:
    """The network loaded, its example input made: from float32, normalised, to logits.

    The example is of the shape that ours is traced with: two videos, which is no more work, as
    torch computes with shapes only.
    """
    import torch
    from action_export import preprocess, source, tracing
    from action_export.checkpoint import build_model, load_checkpoint

    case = Case.named(arguments["case"])
    config = source.load_config(config_of(case.model))
    model: Any = build_model(config, load_checkpoint(Path(arguments["checkpoint"])))
    served = preprocess.derive(config, case.options)
    contract = served.contract(config, labels=(), provenance={})
    views, clip_len, height, width, channels = contract.clips_shape
    if served.layout == "NCTHW":
        shape: tuple[int, ...] = (2, views, channels, clip_len, height, width)
    else:
        shape = (2, views * clip_len, channels, height, width)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            features, options = model.extract_feat(inputs, test_mode=True)
            logits: torch.Tensor = model.cls_head(features, **options)
            return logits

    network, example = Network().eval(), (torch.zeros(shape),)
    path = Path(arguments["folder"]) / "bare.onnx"

    def run() -> None:
        with tracing.quiet(), torch.no_grad():
            torch.onnx.export(network, example, path, dynamo=True, verbose=False)

    return run
