"""Builds a TensorRT plan of an ONNX file, with the module `tensorrt` that it is given.

The same calls serve TensorRT 10 and 11, and TensorRT-RTX, whose builder needs no GPU. Networks are
strongly typed: precision is a property of the ONNX graph, never of the builder.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_export.errors import DependencyError, EngineError, first_line
from action_export.gpu import Gpu
from action_export.onnx_file import module_of
from action_export.types import EngineOptions, Profile, Tensors

OnProgress = Callable[[str, float], None]
"""Called with a phase of the build and the share of it that is done, 0 to 1."""

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What builds a plan, and for what.

    trt: the module `tensorrt`, or one of its API. compute_capability: of the GPU, such as "8.6".
    TensorRT builds for the one that is here, TensorRT-RTX for any.
    """

    trt: ModuleType
    compute_capability: str
    options: EngineOptions = EngineOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A plan that was written, and what the manifest keeps of it."""

    path: Path
    tensorrt: str
    compute_capability: str
    profile: Profile
    seconds: float


def installed(wanted: str) -> ModuleType:
    """The module `tensorrt`. wanted: the release to install where there is none.

    Raises:
        DependencyError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module("tensorrt")
    # its libraries are loaded here, and fail in ways of their own
    except Exception as exc:
        raise DependencyError(
            f"TensorRT cannot be used here: {first_line(exc)}",
            hint=f'pip install "action-export[tensorrt]" "tensorrt=={wanted}.*" where the GPU is, '
            "or --plan-in-container, or --format onnx",
        ) from exc


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keeps Python's collector out of TensorRT's calls.

    TensorRT logs while it holds a lock that freeing a builder takes, too. If the collector finds an
    old one in a cycle while our logger runs, both wait for ever (seen with TensorRT-RTX 1.7).
    """
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_nothing_collected()
def build(
    onnx: Path,
    path: Path,
    tensors: Tensors,
    target: Target,
    on_progress: OnProgress = lambda phase, share: None,
) -> Engine:
    """Writes the plan of `onnx` to `path`.

    Raises:
        EngineError: TensorRT cannot parse or build the graph; the message names the ONNX node and
            the module of the network that it comes from.
    """
    started = time.perf_counter()
    trt, options = target.trt, target.options
    log = _logger(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as exc:  # what the bindings make of nothing
        raise EngineError(f"TensorRT cannot start: {log.last}", hint=_HINT_ONNX) from exc
    network = builder.create_network(_strongly_typed(trt))
    _parse(onnx, network, log, trt)
    _check(network, tensors, trt)
    profile = Profile.of(tensors.clips)
    config = _config(builder, profile, target)
    monitor = _monitor(on_progress, trt)
    config.progress_monitor = monitor
    cache = _timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if monitor.interrupted is not None:
        raise monitor.interrupted
    if plan is None:
        raise EngineError(
            f"TensorRT cannot build {onnx.name}: {log.last}",
            hint="--workspace N gives layers more memory; --precision fp32 is the plainest build",
        )
    path.write_bytes(plan)
    if options.timing_cache is not None:
        beside = options.timing_cache.with_name(f"{options.timing_cache.name}.new")
        beside.write_bytes(cache.serialize())
        beside.replace(options.timing_cache)
    return Engine(
        path=path,
        tensorrt=trt.__version__,
        compute_capability=target.compute_capability,
        profile=profile,
        seconds=time.perf_counter() - started,
    )


class Runner:
    """A plan that is loaded: batches of clips in, their scores out."""

    @_nothing_collected()
    def __init__(self, plan: Path, tensors: Tensors, target: Target, gpu: Gpu) -> None:
        """Raises EngineError where the plan cannot be loaded."""
        self._clips, self._scores, self._gpu = tensors.clips, tensors.scores, gpu
        trt = target.trt
        self._log = _logger(trt)
        context = None
        try:
            # both must outlive the context
            self._runtime = trt.Runtime(self._log)
            # a version-compatible plan brings code of its own that runs on the CPU
            self._runtime.engine_host_code_allowed = target.options.version_compatible
            self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
            if self._engine is not None:
                context = self._engine.create_execution_context()
        except TypeError:  # what the bindings make of nothing
            pass
        if context is None:
            raise EngineError(
                f"TensorRT cannot load {plan.name}: {self._log.last}", hint=_HINT_ONNX
            )
        self._context = context

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raises EngineError where the batch does not run."""
        given = np.empty(self._scores.shape(len(batch)), np.float32)
        with self._gpu.memory(batch.nbytes, given.nbytes) as (taken_at, given_at):
            self._gpu.upload(np.ascontiguousarray(batch), taken_at)
            ran = (
                self._context.set_input_shape(self._clips.name, batch.shape)
                and self._context.set_tensor_address(self._clips.name, taken_at)
                and self._context.set_tensor_address(self._scores.name, given_at)
                and self._context.execute_async_v3(self._gpu.stream)
            )
            self._gpu.wait()
            self._gpu.download(given_at, given)
        if not ran:
            raise EngineError(
                f"the plan does not run on a batch of {len(batch)}: {self._log.last}",
                hint=_HINT_ONNX,
            )
        return given


