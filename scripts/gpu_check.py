"""Parity and speed on this machine's GPU, of whatever is installed to use it.

    scripts/gpu_check [--json FILE] [--seconds N] [--cpu]

Three recognizers, the bundled example and two of mmaction2's zoo, are exported; then
- mmaction2 runs on the GPU, where torch has CUDA;
- a live tritonserver serves them, on the GPU where the installed onnxruntime has CUDA, with and
  without dynamic batching;
- TensorRT and TensorRT-RTX build plans and run them, in float32 and float16, where installed.
Scores are compared with mmaction2's on the CPU. What is missing is named. With --cpu it runs
without a GPU, to try the script itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
from action_client import VideoClient
from action_export import (
    api,
    example,
    measure,
    parity,
    precision,
    preprocess,
    reference,
    source,
    tensorrt,
)
from action_export.checkpoint import build_model, load_checkpoint
from action_export.dependencies import import_onnxruntime
from action_export.errors import ActionExportError, DependencyError, EngineError, first_line
from action_export.families import FAMILIES, decide, family_of
from action_export.gpu import Gpu
from action_export.graph import serving_module
from action_export.reference import Reference
from action_export.serve import serve
from action_export.types import Check, ExportRequest, ExportResult, ViewOptions
from support.videos import real_videos
from support.weights import write_checkpoint

ZOO = {
    "slowonly": "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
    "tsm": "tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb",
}
TENSORRT = ("tensorrt", "tensorrt_rtx")
CLIENTS = 8
# Of float32 on a GPU, whose sums have another order than those of the CPU.
FP32_BOUND = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A recognizer that is exported, and what mmaction2 makes of its videos on the CPU."""

    name: str
    request: ExportRequest
    result: ExportResult
    references: tuple[Reference, ...]

    @property
    def graph(self) -> Path:
        return self.result.repo / f"{self.name}_recognizer" / "1" / "model.onnx"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--cpu", action="store_true", help="go on without a GPU")
    arguments = parser.parse_args()
    try:
        gpu: Gpu | None = Gpu()
    except ActionExportError as exc:
        if not arguments.cpu:
            sys.exit(f"gpu_check: {exc.message}\n  --cpu runs what needs none")
        gpu = None
    report: dict[str, Any] = {"machine": machine(gpu), "models": {}}
    with tempfile.TemporaryDirectory(prefix="action-export-gpu-") as folder:
        for case in exported(Path(folder)):
            say(f"{case.name}: on the GPU")
            report["models"][case.name] = {
                "clips": list(case.result.tensors.clips.dims),
                "mmaction2 on CUDA": attempt(on_cuda, case, arguments.seconds),
                "onnxruntime": attempt(onnx_runtime, case, arguments.seconds),
                **{
                    package: attempt(plans, case, package, gpu, Path(folder), arguments.seconds)
                    for package in TENSORRT
                },
                "tritonserver": attempt(served, case, arguments.seconds),
            }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0 if all(verdicts(report)) else 1


