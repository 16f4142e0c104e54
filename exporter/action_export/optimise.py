"""Tidies a traced graph: what is known before it runs is not computed, and nothing is kept twice.

torch has folded the constants and fused what it can before this (onnxscript's optimiser). What is
left comes of the free batch, which that optimiser takes for unknown wherever it appears.
"""

from __future__ import annotations

import hashlib
from typing import Any


def optimise(model: Any) -> None:
    """Changes an onnx_ir.Model in place; what it computes stays the same."""
    from onnx_ir.passes import common

    for node in list(model.graph):
        match node.op_type:
            case "Reshape":
                _fix_shape(model.graph, node)
            case "Pad":
                _skip_empty_pad(node)
    for tidy in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        tidy(model)
    _share_constants(model.graph)


def _fix_shape(graph: Any, node: Any) -> None:
    """Gives a Reshape a constant: of one axis that holds the batch, ONNX infers the length."""
    import numpy as np
    import onnx_ir as ir

    shape = node.inputs[1]
    axes = node.outputs[0].shape
    if shape.const_value is not None or axes is None:
        return
    lengths = [axis if isinstance(axis, int) else -1 for axis in axes]
    if lengths.count(-1) > 1 or 0 in lengths:
        return
    name = "shape_" + "x".join("n" if length == -1 else str(length) for length in lengths)
    if name not in graph.initializers:
        constant = ir.tensor(np.array(lengths, np.int64), name=name)
        graph.register_initializer(ir.Value(name=name, const_value=constant))
    node.replace_input_with(1, graph.initializers[name])


def _skip_empty_pad(node: Any) -> None:
    """mmaction2 pads to whole windows even where nothing is missing."""
    pads = node.inputs[1].const_value
    if pads is not None and not pads.numpy().any():
        node.outputs[0].replace_all_uses_with(node.inputs[0])


def _share_constants(graph: Any) -> None:
    """Keeps one of equal constants. onnx_ir's own pass fails on transposed views of weights."""
    kept: dict[tuple[Any, ...], Any] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        # of the bytes a hash is kept, because a copy would double the weights in memory
        content = hashlib.sha256(tensor.tobytes()).digest()
        first = kept.setdefault((tensor.dtype, tuple(tensor.shape), content), value)
        if first is not value:
            value.replace_all_uses_with(first)
            del graph.initializers[name]
