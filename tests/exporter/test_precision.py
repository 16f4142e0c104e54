"""Graphs of reduced precision: what is reduced in them, what is not, and what is refused."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from action_export import precision
from action_export.errors import ParityError, UnsupportedError
from action_export.onnx_file import SCOPES
from action_export.tracing import Graph
from action_export.types import Check
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from support.deep import LAYER_BYTES, LAYERS, growth_of_half

pytestmark = pytest.mark.cpu

CHANNELS = (3, 8, 8, 8)
RNG = np.random.default_rng(0)
# one row of one view of one frame; what is around a clip's pixels is no concern here
CLIPS = [RNG.integers(0, 256, (1, 3, 8, 8), np.uint8) for _ in range(4)]


def network(*, gain: float = 1.0) -> onnx.ModelProto:
    """Three convolutions and a classifier, from normalised pixels to averaged softmax.

    gain: of the second convolution, whose output the third one divides by it again.
    """
    weights = {
        f"w{number}": RNG.standard_normal((after, before, 3, 3)).astype(np.float32) / before
        for number, (before, after) in enumerate(pairwise(CHANNELS))
    }
    weights["w1"] *= gain
    weights["w2"] /= gain
    biases = {f"b{n}": RNG.standard_normal(8).astype(np.float32) * 0.1 for n in range(3)}
    biases["b1"] *= gain
    others = {
        "mean": np.full((1, 3, 1, 1), 120, np.float32),
        "std": np.full((1, 3, 1, 1), 60, np.float32),
        "classes": RNG.standard_normal((8, 5)).astype(np.float32),
        "pixels": np.array([2, 3]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["clips"], ["floats"], name="cast", to=TensorProto.FLOAT),
        node("Sub", ["floats", "mean"], ["centred"], name="centre"),
        node("Div", ["centred", "std"], ["x0"], name="scale"),
        *(
            made
            for n in range(3)
            for made in (
                node("Conv", [f"x{n}", f"w{n}", f"b{n}"], [f"y{n}"], name=f"conv{n}"),
                node("Relu", [f"y{n}"], [f"x{n + 1}"], name=f"relu{n}"),
            )
        ),
        node("ReduceMean", ["x3", "pixels"], ["pooled"], name="pool", keepdims=0),
        node("MatMul", ["pooled", "classes"], ["logits"], name="classify"),
        node("Softmax", ["logits"], ["scores"], name="softmax"),
    ]
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("clips", TensorProto.UINT8, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5])],
        [
            numpy_helper.from_array(values, name)
            for name, values in {**weights, **biases, **others}.items()
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def saved(folder: Path, model: onnx.ModelProto, name: str = "exact.onnx") -> Path:
    onnx.save(model, str(folder / name))
    return folder / name


def run(path: Path, clips: NDArray[np.uint8]) -> Any:
    return onnxruntime.InferenceSession(path).run(None, {"clips": clips})[0]


def graph_at(path: Path) -> Graph:
    return Graph(path=path, opset=18, nodes=1, files=(path.name,))


def run_rounded(path: Path, clips: NDArray[np.uint8]) -> Any:
    """As a GPU would: ONNX Runtime computes half floats on a CPU in float32."""
    twin = precision.rounding_twin(graph_at(path), path.with_name("twin.onnx"))
    return run(twin.path, clips)


def kinds(path: Path) -> dict[str, int]:
    """The element type of the first output of each node, by its name."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)
    }
    return {node.name: types[node.output[0]] for node in graph.node}


# --- Half precision -----------------------------------------------------------------------------


def test_layers_compute_in_half_and_the_rest_does_not(tmp_path: Path) -> None:
    exact, path = saved(tmp_path, network()), tmp_path / "half.onnx"
    assert precision.half(exact, path, CLIPS) == ()
    found = kinds(path)
    for name in ("conv0", "relu0", "conv1", "conv2", "classify"):
        assert found[name] == TensorProto.FLOAT16, name
    for name in ("cast", "centre", "scale", "pool", "softmax"):
        assert found[name] == TensorProto.FLOAT, name
    weights = {value.name: value.data_type for value in onnx.load(str(path)).graph.initializer}
    assert {weights[name] for name in ("w0", "w1", "w2", "classes")} == {TensorProto.FLOAT16}
    for clips in CLIPS:
        np.testing.assert_allclose(run_rounded(path, clips), run(exact, clips), atol=2e-3)


def test_no_value_between_two_single_layers_is_rounded(tmp_path: Path) -> None:
    exact, path = saved(tmp_path, network()), tmp_path / "half.onnx"
    precision.half(exact, path, CLIPS)
    # into the convolutions, out of them, into the classifier and out of it, and the pixels
    assert sum(node.op_type == "Cast" for node in onnx.load(str(path)).graph.node) == 5


