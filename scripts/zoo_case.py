"""One config of the zoo through the whole job; the last line of stdout is its row as JSON.

    python scripts/zoo_case.py CONFIG FOLDER

Random weights that are calibrated on real videos stand in for trained ones, which cannot be
downloaded here. Everything else is what `action-export` does for a user.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from action_export import api, preprocess, source, tracing
from action_export.checkpoint import build_model, load_checkpoint
from action_export.dependencies import import_onnxruntime
from action_export.errors import ActionExportError
from action_export.families import FAMILIES, decide, family_of, patch
from action_export.mmaction_compat import import_mmaction
from action_export.types import ExportRequest, ExportResult, StepEvent, ViewOptions
from action_runtime.spec import PARAMETER, Contract
from google.protobuf import text_format
from support import zoo_packages
from support.videos import real_videos
from support.weights import segments_of, write_checkpoint
from torch.utils.flop_counter import FlopCounterMode
from tritonclient.grpc import model_config_pb2

VIDEOS = real_videos()[:2]
BATCH = 3
# Views of a video that are proved: as many as tell an average, where one forward is cheap.
CHEAP_FLOP = 120e9
TIMED_S = 6.0
LONG_S = 30.0
MIB = 2**20


def main(config: str, folder: Path) -> dict[str, Any]:
    import_mmaction()
    cfg_options: tuple[str, ...] = ()
    if config in zoo_packages.CONFIGS:
        zoo_packages.enable()
        cfg_options = zoo_packages.CONFIGS[config]
    loaded = source.load_config(config, cfg_options)
    checkpoint = write_checkpoint(
        config, folder / "checkpoint.pth", VIDEOS, cfg_options=cfg_options
    )
    model = build_model(loaded, load_checkpoint(checkpoint))
    decide(model, family_of(loaded.model, FAMILIES))
    views, needs = _views(loaded, model)
    del model
    _load_exporter(folder)
    memory = Memory()
    result = api.export(
        ExportRequest(
            triton_repo=folder / "repo",
            config=config,
            checkpoint=checkpoint,
            name="model",
            views=views,
            max_batch_size=BATCH,
            cfg_options=cfg_options,
            videos=tuple(VIDEOS),
            proof="graph",
        ),
        memory.on_step,
    )
    _check_published(result)
    graph = result.repo / "model_recognizer" / "1" / "model.onnx"
    scores = [check for check in result.checks if check.top1 is not None]
    config_views = result.contract.config_views or {
        "num_clips": result.contract.sampler.total_clips,
        "crops": result.contract.crop.kind if result.contract.crop else "none",
    }
    size = checkpoint.stat().st_size / MIB
    # The bound that large models are held to. The proof's largest forward has BATCH rows.
    limit = 3 * size + BATCH * needs / MIB
    return {
        "verdict": "proved",
        "cfg_options": list(cfg_options),
        "layout": preprocess.derive(loaded, views).layout,
        "config_views": dict(config_views),
        "proved_views": result.contract.views,
        "clip": list(result.tensors.clips.dims[1:]),
        "opset": result.manifest["graph"]["opset"],
        "nodes": result.manifest["graph"]["nodes"],
        "checkpoint_mb": round(size, 1),
        "graph_mb": round(sum(f["bytes"] for f in result.manifest["graph"]["files"]) / MIB, 1),
        "files": [f["file"] for f in result.manifest["graph"]["files"]],
        "seconds": round(sum(step.seconds for step in result.steps), 1),
        "forward_mb": round(needs / MIB),
        "limit_mb": round(limit),
        "peak_mb": {step: round(peak / MIB) for step, peak in memory.peaks.items()},
        "error": max(check.error for check in scores),
        "bound": scores[0].bound,
        "top1": min(check.top1 for check in scores if check.top1 is not None),
        "top5": min(check.top5 for check in scores if check.top5 is not None),
        **_time_ratio(loaded, checkpoint, result, graph, folder),
        "notes": list(result.notes),
    }


def _load_exporter(folder: Path) -> None:
    """Traces next to nothing, because torch imports its exporter, 250 MB, on first use."""
    with tracing.quiet():
        torch.onnx.export(
            torch.nn.Identity(), (torch.zeros(1),), folder / "nothing.onnx", dynamo=True
        )


def _views(config: source.RecognizerConfig, model: Any) -> tuple[ViewOptions, int]:
    """(the views that are proved, bytes that the activations of one forward of them take)."""
    group = segments_of(model)
    crops = "center" if any(t["type"].endswith("Crop") for t in config.pipeline) else "config"
    one = ViewOptions(num_clips=group, crops=crops)
    flop, needs = _forward(config, model, one)
    sampled = preprocess.derive(config, ViewOptions()).sampler.total_clips
    if flop > CHEAP_FLOP or sampled < 2 * group:
        return one, needs
    two = ViewOptions(num_clips=2 * group, crops=crops)
    return two, _forward(config, model, two)[1]


def _forward(config: source.RecognizerConfig, model: Any, views: ViewOptions) -> tuple[float, int]:
    """(floating point operations, the peak of memory above what was there) of one prediction."""
    served = preprocess.derive(config, views)
    contract = served.contract(config, labels=(), provenance={})
    shape = (contract.views, *contract.clips_shape[1:])
    clips = torch.zeros(shape, dtype=torch.uint8)
    if served.layout == "NCTHW":
        inputs = clips.permute(0, 4, 1, 2, 3).contiguous()
    else:
        images = clips.flatten(0, 1).permute(0, 3, 1, 2)
        inputs = images.reshape(
            -1, len(config.model["data_preprocessor"]["mean"]), *images.shape[2:]
        ).contiguous()
    from mmaction.structures import ActionDataSample

    data = {"inputs": [inputs], "data_samples": [ActionDataSample()]}
    before = Memory.reset()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.test_step(data)
    return counter.get_total_flops(), Memory.peak() - before


class Memory:
    """The process's peak of resident memory during each step, above what its imports take."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._before = self.reset()

    def on_step(self, event: StepEvent) -> None:
        if event.result is None:
            self.reset()
        else:
            self.peaks[event.step] = self.peak() - self._before

    @staticmethod
    def reset() -> int:
        """Starts a new peak (man 5 proc, clear_refs), and returns what is resident now."""
        # what malloc keeps for later would hide what is allocated next
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return Memory._read("VmRSS")

    @staticmethod
    def peak() -> int:
        return Memory._read("VmHWM")

    @staticmethod
    def _read(key: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"/proc/self/status has no {key}")


