"""The passes over a traced graph: fewer nodes, fewer bytes, the same numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from action_export.optimise import optimise
from numpy.typing import NDArray


def graph(text: str, **weights: NDArray[np.generic]) -> ir.Model:
    """From ONNX's textual form, with shapes inferred as torch's exporter leaves them."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return ir.from_proto(proto)


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, **inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    results: list[NDArray[np.generic]] = session.run(None, inputs)
    return results


def assert_unchanged(model: ir.Model, **inputs: NDArray[np.generic]) -> None:
    """Optimises the model, which must compute what it did."""
    before = run(model, **inputs)
    optimise(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for was, now in zip(before, run(model, **inputs), strict=True):
        np.testing.assert_array_equal(was, now)


COMPUTED_SHAPE = """
g (float[batch, 6, 4] x) => (float[OUT] y) <float[OUT] r> {
    s = Shape(x)
    zero = Constant<value_ints = [0]>()
    batch = Gather(s, zero)
    factor = Constant<value_ints = [FACTOR]>()
    rows = Mul(batch, factor)
    rest = Constant<value_ints = [REST]>()
    shape = Concat<axis = 0>(rows, rest)
    r = Reshape(x, shape)
    y = Relu(r)
}"""


def computed(out: str, factor: int, rest: str) -> ir.Model:
    text = COMPUTED_SHAPE.replace("OUT", out).replace("FACTOR", str(factor))
    return graph(text.replace("REST", rest))


def x(batch: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((batch, 6, 4), np.float32)


def test_a_shape_of_one_free_axis_is_a_constant() -> None:
    for out, factor, rest in (("batch, 24", 1, "24"), ("rows, 2, 4", 3, "2, 4")):
        model = computed(out, factor, rest)
        assert_unchanged(model, x=x())
        assert kinds(model) == {"Reshape": 1, "Relu": 1}
        for batch in (1, 2, 5):
            assert len(run(model, x=x(batch))[0]) == batch * factor


def test_a_shape_of_two_free_axes_stays_computed() -> None:
    model = graph(
        """g (float[a, b, 4] x) => (float[b, a, 4] y) {
            s = Shape(x)
            order = Constant<value_ints = [1, 0, 2]>()
            shape = Gather(s, order)
            y = Reshape(x, shape)
        }"""
    )
    assert_unchanged(model, x=x())
    assert kinds(model)["Shape"] == 1


def test_padding_by_nothing_is_left_out() -> None:
    model = graph(
        """g (float[batch, 6, 4] x) => (float[batch, 6, n] y) {
            a = Pad(x, nothing)
            b = Pad(a, some)
            y = Relu(b)
        }""",
        nothing=np.zeros(6, np.int64),
        some=np.array([0, 0, 1, 0, 0, 0], np.int64),
    )
    assert_unchanged(model, x=x())
    assert kinds(model) == {"Pad": 1, "Relu": 1}


def test_what_is_computed_twice_is_computed_once() -> None:
    model = graph(
        """g (float[batch, 6, 4] x) => (float[batch, 6, 4] y) {
            a = Exp(x)
            b = Exp(x)
            unused = Sqrt(x)
            y = Mul(a, b)
        }"""
    )
    assert_unchanged(model, x=x())
    assert kinds(model) == {"Exp": 1, "Mul": 1}


def test_equal_constants_are_kept_once() -> None:
    weights = np.random.default_rng(1).standard_normal((6, 4), np.float32)
    model = graph(
        """g (float[batch, 6, 4] x) => (float[batch, 6, 4] y) {
            p = Mul(x, a)
            q = Add(p, b)
            y = Sub(q, c)
        }""",
        a=weights,
        b=weights.copy(),
        c=weights + 1,
    )
    # a view of weights that are stored the other way round, as torch leaves those of a Linear
    transposed = model.graph.initializers["b"]
    transposed.const_value = ir.tensor(np.ascontiguousarray(weights.T).T, name="b")
    assert_unchanged(model, x=x())
    assert len(model.graph.initializers) == 2


def test_constants_of_equal_bytes_and_another_type_or_shape_stay() -> None:
    model = graph(
        """g (float[batch, 6, 4] x) => (float[batch, 6, 4] y, int32[batch, 6, 4] i) {
            p = Mul(x, a)
            y = Add(p, b)
            m = Cast<to = 6>(x)
            i = Add(m, n)
        }""",
        a=np.zeros((1, 2, 1), np.float32)[:, :1],
        b=np.zeros((1, 1), np.float32),
        n=np.zeros((1, 1, 1), np.int32),
    )
    assert_unchanged(model, x=x())
    assert sorted(model.graph.initializers) == ["a", "b", "n"]


def test_what_is_known_is_folded_and_what_it_leaves_is_fused() -> None:
    model = graph(
        """g (float[batch, 6, 4] x) => (float[batch, 6, 1] y) {
            first = Constant<value_ints = [0]>()
            axis = Constant<value_ints = [2]>()
            step = Constant<value_ints = [1]>()
            half = Constant<value_floats = [0.5]>()
            scale = Add(half, half)
            whole = Slice(x, first, LAST, axis, step)
            scaled = Mul(whole, scale)
            there = Transpose<perm = [0, 2, 1]>(scaled)
            back = Transpose<perm = [0, 2, 1]>(there)
            y = ReduceMean<keepdims = 1>(back, axis)
        }""",
        LAST=np.array([2**63 - 1]),
    )
    assert_unchanged(model, x=x())
    assert kinds(model) == {"Mul": 1, "ReduceMean": 1}