def test_what_comes_near_the_largest_half_float_stays_in_single(tmp_path: Path) -> None:
    exact, path = saved(tmp_path, network(gain=1e5)), tmp_path / "half.onnx"
    kept = precision.half(exact, path, CLIPS)
    assert kept == ("conv1", "relu1", "conv2")
    for clips in CLIPS:
        np.testing.assert_allclose(run_rounded(path, clips), run(exact, clips), atol=2e-3)


def test_rounding_is_seen_where_a_graph_that_overflows_is_run(tmp_path: Path) -> None:
    exact, path = saved(tmp_path, network(gain=3e4)), tmp_path / "half.onnx"
    # pixels of no value tell the converter nothing of what the others will do
    black = np.full((1, 3, 8, 8), 120, np.uint8)
    assert precision.half(exact, path, [black]) == ()
    assert np.isfinite(run(path, CLIPS[0])).all()
    assert not np.isfinite(run_rounded(path, CLIPS[0])).all()


def test_each_result_is_rounded_to_a_half_once(tmp_path: Path) -> None:
    exact, path = saved(tmp_path, network()), tmp_path / "half.onnx"
    precision.half(exact, path, CLIPS)
    twin = precision.rounding_twin(graph_at(path), tmp_path / "twin.onnx")
    model = onnx.load(str(twin.path))
    onnx.checker.check_model(model, full_check=True)
    logits = next(node.output[0] for node in model.graph.node if node.name == "classify")
    rounded = {
        node.output[0]
        for node in model.graph.node
        if node.input[0] == logits and node.attribute[0].i == TensorProto.FLOAT16
    }
    assert len(rounded) == 1
    assert {value.data_type for value in model.graph.initializer} <= {
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    weights = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    np.testing.assert_array_equal(weights["w1"], weights["w1"].astype(np.float16))


def test_a_cast_of_other_types_into_a_single_layer_is_kept(tmp_path: Path) -> None:
    """How many of the logits are positive is counted, beside the scores."""
    model = network()
    node = helper.make_node
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "classes_axis"))
    model.graph.node.extend(
        [
            node("Greater", ["logits", "zero"], ["positive"], name="positive"),
            node("Cast", ["positive"], ["ones"], name="ones", to=TensorProto.FLOAT),
            node("ReduceMean", ["ones", "classes_axis"], ["share"], name="share", keepdims=1),
            node("Add", ["softened", "share"], ["scores"], name="add"),
        ]
    )
    (softmax,) = (n for n in model.graph.node if n.op_type == "Softmax")
    softmax.output[0] = "softened"
    exact, path = saved(tmp_path, model), tmp_path / "half.onnx"
    precision.half(exact, path, CLIPS)
    for clips in CLIPS:
        np.testing.assert_allclose(run_rounded(path, clips), run(exact, clips), atol=2e-3)


def test_values_on_any_of_the_clips_count(tmp_path: Path) -> None:
    dark = np.full((1, 3, 8, 8), 120, np.uint8)
    exact = saved(tmp_path, network(gain=3e4))
    alone = precision.half(exact, tmp_path / "a.onnx", [dark])
    beside = precision.half(exact, tmp_path / "b.onnx", [dark, *CLIPS])
    assert "conv1" in beside
    assert "conv1" not in alone


# --- int8 ---------------------------------------------------------------------------------------


def test_looking_at_every_layer_holds_few_of_them(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        growth = pool.submit(growth_of_half, tmp_path).result()
    assert growth < LAYERS * LAYER_BYTES / 3


@pytest.fixture
def quantised(tmp_path: Path) -> onnx.ModelProto:
    precision.int8(saved(tmp_path, network()), tmp_path / "int8.onnx", CLIPS, len(CLIPS))
    return onnx.load(str(tmp_path / "int8.onnx"))


def inputs_of(model: onnx.ModelProto, name: str) -> list[str]:
    (node,) = (node for node in model.graph.node if node.name == name)
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    return [made_by.get(tensor, "constant") for tensor in node.input]


def test_inner_layers_take_bytes_and_the_outer_ones_do_not(quantised: onnx.ModelProto) -> None:
    for name in ("conv1", "conv2"):
        # the bias stays as it is
        assert inputs_of(quantised, name) == ["DequantizeLinear"] * 2 + ["constant"]
    assert inputs_of(quantised, "conv0") == ["Div", "constant", "constant"]
    assert inputs_of(quantised, "classify") == ["ReduceMean", "constant"]


def test_scales_are_symmetric_and_weights_have_one_a_channel(quantised: onnx.ModelProto) -> None:
    constants = {value.name: numpy_helper.to_array(value) for value in quantised.graph.initializer}
    weights = 0
    for node in quantised.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = (constants[name] for name in node.input[1:3])
        assert not zero.any()
        assert zero.dtype == np.int8
        if node.input[0] in constants:
            weights += 1
            assert scale.shape == (8,)
    assert weights == 2


def test_int8_stays_close_to_single(tmp_path: Path) -> None:
    exact = saved(tmp_path, network())
    precision.int8(exact, tmp_path / "int8.onnx", CLIPS, len(CLIPS))
    for clips in CLIPS:
        expected = run(exact, clips)
        error = np.abs(run(tmp_path / "int8.onnx", clips) - expected).max()
        assert 0 < error < precision.BOUNDS["int8"] * (expected.max() - expected.min())


# --- The layers that hurt most ------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["w0", "w1", "w2"])
def test_the_layer_that_loses_most_comes_first(tmp_path: Path, broken: str) -> None:
    model = network()
    exact = saved(tmp_path, model)
    for constant in model.graph.initializer:
        if constant.name == broken:
            values = numpy_helper.to_array(constant)
            noisy = values + 0.1 * np.abs(values).max()
            constant.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), broken))
    worst = precision.worst_layers(exact, saved(tmp_path, model, "broken.onnx"), CLIPS[0])
    assert worst[0][0] == broken.replace("w", "conv")
    assert worst[0][1] > 0.01
    errors = [error for _, error in worst]
    assert errors == sorted(errors, reverse=True)


