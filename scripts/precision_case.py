"""One config of a family in every precision, served and built; the last line of stdout is its row.

    python scripts/precision_case.py CONFIG FOLDER

As `--accelerator tensorrt` writes it: one graph, which ONNX Runtime and TensorRT both read.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorrt_rtx
from action_export import api, example, tensorrt
from action_export.errors import ActionExportError
from action_export.types import ExportRequest, ExportResult
from support.videos import real_videos
from support.weights import write_checkpoint
from support.zoo import CASES

VIDEOS = real_videos()
BATCH = 3
# what int8 is measured on: none that the proof looks at
CALIBRATION = (*VIDEOS[2:], *example.CLIPS)
COMPUTE_CAPABILITY = "8.0"
SERVER = (
    f"tritonserver of nvidia-pytriton {metadata.version('nvidia-pytriton')}, "
    f"ONNX Runtime {metadata.version('onnxruntime')}, CPU"
)
MIB = 2**20


def main(config: str, folder: Path) -> dict[str, Any]:
    (case,) = (case for case in CASES if case.config == config)
    request = ExportRequest(
        triton_repo=folder / "repo",
        config=config,
        checkpoint=write_checkpoint(config, folder / "checkpoint.pth", VIDEOS[:2]),
        name="model",
        views=case.views,
        max_batch_size=BATCH,
        accelerate=True,
        videos=tuple(VIDEOS[:2]),
        proof="server",
    )
    precisions = {
        "fp32": _row(request, folder),
        "fp16": _row(replace(request, precision="fp16"), folder),
        "int8": _row(replace(request, precision="int8", calibration=CALIBRATION), folder),
    }
    # int8 may be refused, as it would be for a user: no training made these weights robust
    missing = [
        f"{kind}: {precisions[kind]}" for kind in ("fp32", "fp16") if not _whole(precisions[kind])
    ]
    return {"verdict": "; ".join(missing) or "proved", "precisions": precisions}


def _whole(row: dict[str, Any]) -> bool:
    return row["verdict"] == "proved" and row["plan"]["verdict"] == "built"


def _row(request: ExportRequest, folder: Path) -> dict[str, Any]:
    try:
        result = api.export(request)
    except ActionExportError as exc:
        return {"verdict": f"{type(exc).__name__}: {exc.message}"}
    (served,) = (check for check in result.checks if check.name.startswith("live server"))
    # of the graph that is served, on every batch of the proof; of fp16, rounded as a GPU does
    ran = [check for check in result.checks if check.bound == served.bound]
    return {
        "verdict": "proved",
        "graph_mb": round(_graph(result).stat().st_size / MIB, 1),
        "error": max(check.error for check in ran),
        "bound": served.bound,
        "top1": min(check.top1 for check in ran if check.top1 is not None),
        "server": SERVER,
        "plan": _plan(result, folder / "model.plan"),
    }


def _plan(result: ExportResult, path: Path) -> dict[str, Any]:
    target = tensorrt.Target(trt=tensorrt_rtx, compute_capability=COMPUTE_CAPABILITY)
    try:
        engine = tensorrt.build(_graph(result), path, result.tensors, target)
    except ActionExportError as exc:
        return {"verdict": f"{type(exc).__name__}: {exc.message}"}
    return {
        "verdict": "built",
        "mb": round(path.stat().st_size / MIB, 1),
        "seconds": round(engine.seconds, 1),
        "tensorrt": f"TensorRT-RTX {engine.tensorrt}",
        "compute_capability": engine.compute_capability,
    }


def _graph(result: ExportResult) -> Path:
    return result.repo / "model_recognizer" / str(result.version) / "model.onnx"


if __name__ == "__main__":
    try:
        row = main(sys.argv[1], Path(sys.argv[2]))
    except ActionExportError as exc:
        row = {"verdict": f"{type(exc).__name__}: {exc.message}"}
    print(json.dumps(row))