def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps errors, which TensorRT says to its logger and nobody else."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        @property
        def last(self) -> str:
            return self.errors[-1] if self.errors else "it gives no reason"

    return Logger()


def _strongly_typed(trt: ModuleType) -> int:
    """The creation flags: TensorRT 10 must be told, and 11 knows no other networks."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(onnx: Path, network: Any, log: Any, trt: ModuleType) -> None:
    parser = trt.OnnxParser(network, log)
    # from the file, because weights beyond 2 GiB stand in another one beside it
    if parser.parse_from_file(str(onnx)):
        return
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    if not errors:
        raise EngineError(f"TensorRT cannot read {onnx.name}: {log.last}", hint=_HINT_ONNX)
    first = errors[0]
    where = onnx.name
    if first.node_name():
        module = _module_of(onnx, first.node_name())
        where = f"the {first.node_operator()} node {first.node_name()!r}"
        where += f", from {module}," if module else ""
    # the first line only names the node again
    said = first.desc().strip().splitlines()
    raise EngineError(
        f"TensorRT cannot parse {where}: {said[min(1, len(said) - 1)]}", hint=_HINT_ONNX
    )


_HINT_ONNX = "--format onnx serves the same graph, on the same GPU"


def _module_of(onnx: Path, name: str) -> str:
    import onnx as onnx_package

    graph = onnx_package.load(str(onnx), load_external_data=False).graph
    return next((module_of(node) for node in graph.node if node.name == name), "")


def _check(network: Any, tensors: Tensors, trt: ModuleType) -> None:
    """What was parsed takes and gives what config.pbtxt will promise."""
    found = [network.get_input(number) for number in range(network.num_inputs)]
    found += [network.get_output(number) for number in range(network.num_outputs)]
    described = [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in found]
    types = {"UINT8": trt.uint8, "FP32": trt.float32}
    specs = (tensors.clips, tensors.scores)
    expected = [(spec.name, types[spec.dtype], (-1, *spec.dims)) for spec in specs]
    if described != expected:
        raise EngineError(
            f"TensorRT reads the graph's tensors as {described}, not {expected}", hint=_HINT_ONNX
        )


def _config(builder: Any, profile: Profile, target: Target) -> Any:
    trt, options = target.trt, target.options
    config = builder.create_builder_config()
    # It rounds float32 to 10 bits, and the graph says float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(profile.name, profile.least, profile.best, profile.most)
    config.add_optimization_profile(shapes)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible != "none":
        config.hardware_compatibility_level = _named(
            trt.HardwareCompatibilityLevel, options.hardware_compatible.upper(), trt
        )
    if hasattr(config, "num_compute_capabilities"):  # TensorRT-RTX
        config.num_compute_capabilities = 1
        kind = "SM" + target.compute_capability.replace(".", "")
        config.set_compute_capability(_named(trt.ComputeCapability, kind, trt), 0)
    return config


def _named(kinds: Any, name: str, trt: ModuleType) -> Any:
    if not hasattr(kinds, name):
        raise EngineError(
            f"TensorRT {trt.__version__} has no {kinds.__name__} {name}",
            hint="another release may; --format onnx needs none",
        )
    return getattr(kinds, name)


def _monitor(on_progress: OnProgress, trt: ModuleType) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Tells of the outermost phases; those inside them come and go in milliseconds."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self.interrupted: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if not parent:
                self._steps[phase] = steps
                self._tell(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._steps:
                self._tell(phase, min(1.0, (step + 1) / max(1, self._steps[phase])))
            return self.interrupted is None  # or the build ends

        def phase_finish(self, phase: str) -> None:
            if self._steps.pop(phase, None) is not None:
                self._tell(phase, 1.0)

        def _tell(self, phase: str, share: float) -> None:
            try:
                on_progress(phase, share)
            # The bindings would print it and go on; an interrupt arrives here, too.
            except BaseException as exc:
                self.interrupted = exc

    return Monitor()


def _timing_cache(config: Any, path: Path | None) -> Any:
    """The cache that the build fills; one of another TensorRT or GPU is refused and made anew."""
    known = path.read_bytes() if path is not None and path.exists() else b""
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache
