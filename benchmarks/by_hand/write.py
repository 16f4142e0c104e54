"""Writes the ensemble by hand: three configs, a model.py, and a graph that takes float32 crops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from action_export import preprocess, source
from action_export.checkpoint import build_model, load_checkpoint
from action_export.types import ViewOptions

NAME = "by_hand"


def write(config: str, checkpoint: Path, views: ViewOptions, repo: Path) -> None:
    """A repository of a 2D or 3D recognizer of RGB frames whose pipeline resizes the short side."""
    loaded = source.load_config(config)
    model: Any = build_model(loaded, load_checkpoint(checkpoint))
    contract = preprocess.derive(loaded, views).contract(loaded, labels=(), provenance={})
    layout = preprocess.derive(loaded, views).layout
    crop: Any = contract.crop
    resize: Any = contract.resize
    size = (crop.height, crop.width)
    if layout == "NCHW":
        shape: tuple[int, ...] = (1, contract.views * contract.sampler.clip_len, 3, *size)
    else:
        shape = (1, contract.views, 3, contract.sampler.clip_len, *size)
    for name, text in _configs(contract.positions, shape, contract.classes).items():
        (repo / name / "1").mkdir(parents=True)
        (repo / name / "config.pbtxt").write_text(text)
    folder = repo / f"{NAME}_preprocess" / "1"
    shutil.copyfile(Path(__file__).with_name("preprocess.py"), folder / "model.py")
    processor = loaded.model["data_preprocessor"]
    settings = {
        "mean": list(processor.get("mean", (0, 0, 0))),
        "std": list(processor.get("std", (1, 1, 1))),
        "short": resize.short,
        "crop": crop.kind,
        "crop_size": crop.height,
        "clip_len": contract.sampler.clip_len,
        "layout": layout,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    _export(model, shape, repo / f"{NAME}_recognizer" / "1" / "model.onnx")


def _export(model: Any, shape: tuple[int, ...], path: Path) -> None:
    import torch
    from action_export import tracing

    class Recognizer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            features, options = model.extract_feat(clips, test_mode=True)
            rows = model.cls_head(features, **options)
            averaged: torch.Tensor = model.cls_head.average_clip(rows, len(rows))
            return averaged

    with tracing.quiet(), torch.no_grad():
        torch.onnx.export(
            Recognizer().eval(),
            (torch.zeros(shape),),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["clips"],
            output_names=["scores"],
        )


def _configs(positions: int, clips: tuple[int, ...], classes: int) -> dict[str, str]:
    frames = f'{{ name: "frames" data_type: TYPE_UINT8 dims: [ {positions}, -1, -1, 3 ] }}'
    dims = ", ".join(map(str, clips))
    crops = f'{{ name: "clips" data_type: TYPE_FP32 dims: [ {dims} ] }}'
    scores = f'{{ name: "scores" data_type: TYPE_FP32 dims: [ 1, {classes} ] }}'
    first, second = f"{NAME}_preprocess", f"{NAME}_recognizer"
    return {
        first: f"""\
name: "{first}"
backend: "python"
input [ {frames} ]
output [ {crops} ]
instance_group [ {{ kind: KIND_CPU }} ]
""",
        second: f"""\
name: "{second}"
backend: "onnxruntime"
input [ {crops} ]
output [ {scores} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
""",
        NAME: f"""\
name: "{NAME}"
platform: "ensemble"
input [ {frames} ]
output [ {scores} ]
ensemble_scheduling {{
  step [
    {{ model_name: "{first}" model_version: -1
       input_map {{ key: "frames" value: "frames" }}
       output_map {{ key: "clips" value: "clips" }} }},
    {{ model_name: "{second}" model_version: -1
       input_map {{ key: "clips" value: "clips" }}
       output_map {{ key: "scores" value: "scores" }} }}
  ]
}}
""",
    }
