"""Writes a graph in int8, with scales that are measured on real clips, and holds them to those."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from action_export.dependencies import import_onnxruntime
from action_export.errors import ParityError, VideoError
from action_export.onnx_file import module_of
from action_export.watch import Clips, last_first, watch

QUANTISED = ("Conv", "MatMul", "Gemm")

# Of a signed byte with a symmetric scale.
_LARGEST = 127
# Between two runs of the same graph.
_ROUNDING = 1e-3

_HINT = "nothing was published; please report the config with this"


def int8(graph: Path, path: Path, clips: Iterable[Clips], count: int) -> None:
    """Writes `graph` with QuantizeLinear and DequantizeLinear around its convolutions and products.

    Scales are symmetric, because TensorRT has no zero points: one for each output channel of a
    weight, one for each activation, from the range that it takes over `clips`. The first and the
    last layer of each path stay in float32, and so do biases.

    Raises:
        ParityError: the scales are not those of all of the clips, `count` in number.
    """
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(str(graph), load_external_data=False)
    reader = _Reader(model.graph.input[0].name, clips)
    quantize_static(
        str(graph),
        str(path),
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTISED),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_outermost(model.graph),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # TensorRT reads no int32 in DequantizeLinear
            "QuantizeBias": False,
        },
    )
    if reader.count != count:
        raise ParityError(
            f"the scales of int8 were measured on {reader.count} of {count} videos", hint=_HINT
        )
    _require_covered(graph, path, reader.ends)


def _outermost(graph: Any) -> list[str]:
    """The layers before which there is none, and those after which there is none.

    A network of several paths, such as SlowFast, has several first ones.
    """
    after_a_layer, first = set[str](), []
    for node in graph.node:
        if not after_a_layer.isdisjoint(node.input):
            after_a_layer.update(node.output)
        elif node.op_type in QUANTISED:
            first.append(node.name)
            after_a_layer.update(node.output)
    before_a_layer, last = set[str](), []
    for node in reversed(graph.node):
        if not before_a_layer.isdisjoint(node.output):
            before_a_layer.update(node.input)
        elif node.op_type in QUANTISED:
            last.append(node.name)
            before_a_layer.update(node.input)
    return [*first, *last]


class _Reader:
    """ONNX Runtime's CalibrationDataReader: one feed a call, then None.

    count: how many were taken. ends: the first and the last of them.
    """

    def __init__(self, name: str, clips: Iterable[Clips]) -> None:
        self._name, self._clips = name, iter(clips)
        self.count, self.ends = 0, list[Clips]()

    def get_next(self) -> dict[str, Clips] | None:
        rows = next(self._clips, None)
        if rows is None:
            return None
        self.count += 1
        if rows.min() == rows.max():
            raise VideoError(
                f"number {self.count} of the calibration videos is {rows.max()} in every pixel, "
                "and measures nothing",
                hint="leave it out of --calibration",
            )
        self.ends = [*self.ends[:1], rows]
        return {self._name: rows}


def _require_covered(graph: Path, path: Path, clips: list[Clips]) -> None:
    """Raises ParityError where a scale ends below a value that it was measured on.

    Looks at the first and the last video: at all it would take as long as measuring.
    """
    import onnx
    from onnx import helper, numpy_helper

    exact = onnx.load(str(graph))
    written = onnx.load(str(path)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.initializer}
    made = {output: node for node in exact.graph.node for output in node.output}
    scales = {
        node.input[0]: float(values[node.input[1]])
        for node in written.node
        if node.op_type == "QuantizeLinear" and node.input[0] in made
    }
    names = last_first(exact, scales.keys() - _before_relu(exact.graph))
    extra = []
    for name in names:
        extra.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
        extra.append(helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/max"], keepdims=0))
    run = watch(exact, [f"{name}/max" for name in names], extra)
    reached = np.max([run(rows) for rows in clips], axis=0)
    for name, value in zip(names, reached, strict=True):
        ends = _LARGEST * scales[name]
        if not (0 < ends < np.inf and value <= ends * (1 + _ROUNDING)):
            raise ParityError(
                f"the scales of int8 are not those of the calibration videos: "
                f"{module_of(made[name]) or name} reaches {value:.3g} on one of them, and its "
                f"scale ends at {ends:.3g}",
                hint=_HINT,
            )


def _before_relu(graph: Any) -> set[str]:
    """Tensors of which only what Relu lets through is measured, as the quantiser has it."""
    users: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    return {name for name, kinds in users.items() if kinds in (["Relu"], ["Clip"])}
