"""NVIDIA's own parser and builder, which TensorRT-RTX brings and which need no GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx as trt
from action_export import tensorrt
from action_export.errors import DependencyError, EngineError
from action_export.gpu import Gpu
from action_export.tensorrt import Target
from action_export.types import EngineOptions, Profile, Tensors, TensorSpec
from onnx import TensorProto, helper, numpy_helper

CLIPS = TensorSpec(name="clips", dtype="UINT8", dims=(2, 4, 3), max_batch_size=5)
SCORES = TensorSpec(name="scores", dtype="FP32", dims=(3,), max_batch_size=5)
TENSORS = Tensors(
    frames=TensorSpec(name="frames", dtype="UINT8", dims=(-1, -1, -1, 3)),
    frame_index=TensorSpec(name="frame_index", dtype="INT32", dims=(2,)),
    clips=CLIPS,
    scores=SCORES,
)
AMPERE = Target(trt=trt, compute_capability="8.0")


def graph(*, first: str = "Cast", weights: Any = None) -> onnx.ModelProto:
    """clips [batch, 2, 4, 3] to scores [batch, 3]: the mean over all but the last axis."""
    weights = np.eye(3, dtype=np.float32) if weights is None else weights
    nodes = [
        helper.make_node("Cast", ["clips"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weights"], ["mixed"], name="mix"),
        helper.make_node("ReduceMean", ["mixed", "axes"], ["scores"], name="mean", keepdims=0),
    ]
    if first != "Cast":  # before the cast, on uint8
        nodes.insert(0, helper.make_node(first, ["clips"], ["moved"], name="move"))
        nodes[1].input[0] = "moved"
        nodes[0].metadata_props.add(
            key="pkg.torch.onnx.name_scopes",
            value="['', 'recognizer.backbone', 'recognizer.backbone.stem', 'move']",
        )
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("clips", TensorProto.UINT8, ["batch", *CLIPS.dims])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", *SCORES.dims])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1, 2]), "axes"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def build(
    folder: Path, model: onnx.ModelProto, target: Target = AMPERE, tensors: Tensors = TENSORS
) -> tensorrt.Engine:
    onnx.save(model, str(folder / "model.onnx"))
    return tensorrt.build(folder / "model.onnx", folder / "model.plan", tensors, target)


# --- What is built ------------------------------------------------------------------------------


def test_a_plan_is_written_and_described(tmp_path: Path) -> None:
    engine = build(tmp_path, graph())
    assert engine.path.stat().st_size > 1000
    assert engine.tensorrt == trt.__version__
    assert engine.compute_capability == "8.0"
    assert engine.profile == Profile(
        name="clips", least=(1, 2, 4, 3), best=(5, 2, 4, 3), most=(5, 2, 4, 3)
    )
    assert engine.seconds > 0


class Told:
    """A builder's config, which also notes what it is told: TensorRT-RTX keeps not all of it."""

    def __init__(self, config: Any) -> None:
        object.__setattr__(self, "real", config)
        object.__setattr__(self, "said", {})

    def __setattr__(self, name: str, value: Any) -> None:
        self.said[name] = value
        setattr(self.real, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Noted:
    """The module, but of its builders the last network and config are kept to be looked at."""

    def __init__(self) -> None:
        self.network: Any = None
        self.config: Any = None
        self.profile: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)

    def Builder(self, log: Any) -> Any:
        builder = trt.Builder(log)

        def create_network(flags: int) -> Any:
            self.network = builder.create_network(flags)
            return self.network

        def create_builder_config() -> Any:
            self.config = Told(builder.create_builder_config())
            return self.config

        def create_optimization_profile() -> Any:
            self.profile = builder.create_optimization_profile()
            return self.profile

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=create_builder_config,
            create_optimization_profile=create_optimization_profile,
            build_serialized_network=lambda network, config: builder.build_serialized_network(
                network, config.real
            ),
        )


def noted_target(noted: Any, options: EngineOptions = AMPERE.options) -> Target:
    return replace(AMPERE, trt=noted, options=options)


def test_the_builder_is_told_what_the_options_and_the_tensors_say(tmp_path: Path) -> None:
    noted = Noted()
    options = EngineOptions(level=1, workspace_mib=64, timing_cache=tmp_path / "timings")
    build(tmp_path, graph(), replace(noted_target(noted, options), compute_capability="8.6"))
    assert noted.network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert [tuple(shape) for shape in noted.profile.get_shape("clips")] == [
        (1, 2, 4, 3),
        (5, 2, 4, 3),
        (5, 2, 4, 3),
    ]
    assert noted.config.builder_optimization_level == 1
    assert noted.config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 * 2**20
    assert noted.config.get_compute_capability(0) == trt.ComputeCapability.SM86
    assert noted.config.num_optimization_profiles == 1
    assert not noted.config.get_flag(trt.BuilderFlag.TF32)
    assert not noted.config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert "hardware_compatibility_level" not in noted.config.said