def _check_published(result: ExportResult) -> None:
    """Reads what was published as Triton and a client do, and compares every file's digest."""
    for name in ("model", "model_preprocess", "model_recognizer"):
        text = (result.repo / name / "config.pbtxt").read_text("utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        if name == "model":
            assert Contract.from_json(config.parameters[PARAMETER].string_value) == result.contract
    for path in result.files:
        assert (result.repo / path).is_file(), path
    for file in result.manifest["graph"]["files"]:
        published = result.repo / "model_recognizer" / "1" / file["file"]
        assert source.file_sha256(published) == file["sha256"], published


def _time_ratio(
    config: source.RecognizerConfig,
    checkpoint: Path,
    result: ExportResult,
    graph: Path,
    folder: Path,
) -> dict[str, Any]:
    """ONNX Runtime's time on the exported graph over its time on the plain one.

    The plain graph is the network alone, as torch exports it for one fixed shape: normalised
    float32 in, logits out. Without our patches, unless torch cannot export it so.
    """
    spec = result.tensors.clips
    plain = folder / "plain.onnx"
    try:
        shape = _export_plain(config, checkpoint, result, plain, patched=False)
        patched = False
    except (torch.onnx.errors.OnnxExporterError, AssertionError):
        shape = _export_plain(config, checkpoint, result, plain, patched=True)
        patched = True
    rng = np.random.default_rng(0)
    ours = _runner(graph, rng.integers(0, 256, spec.shape(1), np.uint8))
    theirs = _runner(plain, rng.standard_normal(shape, np.float32))
    first, ratio = _round(ours, theirs)
    ratios = [ratio]
    if first < LONG_S:
        # the first round allocates, which tells beside a short one
        count = int(np.clip(TIMED_S / first, 2, 25))
        ratios = [_round(ours, theirs)[1] for _ in range(count)]
    return {
        "time_ratio": round(statistics.median(ratios), 3),
        "time_rounds": len(ratios),
        "plain_patched": patched,
    }


def _round(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """(seconds that both take, ours over theirs), one right after the other."""
    times = []
    for run in (ours, theirs):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return sum(times), times[0] / times[1]


def _export_plain(
    config: source.RecognizerConfig,
    checkpoint: Path,
    result: ExportResult,
    path: Path,
    *,
    patched: bool,
) -> tuple[int, ...]:
    """The shape of its input, [1, views, ...] in the layout of the network."""
    model: Any = build_model(config, load_checkpoint(checkpoint))
    family = family_of(config.model, FAMILIES)
    decide(model, family)
    if patched:
        patch(model, family)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recognizer = model

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            features = model.extract_feat(inputs, test_mode=True)
            # RecognizerOmni gives no options for the head
            features, options = features if isinstance(features, tuple) else (features, {})
            logits: torch.Tensor = model.cls_head(features, **options)
            return logits

    views, clip_len, height, width, channels = result.tensors.clips.dims
    if preprocess.derive(config, ViewOptions()).layout == "NCTHW":
        shape: tuple[int, ...] = (1, views, channels, clip_len, height, width)
    else:
        stacked = len(config.model["data_preprocessor"]["mean"])
        shape = (1, views * clip_len * channels // stacked, stacked, height, width)
    plain = Plain().eval()
    with tracing.quiet(), torch.no_grad():
        plain(torch.zeros(shape))  # TPN's head makes a layer of its own on its first run
        torch.onnx.export(
            plain,
            (torch.zeros(shape),),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return shape


def _runner(path: Path, inputs: Any) -> Callable[[], None]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run() -> None:
        session.run(None, {name: inputs})

    return run


if __name__ == "__main__":
    try:
        row = main(sys.argv[1], Path(sys.argv[2]))
    except ActionExportError as exc:
        row = {"verdict": f"{type(exc).__name__}: {exc.message}", "hint": exc.hint}
    print(json.dumps(row))
