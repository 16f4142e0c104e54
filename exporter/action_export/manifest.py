"""What is kept with a published version: where it comes from, and what its proof measured."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from action_export import __version__
from action_export.checkpoint import Checkpoint
from action_export.job import Job, Proved
from action_export.reference import Reference
from action_export.source import RecognizerConfig, file_sha256
from action_export.tensorrt import Engine
from action_export.types import SETTLE_S, ExportRequest

SCHEMA = 1
_PACKAGES = (
    "torch",
    "mmaction2",
    "mmengine",
    "mmcv-lite",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "opencv-python",
    "nvidia-pytriton",
    "openvino",
)


def provenance(config: RecognizerConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """The short form, which travels in the contract."""
    return {
        "config": config.name,
        "config_sha256": config.sha256,
        "checkpoint_sha256": checkpoint.sha256,
        "exporter": f"action-export {__version__}",
    }


def build(job: Job, proved: Proved, references: tuple[Reference, ...]) -> dict[str, Any]:
    """Everything that is needed to repeat the export and to judge its proof."""
    request, graph = job.request, proved.graph
    return {
        "schema": SCHEMA,
        "name": job.plan.names.ensemble,
        "version": job.plan.version,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command(request),
        "contract": json.loads(job.contract.to_json()),
        "max_batch_size": job.tensors.clips.max_batch_size,
        "triton_version": request.triton_version,
        "graph": {
            "published": proved.engine is None,
            "files": [_file(graph.path.with_name(name)) for name in graph.files],
            "opset": graph.opset,
            "precision": request.precision,
            "nodes": graph.nodes,
        },
        "calibration": [_file(video) for video in request.calibration],
        "engine": _engine(proved.engine) if proved.engine else None,
        "proof": {
            "videos": [_file(reference.video) for reference in references],
            "checks": [asdict(check) for check in proved.checks],
        },
        "decisions": {key: value for d in job.decisions for key, value in d.record.items()},
        "notes": [*job.notes, *proved.notes],
        "python": platform.python_version(),
        "packages": _versions(),
    }


def _engine(engine: Engine) -> dict[str, Any]:
    return {
        "file": _file(engine.path),
        "tensorrt": engine.tensorrt,
        "compute_capability": engine.compute_capability,
        "profile": asdict(engine.profile),
        "seconds": round(engine.seconds, 1),
    }


def _file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size}


def command(request: ExportRequest) -> str:
    """The command line that repeats this export."""
    words = ["action-export"]
    words += [str(word) for word in (request.config, request.checkpoint) if word is not None]
    words += ["--triton-repo", str(request.triton_repo)]
    options: dict[str, object] = {
        "--name": request.name,
        "--labels": request.labels,
        "--num-clips": request.views.num_clips,
        "--crops": request.views.crops if request.views.crops != "config" else None,
        "--max-batch-size": request.max_batch_size,
        "--device": request.device if request.device != "auto" else None,
        "--triton-version": request.triton_version,
        "--opset": request.opset,
        "--server-tensorrt": request.server_tensorrt,
        "--precision": request.precision if request.precision != "fp32" else None,
        "--scores": request.scores if request.scores != "config" else None,
        "--wire": request.wire if request.wire != "raw" else None,
        "--jpeg-quality": request.jpeg_quality,
        "--settle": f"{request.settle_s:g}" if request.settle_s != SETTLE_S else None,
        "--format": request.format if request.format != "onnx" else None,
        "--accelerator": "tensorrt" if request.accelerate else None,
        "--builder-level": request.engine.level,
        "--workspace": request.engine.workspace_mib,
        "--timing-cache": request.engine.timing_cache,
        "--hardware-compatible": (
            None
            if request.engine.hardware_compatible == "none"
            else request.engine.hardware_compatible
        ),
        "--proof": request.proof if request.proof != "auto" else None,
    }
    for option, value in options.items():
        words += [] if value is None else [option, str(value)]
    if request.cfg_options:
        words += ["--cfg-options", *request.cfg_options]
    words += ["--plan-in-container"] if request.plan_in_container else []
    words += ["--gpus", *request.gpus] if request.gpus else []
    words += ["--version-compatible"] if request.engine.version_compatible else []
    if request.calibration:
        words += ["--calibration", *map(str, request.calibration)]
    if request.videos:
        words += ["--videos", *map(str, request.videos)]
    if request.trust_checkpoint:
        words.append("--trust-checkpoint")
    if request.relabel:
        words.append("--relabel")
    return shlex.join(words)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
