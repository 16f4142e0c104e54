"""The file on disk: what protobuf would have written, without its copies of the weights."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from action_export import onnx_file
from numpy.typing import NDArray


def model_of(weights: dict[str, NDArray[np.generic]]) -> ir.Model:
    """A graph that returns its input, and holds these weights."""
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["batch"]) for name in "xy")
    graph = onnx.helper.make_graph(nodes, "graph", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    for name, values in weights.items():
        model.graph.register_initializer(
            ir.Value(name=name, const_value=ir.tensor(values, name="another name"))
        )
    return model


def written(path: Path) -> dict[str, NDArray[np.generic]]:
    model = onnx.load(path)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


WEIGHTS: dict[str, NDArray[np.generic]] = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.arange(6, dtype=np.float16),
    "int64": np.array([-1, 2**40], np.int64),
    "uint8": np.arange(256, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "scalar": np.array(1.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "strided": np.arange(20, dtype=np.float32)[::2],
    "größe": np.ones(1, np.float32),
}


def test_every_kind_of_weight_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert onnx_file.save(model_of(WEIGHTS), path) == ("model.onnx",)
    onnx.checker.check_model(path, full_check=True)
    found = written(path)
    assert list(found) == list(WEIGHTS)
    for name, values in WEIGHTS.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


# Around each length of a varint: of the weight, of its tensor, of the graph.
@pytest.mark.parametrize("size", [*range(60, 130), *range(16300, 16390, 7), 2**21 - 40, 2**21])
def test_every_length_is_encoded_as_protobuf_does(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.onnx"
    onnx_file.save(model_of({"w": np.zeros(size, np.uint8)}), path)
    content = path.read_bytes()
    model = onnx.ModelProto.FromString(content)
    assert len(model.graph.initializer[0].raw_data) == size
    assert model.ByteSize() == len(content)
    assert model.SerializeToString() == onnx.ModelProto.FromString(content).SerializeToString()
    assert model.opset_import[0].version == 18
    assert [node.op_type for node in model.graph.node] == ["Identity"]


def test_no_more_than_one_weight_is_copied(tmp_path: Path) -> None:
    size, count = 2**22, 16
    weights = {f"w{n}": np.full((1024, 1024), n, np.float32).T for n in range(count)}
    model = model_of(dict(weights))
    tracemalloc.start()
    try:
        onnx_file.save(model, tmp_path / "model.onnx")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "model.onnx").stat().st_size > count * size
    assert peak < 3 * size


def test_weights_beyond_the_limit_stand_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: dict[str, NDArray[np.generic]] = {"w": np.arange(1000, dtype=np.float32)}
    monkeypatch.setattr(onnx_file, "_LARGEST_WEIGHTS", 4000)
    assert onnx_file.save(model_of(weights), tmp_path / "in.onnx") == ("in.onnx",)
    monkeypatch.setattr(onnx_file, "_LARGEST_WEIGHTS", 3999)
    files = onnx_file.save(model_of(weights), tmp_path / "out.onnx")
    assert files == ("out.onnx", "out.onnx.data")
    assert (tmp_path / "out.onnx").stat().st_size < 1000
    assert (tmp_path / "out.onnx.data").stat().st_size >= 4000
    np.testing.assert_array_equal(written(tmp_path / "out.onnx")["w"], weights["w"])
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    np.testing.assert_array_equal(session.run(None, {"x": np.ones(3, np.float32)})[0], np.ones(3))