def attempt(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What fails is told in its place, and costs the others nothing."""
    try:
        return measure(*arguments)
    except Exception as exc:
        return {"passed": False, "failed": f"{type(exc).__name__}: {first_line(exc)}"}


def say(text: str) -> None:
    print(f"gpu_check: {text}", file=sys.stderr, flush=True)


def machine(gpu: Gpu | None) -> dict[str, Any]:
    packages = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")
    found: dict[str, Any] = {
        "gpu": gpu.name if gpu else None,
        "compute_capability": gpu.compute_capability if gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "packages": {},
    }
    for package in packages:
        try:
            found["packages"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found["packages"][package] = None
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        found["driver"] = subprocess.run(
            query, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["driver"] = None
    return found


def exported(folder: Path) -> Iterator[Case]:
    videos = tuple(real_videos()[:2])
    requests = [ExportRequest(triton_repo=folder / "repo", config=None, name="example")]
    for name, config in ZOO.items():
        say(f"{name}: weights")
        requests.append(
            ExportRequest(
                triton_repo=folder / "repo",
                config=config,
                checkpoint=write_checkpoint(config, folder / f"{name}.pth", list(videos)),
                name=name,
                views=ViewOptions(num_clips=8 if name == "tsm" else 1, crops="center"),
                videos=videos,
            )
        )
    for request in requests:
        say(f"{request.name}: export")
        asked = replace(request, accelerate=True, max_batch_size=8, proof="graph")
        result = api.export(asked)
        yield Case(
            name=str(request.name),
            request=asked,
            result=result,
            references=references(asked),
        )


def model_of(request: ExportRequest) -> tuple[Any, preprocess.Preprocessing]:
    config = source.load_config(str(request.config or example.CONFIG), request.cfg_options)
    checkpoint = load_checkpoint(request.checkpoint or example.CHECKPOINT)
    model = build_model(config, checkpoint)
    decide(model, family_of(config.model, FAMILIES))
    return model, preprocess.derive(config, request.views)


def references(request: ExportRequest) -> tuple[Reference, ...]:
    model, preprocessing = model_of(request)
    videos = request.videos or example.CLIPS
    found = tuple(reference.run_mmaction(model, preprocessing, video) for video in videos)
    return measure.distinguishable(found, 1e-4)


# --- Without a server ---------------------------------------------------------------------------


def on_cuda(case: Case, seconds: float) -> dict[str, Any]:
    """mmaction2 itself on the GPU: the parity that the hardware's own rounding leaves."""
    import torch

    if not torch.cuda.is_available():
        return {"missing": "torch has no CUDA here"}
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model, preprocessing = model_of(case.request)
    model.cuda()
    found = [
        reference.run_mmaction(model, preprocessing, row.video).scores for row in case.references
    ]
    check = measure.compare_scores(
        "cuda", list(zip(found, case.references, strict=True)), FP32_BOUND
    )
    module = serving_module(
        model,
        layout=preprocessing.layout,
        average=case.result.contract.average,
        modality=preprocessing.modality,
    )

    def run(batch: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(batch).cuda()).cpu().numpy()

    return {**verdict((check,)), "by_batch": speeds(run, case, seconds)}


def onnx_runtime(case: Case, seconds: float) -> dict[str, Any]:
    onnxruntime = import_onnxruntime()
    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        return {"missing": "the installed onnxruntime has no CUDA"}
    session = onnxruntime.InferenceSession(case.graph, providers=[(provider, {"use_tf32": "0"})])
    if session.get_providers()[0] != provider:
        return {"missing": "ONNX Runtime cannot load its CUDA provider"}
    name = case.result.tensors.clips.name

    def run(batch: Any) -> Any:
        return session.run(None, {name: batch})[0]

    return measured(run, case, FP32_BOUND, seconds)


def plans(
    case: Case, package: str, gpu: Gpu | None, folder: Path, seconds: float
) -> dict[str, Any]:
    """By precision, what the package builds and how it runs."""
    try:
        trt = importlib.import_module(package)
    except Exception as exc:  # its libraries fail in ways of their own
        return {"missing": f"{package}: {exc}"}
    half = folder / "half.onnx"
    precision.half(case.graph, half, [row.clips for row in case.references])
    rows: dict[str, Any] = {}
    for kind, graph, bound in (
        ("fp32", case.graph, FP32_BOUND),
        ("fp16", half, precision.BOUNDS["fp16"]),
    ):
        rows[kind] = attempt(one_plan, case, trt, gpu, graph, bound, seconds)
    return rows


def one_plan(
    case: Case, trt: Any, gpu: Gpu | None, graph: Path, bound: float, seconds: float
) -> dict[str, Any]:
    target = tensorrt.Target(trt=trt, compute_capability=gpu.compute_capability if gpu else "8.0")
    tensors = case.result.tensors
    with tempfile.TemporaryDirectory() as folder:
        try:
            engine = tensorrt.build(graph, Path(folder) / "model.plan", tensors, target)
        except EngineError as exc:
            if "has no ComputeCapability" in exc.message:
                return {"missing": exc.message}
            raise
        built = {
            "tensorrt": engine.tensorrt,
            "build_s": round(engine.seconds, 1),
            "plan_mb": round(engine.path.stat().st_size / 2**20, 1),
        }
        if gpu is None:
            return {**built, "missing": "a GPU to run it"}
        run = tensorrt.Runner(engine.path, tensors, target, gpu)
        return {**built, **measured(run, case, bound, seconds)}


def measured(run: Callable[[Any], Any], case: Case, bound: float, seconds: float) -> dict[str, Any]:
    """Parity on the batches of the proof; milliseconds and videos a second by batch."""
    clips = case.result.tensors.clips
    checks = parity.verify_runner(run, case.references, clips, bound, name="gpu")
    return {**verdict(checks), "by_batch": speeds(run, case, seconds)}


def verdict(checks: tuple[Check, ...]) -> dict[str, Any]:
    return {
        "error": max(check.error for check in checks),
        "bound": checks[0].bound,
        "top1": min(check.top1 for check in checks if check.top1 is not None),
        "passed": all(check.passed for check in checks),
    }


def speeds(run: Callable[[Any], Any], case: Case, seconds: float) -> dict[int, dict[str, float]]:
    """Of one video at a time, and of the largest batch."""
    found = {}
    for batch in (1, case.result.tensors.clips.max_batch_size):
        rows = np.concatenate([case.references[0].clips] * batch)
        times: list[float] = []
        run(rows)
        repeat(lambda rows=rows: run(rows), seconds, times)
        median = statistics.median(times)
        found[batch] = {"ms": round(1e3 * median, 2), "videos_per_s": round(batch / median, 1)}
    return found


# --- With one -----------------------------------------------------------------------------------


def served(case: Case, seconds: float) -> dict[str, Any]:
    """A live server: parity, latency alone, and throughput of clients at once."""
    rows = {}
    config = case.result.repo / f"{case.name}_recognizer" / "config.pbtxt"
    for name, change in (
        ("batching", nullcontext()),
        ("no batching", without("dynamic_batching { }", config)),
    ):
        try:
            with change, serve(case.result.repo) as server:
                rows[name] = {
                    "runs with": provider_of(server.log_text(), case.name),
                    **load(case, server.grpc_url, seconds),
                }
        except DependencyError as exc:
            rows[name] = {"missing": exc.message}
    return rows


def provider_of(log: str, name: str) -> str:
    """What the embedded server's ONNX Runtime said; another server's log does not tell."""
    told = re.search(rf"{name}_recognizer runs with (\w+)", log)
    return told[1] if told else "unknown"


@contextmanager
def without(text: str, config: Path) -> Iterator[None]:
    before = config.read_text("utf-8")
    if text not in before:
        raise ValueError(f"{config} has no {text}")
    try:
        config.write_text(before.replace(text, ""), "utf-8")
        yield
    finally:
        config.write_text(before, "utf-8")


def load(case: Case, url: str, seconds: float) -> dict[str, Any]:
    rows = case.references
    with VideoClient(url, case.name, timeout_s=120) as client:
        answers = [client.classify_sampled(row.frames, row.frame_index).scores for row in rows]
        check = measure.compare_scores("live", list(zip(answers, rows, strict=True)), FP32_BOUND)

        def call() -> None:
            client.classify_sampled(rows[0].frames, rows[0].frame_index)

        alone: list[float] = []
        repeat(call, seconds, alone)
        together: list[list[float]] = [[] for _ in range(CLIENTS)]
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda times: repeat(call, seconds, times), together))
        spent = time.perf_counter() - started
    times = sorted(time for each in together for time in each)
    return {
        "error": check.error,
        "bound": check.bound,
        "top1": check.top1,
        "passed": check.passed,
        "alone_ms": round(1e3 * statistics.median(alone), 2),
        f"{CLIENTS}_clients": {
            "p50_ms": round(1e3 * statistics.median(times), 2),
            "p95_ms": round(1e3 * times[int(0.95 * (len(times) - 1))], 2),
            "videos_per_s": round(len(times) / spent, 1),
        },
    }


def repeat(call: Callable[[], Any], seconds: float, times: list[float]) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)


def verdicts(report: Any) -> Iterator[bool]:
    """Every comparison that was made, wherever in the report."""
    if isinstance(report, dict):
        if "passed" in report:
            yield report["passed"]
        for value in report.values():
            yield from verdicts(value)


if __name__ == "__main__":
    sys.exit(main())
