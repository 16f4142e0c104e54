"""What a release of Triton can load: the facts that depend on --triton-version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from action_export.errors import UnsupportedError
from action_export.types import EngineOptions, ExportRequest, Profile, TensorSpec

# The first image with TensorRT 10; those before have 8.6.
_TENSORRT_10 = (24, 5)

# Highest ONNX opset by release: ONNX Runtime 1.16 (opset 19) or later since 23.10, 1.19 (opset 21)
# or later since 24.10. Releases between may read more; what is not certain is not promised.
_OPSETS = {(23, 10): 19, (24, 10): 21}

# TensorRT in the image of each release, as NVIDIA's release notes list it ("Container Versions").
# 24.08 and 24.10 were read there; the others in the table that X-Square-Robot/Qwen3TTS-Streaming
# keeps of them (scripts/bash/ngc_matrix.conf, 2026-07-08). 24.12 is left out, as sources differ.
_TENSORRT = {
    (24, 5): "10.0.1.6",
    (24, 6): "10.1.0.27",
    (24, 7): "10.2.0.19",
    (24, 8): "10.3.0.26",
    (24, 9): "10.4.0.26",
    (24, 10): "10.5.0.18",
    (24, 11): "10.6.0.26",
    (25, 1): "10.8.0.43",
    (25, 2): "10.8.0.43",
    (25, 3): "10.9.0.34",
    (25, 4): "10.9.0.34",
    (25, 5): "10.10.0.31",
    (25, 6): "10.11.0.33",
    (25, 8): "10.13.2.6",
    (25, 9): "10.13.3.9",
    (25, 10): "10.13.3.9",
    (25, 11): "10.14.1.48",
    (25, 12): "10.14.1.48",
    (26, 1): "10.14.1.48",
    (26, 2): "10.15.1.29",
    (26, 3): "10.16.0.72",
    (26, 4): "10.16.1.11",
    (26, 5): "10.16.1.11",
}

# The Python backend's TritonError takes a status code since 23.09 (python_backend, README.md,
# "Error Handling"); a bad request is answered with one.
OLDEST = (23, 10)


def check_release(version: str, opset: int) -> None:
    """Raises UnsupportedError where the release cannot load what would be written."""
    match = re.fullmatch(r"(\d\d)\.(\d\d)", version)
    if match is None:
        raise UnsupportedError(
            f"{version!r} is no Triton release",
            hint="write year.month, as in --triton-version 24.10",
        )
    release = (int(match[1]), int(match[2]))
    if release < OLDEST:
        raise UnsupportedError(
            f"Triton {version} is older than {OLDEST[0]}.{OLDEST[1]}, the first that answers bad "
            "requests with a status code",
            hint="serve with a newer release",
        )
    highest = max(limit for first, limit in _OPSETS.items() if first <= release)
    if opset > highest:
        raise UnsupportedError(
            f"the ONNX Runtime of Triton {version} reads opset {highest} at most, not {opset}",
            hint=f"--opset {highest} or lower, or a newer --triton-version",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanScript:
    """What builds the plan in the image that serves it.

    image: the tag of NVIDIA's image. flags: of trtexec. needs: what its help must tell of, or "".
    """

    image: str
    flags: tuple[str, ...]
    needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognizerRuntime:
    """How Triton runs the recognizer.

    file: its name in the version folder. plans: of several kinds of GPU, by compute capability.
    writes: what an export writes there, which is another file where the plan is built by `script`.
    parameters: of the backend. accelerator: those of ONNX Runtime's TensorRT provider, or none.
    warmup: batch sizes that run before the first request. server_flags: without which tritonserver
    does not load it.
    """

    backend: str
    file: str
    writes: str
    plans: Mapping[str, str] = field(default_factory=dict)
    script: PlanScript | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    accelerator: Mapping[str, str] = field(default_factory=dict)
    warmup: tuple[int, ...] = ()
    server_flags: tuple[str, ...] = ()

    @property
    def tensorrt(self) -> bool:
        """Whether TensorRT reads the graph, here or in the server."""
        return self.backend == "tensorrt" or bool(self.accelerator)

    @property
    def builds(self) -> bool:
        """Whether the plan is built here."""
        return self.backend == "tensorrt" and self.script is None

    @property
    def openvino(self) -> bool:
        """Whether the IR of OpenVINO is what is served; its backend has CPUs only."""
        return self.backend == "openvino"


# Of src/onnxruntime.cc of onnxruntime_backend: every core works on one operator after the other. On
# CPUs the parallel mode, and more threads than cores, were measured 1.7 to 2 times slower.
_ONNX_PARAMETERS: Mapping[str, str] = {"execution_mode": "0", "intra_op_thread_count": "0"}

ONNX_RUNTIME = RecognizerRuntime(
    backend="onnxruntime", file="model.onnx", writes="model.onnx", parameters=_ONNX_PARAMETERS
)

# Of src/openvino.cc of openvino_backend, since its pull request 41 of 2022: all cores work on one
# request, as its README advises where latency counts. For "all cores" there is no number of
# threads; it is OpenVINO's default.
_OPENVINO_PARAMETERS: Mapping[str, str] = {"NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}


def check_format(request: ExportRequest) -> None:
    """Raises UnsupportedError for options that exclude each other, or that nothing would read."""
    plan, here = request.format == "tensorrt", not request.plan_in_container
    openvino = request.format == "openvino"
    engine = request.engine
    refused = (
        (
            request.format != "onnx" and request.accelerate,
            f"--accelerator is for ONNX Runtime, and --format {request.format} leaves it out",
            "leave one of them out",
        ),
        (
            request.precision == "bf16" and not openvino,
            f"--precision bf16 is a hint to OpenVINO, and --format {request.format} leaves it out",
            "add --format openvino",
        ),
        (
            openvino and request.precision not in ("fp32", "bf16"),
            f"OpenVINO computes in fp32 or bf16 here, not in {request.precision}",
            "--precision bf16, or --format onnx",
        ),
        (
            openvino and request.device == "gpu",
            "Triton's OpenVINO backend runs on CPUs only",
            "leave out --device, or --format onnx",
        ),
        (
            # openvino_backend's ProcessRequests refuses a batch of other than max_batch_size rows.
            # With ENABLE_BATCH_PADDING it computes zeros for what is missing, and miscounts the
            # rows where several requests fill the batch.
            openvino and (request.max_batch_size or 1) > 1,
            "Triton's OpenVINO backend takes batches of one size only, so videos come one by one",
            "leave out --max-batch-size, or --format onnx",
        ),
        (
            request.device == "cpu" and (plan or request.accelerate),
            "TensorRT runs on a GPU, and --device cpu keeps the recognizer off it",
            "leave out --device, or TensorRT",
        ),
        (
            request.plan_in_container and not plan,
            f"--plan-in-container builds a plan, and --format {request.format} serves none",
            "add --format tensorrt",
        ),
        (
            request.plan_in_container and request.proof == "server",
            "--proof server needs a plan, and --plan-in-container leaves building it to the server",
            "leave one of them out",
        ),
        (
            (plan or request.accelerate) and _release(request.triton_version) < _TENSORRT_10,
            f"the TensorRT in Triton {request.triton_version} is older than 10: it reads opset 17 "
            "at most, and chooses precisions by itself",
            "--triton-version 24.05 or later",
        ),
        (
            request.server_tensorrt is not None and not (plan and here),
            "--server-tensorrt is what a plan that is built here must load in",
            "leave it out; it is for --format tensorrt",
        ),
        (
            bool(request.gpus) and engine.hardware_compatible != "none",
            "--gpus builds a plan for each kind of GPU, --hardware-compatible one for several",
            "leave one of them out",
        ),
        (
            bool(request.gpus) and here,
            "--gpus names the plans of several kinds of GPU, and only one kind is here",
            "add --plan-in-container, and run its script on each",
        ),
        (
            engine.timing_cache is not None and not (plan and here),
            "--timing-cache is a file of this machine, and no plan is built on it",
            "leave it out; it is for --format tensorrt",
        ),
        (
            (engine.version_compatible or engine.hardware_compatible != "none") and not plan,
            "--version-compatible and --hardware-compatible are properties of a plan",
            "add --format tensorrt",
        ),
        (
            not plan and not request.accelerate and engine != EngineOptions(),
            "--builder-level and --workspace are for TensorRT, which nothing here uses",
            "add --format tensorrt, or --accelerator tensorrt",
        ),
    )
    for holds, message, hint in refused:
        if holds:
            raise UnsupportedError(message, hint=hint)
    for gpu in request.gpus:
        if re.fullmatch(r"\d+\.\d", gpu) is None:
            raise UnsupportedError(
                f"{gpu!r} is no compute capability",
                hint="major and minor, as nvidia-smi --query-gpu=compute_cap says: --gpus 8.6 9.0",
            )


def recognizer_runtime(
    request: ExportRequest, clips: TensorSpec, identity: str
) -> RecognizerRuntime:
    """The backend that the request asks for, and its settings.

    identity: differs for graphs that differ, and can stand in a path.
    """
    if request.format == "tensorrt":
        flag = "--backend-config=tensorrt,version-compatible=true"
        flags = (flag,) if request.engine.version_compatible else ()
        if not request.plan_in_container:
            return RecognizerRuntime(
                backend="tensorrt", file="model.plan", writes="model.plan", server_flags=flags
            )
        return RecognizerRuntime(
            backend="tensorrt",
            file="model.plan",
            writes="model.onnx",
            plans={gpu: f"model_{gpu}.plan" for gpu in request.gpus},
            script=PlanScript(
                image=f"{request.triton_version}-py3",
                flags=_trtexec_flags(Profile.of(clips), request.engine),
                needs=_NEWER_LEVELS.get(request.engine.hardware_compatible, ""),
            ),
            server_flags=flags,
        )
    if request.format == "openvino":
        hint = {"HINT_BF16": "YES"} if request.precision == "bf16" else {}
        return RecognizerRuntime(
            backend="openvino",
            file="model.xml",
            writes="model.xml",
            parameters={**_OPENVINO_PARAMETERS, **hint},
        )
    if not request.accelerate:
        return ONNX_RUNTIME
    return RecognizerRuntime(
        backend="onnxruntime",
        file="model.onnx",
        writes="model.onnx",
        parameters=_ONNX_PARAMETERS,
        accelerator=_provider_parameters(request, clips, identity),
        warmup=tuple(sorted({1, clips.max_batch_size})),
    )


# Values of --hardwareCompatibilityLevel that not every trtexec of TensorRT 10 knows.
_NEWER_LEVELS: Mapping[str, str] = {"same_compute_capability": "sameComputeCapability"}


def _trtexec_flags(profile: Profile, engine: EngineOptions) -> tuple[str, ...]:
    """As `trtexec --help` of TensorRT 10 says them."""
    shapes = (("min", profile.least), ("opt", profile.best), ("max", profile.most))
    flags = [f"--{name}Shapes={_shape(profile.name, dims)}" for name, dims in shapes]
    flags.append("--noTF32")  # float32 as the graph says, and as it was proved
    if engine.level is not None:
        flags.append(f"--builderOptimizationLevel={engine.level}")
    if engine.workspace_mib is not None:
        flags.append(f"--memPoolSize=workspace:{engine.workspace_mib}")
    if engine.version_compatible:
        flags.append("--versionCompatible")
    if engine.hardware_compatible != "none":
        level = _NEWER_LEVELS.get(engine.hardware_compatible, "ampere+")
        flags.append(f"--hardwareCompatibilityLevel={level}")
    return tuple(flags)


def _provider_parameters(
    request: ExportRequest, clips: TensorSpec, identity: str
) -> dict[str, str]:
    """Those that src/onnxruntime.cc of onnxruntime_backend knows; any other fails the load.

    No precision_mode: with one, ONNX Runtime lets TensorRT choose precisions by itself, where it
    otherwise keeps to those of the graph (onnxruntime pull request 18707).
    """
    profile = Profile.of(clips)
    parameters = {
        "trt_engine_cache_enable": "1",
        # ONNX Runtime knows an engine again by the names in its graph, whatever the weights are
        # (onnxruntime issue 6455), so each export has a folder of its own.
        "trt_engine_cache_path": f"{_CACHE}-{identity}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": f"{_CACHE}-{identity}",
        "trt_profile_min_shapes": _shape(profile.name, profile.least),
        "trt_profile_opt_shapes": _shape(profile.name, profile.best),
        "trt_profile_max_shapes": _shape(profile.name, profile.most),
    }
    if request.engine.workspace_mib is not None:
        parameters["max_workspace_size_bytes"] = str(request.engine.workspace_mib * 2**20)
    if request.engine.level is not None:
        parameters["trt_builder_optimization_level"] = str(request.engine.level)
    return parameters


# In the container; a volume mounted there keeps the engines from one start to the next.
_CACHE = "/tmp/action-export-tensorrt"


def _shape(name: str, dims: tuple[int, ...]) -> str:
    return f"{name}:{'x'.join(map(str, dims))}"


def _release(version: str) -> tuple[int, int]:
    """Year and month of what check_release has let pass."""
    year, _, month = version.partition(".")
    return int(year), int(month)


def tensorrt_of(request: ExportRequest) -> str:
    """The TensorRT in the server's image.

    Raises UnsupportedError where it is not known.
    """
    version = request.server_tensorrt or _TENSORRT.get(_release(request.triton_version))
    if version is None:
        raise UnsupportedError(
            f"which TensorRT Triton {request.triton_version} has is not known here",
            hint="--server-tensorrt VERSION, which `dpkg -s libnvinfer-bin` says in its image; or "
            "--plan-in-container, which builds the plan with that one",
        )
    if re.fullmatch(r"\d+(\.\d+){2,3}", version) is None:
        raise UnsupportedError(
            f"{version!r} is no release of TensorRT",
            hint="write it in full, as in --server-tensorrt 10.14.1.48",
        )
    return version


def check_tensorrt(built: str, served: str, request: ExportRequest) -> None:
    """Raises UnsupportedError where the server's TensorRT cannot load a plan of `built`.

    A plan loads in the very release that built it, its build number included; a version-compatible
    one in later releases of the same major, too (TensorRT documentation, "Version Compatibility").
    """
    ours, theirs = _numbers(built), _numbers(served)
    length = min(len(ours), len(theirs))
    later = request.engine.version_compatible and ours[0] == theirs[0] and ours <= theirs
    if ours[:length] == theirs[:length] or later:
        return
    fits = [f"{y}.{m:02}" for (y, m), text in _TENSORRT.items() if _numbers(text) == ours]
    ways = [f"--triton-version {fits[-1]}"] if fits and not request.server_tensorrt else []
    raise UnsupportedError(
        f"TensorRT {built} is installed, and Triton {request.triton_version} has {served}: it "
        "would not load the plan",
        hint=", or ".join([*ways, f'pip install "tensorrt=={served}.*"', "--plan-in-container"]),
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor, patch and build, as far as they are there; a wheel adds .postN."""
    return tuple(int(part) for part in version.split(".")[:4] if part.isdigit())
