"""Tidies a traced graph: what is known before it runs is not computed, and nothing is kept twice.

Constants are folded and nodes fused by onnxscript's passes, as torch has them run by default, with
rules that are chosen: its own set spends most of the time on one, "two slices into a split", that
compares every two nodes of a graph and holds for none of the zoo's. What they leave comes of the
free batch, which they take for unknown wherever it appears.
"""

from __future__ import annotations

import hashlib
from typing import Any

# What a fused or removed node leaves behind may be constant itself.
_ROUNDS = 2


def optimise(model: Any) -> None:
    """Changes an onnx_ir.Model in place; what it computes stays the same."""
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    rules = _rules()
    for _ in range(_ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, rules)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(model.graph):
        match node.op_type:
            case "Reshape":
                _fix_shape(model.graph, node)
            case "Pad":
                _skip_empty_pad(node)
    _share_constants(model.graph)  # first: equal nodes are told by equal inputs
    for tidy in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        tidy(model)


def _rules() -> list[Any]:
    """Those that apply to a network in inference, in the order in which they are tried."""
    from onnxscript.rewriter.rules import common

    return [
        common.cast_cast_rule,
        common.no_op_cast_rule,
        common.no_op_expand_rule,
        common.no_op_transpose_rule,
        common.collapse_slice_rule,
        common.collapse_slice2_rule,
        common.reshape_reshape_rule,
        common.transpose_transpose_rule,
        common.unsqueeze_unsqueeze_rule,
        common.squeeze_reshape_1d_rule,
        common.normalize_pad_format_conv_rule,
        common.fuse_pad_into_conv_rule,
        common.fuse_batchnorm_into_conv_rule,
        common.fuse_batchnorm_into_gemm_rule,
        common.remove_optional_bias_from_conv_rule,
        common.remove_optional_bias_from_gemm_rule,
    ]


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
