"""The values that flow through an export. All frozen; what does I/O is a function elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from action_runtime.spec import Contract

DType = Literal["UINT8", "INT32", "FP32", "BYTES"]
Crops = Literal["config", "center", "three", "ten"]
Device = Literal["auto", "cpu", "gpu"]
Layout = Literal["NCHW", "NCTHW"]
Modality = Literal["RGB", "Flow"]
"""What the frames of the test dataset are, in mmaction2's words."""
Proof = Literal["auto", "graph", "server"]
Reduced = Literal["fp16", "int8"]
"""Precisions that are a graph of their own; bf16 is a hint to the runtime."""
Precision = Literal["fp32", "bf16", Reduced]
Format = Literal["onnx", "openvino", "tensorrt"]
Wire = Literal["raw", "jpeg"]
Compatible = Literal["none", "ampere_plus", "same_compute_capability"]

SETTLE_S = 20.0
"""What an old version stays loaded beside a new one, unless something else is asked for."""

DYNAMIC = -1
"""An axis of any length, in the notation of config.pbtxt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of the repository; every place that needs its name, type or shape asks this.

    dims: its shape, without the batch axis where `max_batch_size` > 0.
    max_batch_size: 0 for a tensor that has no batch axis of Triton's.
    """

    name: str
    dtype: DType
    dims: tuple[int, ...]
    max_batch_size: int = 0

    @property
    def data_type(self) -> str:
        """In the words of config.pbtxt, where requests say BYTES."""
        return "TYPE_STRING" if self.dtype == "BYTES" else f"TYPE_{self.dtype}"

    def shape(self, batch: int) -> tuple[int, ...]:
        return (batch, *self.dims) if self.max_batch_size else self.dims

    def unbatched(self) -> TensorSpec:
        """The same tensor between models that do not batch: one video, so a leading 1."""
        return TensorSpec(name=self.name, dtype=self.dtype, dims=(1, *self.dims))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """The four tensors of a published model. `frames`, `frame_index` and `scores` are public.

    frames: pixels, or a JPEG file of each frame.
    """

    frames: TensorSpec
    frame_index: TensorSpec
    clips: TensorSpec
    scores: TensorSpec

    @classmethod
    def of(cls, contract: Contract, max_batch_size: int) -> Tensors:
        pixels = (DYNAMIC, DYNAMIC, contract.channels) if contract.wire is None else ()
        return cls(
            frames=TensorSpec(
                name=contract.frames_tensor,
                dtype="BYTES" if contract.wire else "UINT8",
                dims=(DYNAMIC, *pixels),
            ),
            frame_index=TensorSpec(name="frame_index", dtype="INT32", dims=(contract.positions,)),
            clips=TensorSpec(
                name="clips",
                dtype="UINT8",
                dims=contract.clips_shape,
                max_batch_size=max_batch_size,
            ),
            scores=TensorSpec(
                name="scores",
                dtype="FP32",
                dims=(contract.classes,),
                max_batch_size=max_batch_size,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """Fewer (or more) views than the config's. None and "config" keep what the config says."""

    num_clips: int | None = None
    crops: Crops = "config"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How TensorRT builds a plan, here or in the server.

    level: the builder optimization level, 0 (fast to build) to 5; None keeps TensorRT's default.
    workspace_mib: memory that a layer may use at run time; None keeps TensorRT's default, all.
    timing_cache: a file that is read if it exists, and written: later builds skip what it knows.
    version_compatible: the plan also loads in later TensorRT releases of the same major version.
    hardware_compatible: GPUs beside the one it is built on that may run it.
    """

    level: int | None = None
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: Compatible = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The shapes of an input that a plan runs: at least, best, and at most."""

    name: str
    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]

    @classmethod
    def of(cls, spec: TensorSpec) -> Profile:
        """One video to `max_batch_size`; the largest batch is what throughput is wanted for."""
        most = spec.shape(spec.max_batch_size)
        return cls(name=spec.name, least=spec.shape(1), best=most, most=most)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What the user asked for.

    config: a path or the name of a zoo config; None for the bundled example recognizer.
    videos: the proof's inputs; empty for the bundled clips.
    max_batch_size: videos in one execution of the recognizer; None chooses by the views
        and the activations that mmaction2's run shows, or keeps what is published.
    triton_version: release of the server that will load the repository, such as "24.10".
    server_tensorrt: the TensorRT in its image, where this package does not know the release.
    relabel: serve `labels` where the checkpoint, or the published model, names its classes
        otherwise.
    calibration: the videos whose values give the scales of int8.
    scores: those of mmaction2's predict, or the average over views of each logit's sigmoid.
    wire: how frames travel to the server: as pixels, or as JPEG of `jpeg_quality`, which is lossy;
        None is a quality of 90.
    format: what the recognizer is served as: model.onnx, the IR of OpenVINO, or a plan of TensorRT.
    accelerate: let ONNX Runtime run model.onnx with its TensorRT provider, where there is one.
    plan_in_container: write model.onnx and the script that builds the plan in the serving image.
    gpus: the compute capabilities, such as "8.6", whose plans serve side by side; empty for one.
    settle_s: how long an old version stays loaded beside a new one, so that servers that poll have
        the one until they have the other.
    """

    triton_repo: Path
    config: str | None = None
    checkpoint: Path | None = None
    name: str | None = None
    labels: Path | None = None
    views: ViewOptions = ViewOptions()
    max_batch_size: int | None = None
    device: Device = "auto"
    triton_version: str = "24.10"
    server_tensorrt: str | None = None
    opset: int = 18
    precision: Precision = "fp32"
    calibration: tuple[Path, ...] = ()
    scores: Literal["config", "sigmoid"] = "config"
    wire: Wire = "raw"
    jpeg_quality: int | None = None
    format: Format = "onnx"
    accelerate: bool = False
    plan_in_container: bool = False
    gpus: tuple[str, ...] = ()
    engine: EngineOptions = EngineOptions()
    model_version: int | None = None
    settle_s: float = SETTLE_S
    cfg_options: tuple[str, ...] = ()
    trust_checkpoint: bool = False
    relabel: bool = False
    videos: tuple[Path, ...] = ()
    proof: Proof = "auto"
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison of the proof.

    error: the largest |difference| over the spread of the reference (scores), or in grey levels
        (pixels).
    bound: what `error` may be at most.
    top1, top5: share of the rows whose best class is the same, and of the five best that are; None
        where no scores are compared.
    """

    name: str
    error: float
    bound: float
    unit: Literal["of spread", "grey levels", "frames", "differences"]
    detail: str = ""
    top1: float | None = None
    top5: float | None = None

    @property
    def passed(self) -> bool:
        # a NaN error must fail, so the test is not `error > bound`
        return self.error <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """Progress: a step began (`result` None), is at a phase, or ended."""

    step: str
    phase: str = ""
    result: str | None = None
    seconds: float = 0.0


OnStep = Callable[[StepEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was published, or would be with `dry_run`: then there are no checks and no manifest.

    triton_version, server_flags: of the server that must load it.
    engine_cache: where in its container ONNX Runtime keeps TensorRT's engines, or "".
    """

    name: str
    version: int
    repo: Path
    files: tuple[str, ...]
    steps: tuple[StepEvent, ...]
    notes: tuple[str, ...]
    contract: Contract
    tensors: Tensors
    dry_run: bool
    triton_version: str
    server_flags: tuple[str, ...] = ()
    engine_cache: str = ""
    checks: tuple[Check, ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