def test_of_two_layers_in_a_module_the_worse_one_tells(tmp_path: Path) -> None:
    model = network()
    for node in model.graph.node:
        if node.name in ("conv0", "conv1"):
            node.metadata_props.add(key=SCOPES, value="['', 'block', 'op']")
    exact = saved(tmp_path, model)
    for constant in model.graph.initializer:
        if constant.name == "w0":
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * 2, "w0"))
    worst = precision.worst_layers(exact, saved(tmp_path, model, "broken.onnx"), CLIPS[0])
    assert worst[0][0] == "block"
    assert worst[0][1] > 0.5


def test_a_refusal_names_the_bound_the_layers_and_what_to_ask_for(tmp_path: Path) -> None:
    exact = saved(tmp_path, network())
    precision.int8(exact, tmp_path / "int8.onnx", CLIPS, len(CLIPS))
    graphs = graph_at(exact), graph_at(tmp_path / "int8.onnx")
    checks = [Check(name="int8 graph", error=0.4, bound=0.15, unit="of spread")]
    with pytest.raises(ParityError) as caught:
        precision.require("int8", checks, *graphs, CLIPS[0])
    message = caught.value.message
    assert "int8 changes the scores by 0.4 of their spread, more than its bound 0.15" in message
    assert "conv1 (" in message
    assert "--precision fp16" in caught.value.hint
    precision.require("int8", [replace(checks[0], error=0.1)], *graphs, CLIPS[0])


def test_the_layer_that_overflows_is_named(tmp_path: Path) -> None:
    exact, path = saved(tmp_path, network(gain=3e4)), tmp_path / "half.onnx"
    precision.half(exact, path, [np.full((1, 3, 8, 8), 120, np.uint8)])
    checks = [Check(name="fp16 graph", error=float("nan"), bound=0.02, unit="of spread")]
    with pytest.raises(ParityError, match=r"values: conv1 \(inf%\)"):
        precision.require("fp16", checks, graph_at(exact), graph_at(path), CLIPS[0])


def test_the_first_and_the_last_layer_of_each_path_stay_in_single(tmp_path: Path) -> None:
    """Two stems that are added, as the lateral connections of SlowFast do."""
    model = network()
    node = helper.make_node
    model.graph.initializer.append(
        numpy_helper.from_array(RNG.standard_normal((8, 3, 3, 3)).astype(np.float32), "w9")
    )
    model.graph.node.insert(3, node("Conv", ["x0", "w9"], ["other"], name="other_stem"))
    (second,) = (n for n in model.graph.node if n.name == "conv1")
    second.input[0] = "both"
    model.graph.node.insert(6, node("Add", ["x1", "other"], ["both"], name="lateral"))
    precision.int8(saved(tmp_path, model), tmp_path / "int8.onnx", CLIPS, len(CLIPS))
    written = onnx.load(str(tmp_path / "int8.onnx"))
    for name in ("conv0", "other_stem", "classify"):
        assert "DequantizeLinear" not in inputs_of(written, name), name
    assert "DequantizeLinear" in inputs_of(written, "conv1")


# --- What is asked for --------------------------------------------------------------------------


def test_int8_needs_videos_to_measure_on() -> None:
    with pytest.raises(UnsupportedError, match="needs videos"):
        precision.check_calibration("int8", ())
    precision.check_calibration("int8", (Path("a.mp4"),))


@pytest.mark.parametrize("other", ["fp32", "fp16"])
def test_videos_that_nothing_would_read_are_refused(other: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"not {other}"):
        precision.check_calibration(other, (Path("a.mp4"),))
    precision.check_calibration(other, ())


def test_a_graph_in_two_files_is_not_reduced(tmp_path: Path) -> None:
    files = ("model.onnx", "model.onnx.data")
    exact = Graph(path=tmp_path / "model.onnx", opset=18, nodes=1, files=files)
    with pytest.raises(UnsupportedError, match="2 GiB"):
        precision.reduced(exact, tmp_path / "half.onnx", "fp16", CLIPS, len(CLIPS))