def test_a_plan_for_more_than_one_gpu_is_asked_for(tmp_path: Path) -> None:
    noted = Noted()
    build(tmp_path, graph(), noted_target(noted, EngineOptions(hardware_compatible="ampere_plus")))
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert noted.config.said["hardware_compatibility_level"] == level


def test_a_plan_for_more_than_one_release_is_asked_for(tmp_path: Path) -> None:
    noted = Noted()
    # TensorRT-RTX does not ship the library that goes into a version-compatible plan
    with pytest.raises(EngineError, match="libnvinfer_lean"):
        build(tmp_path, graph(), noted_target(noted, EngineOptions(version_compatible=True)))
    assert noted.config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def test_the_timing_cache_is_written_and_read_again(tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    target = replace(AMPERE, options=EngineOptions(timing_cache=cache))
    build(tmp_path, graph(), target)
    written = cache.read_bytes()
    assert written
    build(tmp_path, graph(), target)
    cache.write_bytes(b"of something else")
    build(tmp_path, graph(), target)
    assert cache.read_bytes() != b"of something else"


def test_progress_is_told_from_the_start_of_a_phase_to_its_end(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    path = tmp_path / "model.onnx"
    onnx.save(graph(), str(path))
    tensorrt.build(path, tmp_path / "model.plan", TENSORS, AMPERE, lambda *step: told.append(step))
    assert told
    assert all(0 <= share <= 1 for _, share in told)
    for phase in {phase for phase, _ in told}:
        shares = [share for name, share in told if name == phase]
        assert shares[0] == 0
        assert shares[-1] == 1


# --- What is refused ----------------------------------------------------------------------------


def test_a_node_that_cannot_be_parsed_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        build(tmp_path, graph(first="BitwiseNot"))
    assert "BitwiseNot node 'move', from recognizer.backbone.stem," in caught.value.message
    assert "--format onnx" in caught.value.hint
    assert not (tmp_path / "model.plan").exists()


def test_bytes_can_only_be_cast_which_is_why_that_comes_first(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Transpose node 'move'"):
        build(tmp_path, graph(first="Transpose"))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(EngineError, match="TensorRT cannot"):
        tensorrt.build(path, tmp_path / "model.plan", TENSORS, AMPERE)


@pytest.mark.parametrize(
    "changed", [dict(name="other"), dict(dims=(7,)), dict(dtype="UINT8")], ids=str
)
def test_a_graph_with_other_tensors_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="reads the graph's tensors as"):
        build(tmp_path, graph(), tensors=replace(TENSORS, scores=replace(SCORES, **changed)))


def test_an_interrupt_of_a_build_stays_one(tmp_path: Path) -> None:
    def interrupt(phase: str, share: float) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "model.onnx"
    onnx.save(graph(), str(path))
    with pytest.raises(KeyboardInterrupt):
        tensorrt.build(path, tmp_path / "model.plan", TENSORS, AMPERE, interrupt)
    assert not (tmp_path / "model.plan").exists()


def test_a_gpu_that_the_release_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no ComputeCapability SM10"):
        build(tmp_path, graph(), replace(AMPERE, compute_capability="1.0"))


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    class Failing(Noted):
        def Builder(self, log: Any) -> Any:
            builder = super().Builder(log)

            def fail(network: Any, config: Any) -> None:
                log.log(trt.ILogger.Severity.ERROR, "no layer fits")

            builder.build_serialized_network = fail
            return builder

    with pytest.raises(EngineError, match=r"cannot build model\.onnx: no layer fits"):
        build(tmp_path, graph(), noted_target(Failing()))


def test_without_the_package_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DependencyError) as caught:
        tensorrt.installed("10.5.0.18")
    assert '"tensorrt==10.5.0.18.*"' in caught.value.hint
    assert "--plan-in-container" in caught.value.hint


# --- What runs, on a GPU ------------------------------------------------------------------------


def gpu() -> Gpu:
    try:
        return Gpu()
    except DependencyError as exc:
        pytest.skip(exc.message)


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_a_plan_runs_on_every_batch(tmp_path: Path, package: str) -> None:
    here = gpu()
    target = Target(
        trt=pytest.importorskip(package, exc_type=ImportError),
        compute_capability=here.compute_capability,
    )
    weights = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    try:
        engine = build(tmp_path, graph(weights=weights), target)
    except EngineError as exc:
        if "has no ComputeCapability" not in exc.message:
            raise
        pytest.skip(exc.message)
    run = tensorrt.Runner(engine.path, TENSORS, target, here)
    for batch in (1, 2, 5):
        clips = np.random.default_rng(batch).integers(0, 256, CLIPS.shape(batch), np.uint8)
        expected = (clips.astype(np.float32) @ weights).mean(axis=(1, 2))
        np.testing.assert_allclose(run(clips), expected, rtol=1e-3, atol=1e-2)


def test_a_plan_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"no plan")
    unused: Any = None
    with pytest.raises(EngineError, match=r"cannot load model\.plan"):
        tensorrt.Runner(plan, TENSORS, AMPERE, unused)
