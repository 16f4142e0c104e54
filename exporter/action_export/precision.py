"""Graphs of reduced precision: half floats, and int8 with scales measured on real clips.

Both are ONNX graphs that say themselves what is computed in which precision, so ONNX Runtime and
TensorRT's strongly typed networks agree. ONNX Runtime's own converters write them: NVIDIA's
ModelOpt (0.47) needs older releases of onnx and onnxruntime than the exporter does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np

from action_export.dependencies import import_onnxruntime
from action_export.errors import (
    ActionExportError,
    ParityError,
    TracingError,
    UnsupportedError,
    first_line,
)
from action_export.int8 import QUANTISED, int8
from action_export.onnx_file import module_of
from action_export.tracing import Graph, quiet
from action_export.types import Check, Precision, Reduced
from action_export.watch import Clips, float_outputs, last_first, watch

# The operators that stay in float32: sums over many values, and what is exponential in them.
_FLOAT32 = (
    "AveragePool",
    "GlobalAveragePool",
    "InstanceNormalization",
    "LayerNormalization",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
)
# Half floats end at 65504. What comes within a factor of four of it on the clips that are looked at
# may pass it on others.
_LARGEST = 65504 / 4

# What comes out of these went into them, so it is rounded already.
_MOVING = (
    "Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Max", "MaxPool", "Min", "Pad",
    "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip

# A difference of the scores may be this many times the largest relative error of one rounding:
# half a unit in the last place, which is 2^-11 for a half float (IEEE 754 binary16, 11 significant
# bits), 2^-8 for bfloat16 (8 significant bits), 2^-8 for a signed byte with a symmetric scale.
_ROUNDINGS = 40
BOUNDS: Mapping[Precision, float] = MappingProxyType(
    {"bf16": _ROUNDINGS * 2**-8, "fp16": _ROUNDINGS * 2**-11, "int8": _ROUNDINGS * 2**-8}
)
"""Bounds of the proof for scores, as a share of the reference's spread over the classes."""


def check_calibration(precision: Precision, videos: Sequence[Path]) -> None:
    """Raises UnsupportedError for int8 without videos, and for videos without int8."""
    if precision == "int8" and not videos:
        raise UnsupportedError(
            "--precision int8 needs videos to measure its scales on",
            hint="--calibration VIDEO VIDEO ...: fifty or more, of every kind that will be served",
        )
    if precision != "int8" and videos:
        raise UnsupportedError(
            f"--calibration is for --precision int8, not {precision}", hint="leave one of them out"
        )


def precision_notes(precision: Precision) -> tuple[str, ...]:
    """What the proof of a precision cannot tell."""
    if precision != "int8":
        return ()
    return (
        "int8 is proved on the proof's videos and with the ONNX Runtime of this machine: another "
        "release rounds otherwise, and kinds of video that no scale was measured on lose more than "
        "others, which docs/tensorrt.md puts into figures",
    )


def reduced(
    exact: Graph, path: Path, precision: Reduced, clips: Iterable[Clips], count: int
) -> tuple[Graph, int]:
    """Writes the float32 graph `exact` in another precision to `path`.

    clips: of int8, those that its scales are measured on; of fp16, those whose values must fit.
    count: how many they are. Returns with the graph how many of its layers had to stay in float32
    for their values.

    Raises:
        UnsupportedError: the graph is too large for the converters.
        TracingError: a converter fails on it.
        ParityError: the scales of int8 are not those of all the clips.
    """
    import onnx

    if len(exact.files) > 1:
        raise UnsupportedError(
            f"a graph beyond 2 GiB cannot be reduced to {precision}",
            hint="--precision fp32",
        )
    kept: tuple[str, ...] = ()
    try:
        with quiet():  # ONNX Runtime's converters advise what torch's exporter has done
            if precision == "int8":
                int8(exact.path, path, clips, count)
            else:
                kept = half(exact.path, path, clips)
    except ActionExportError:  # a video that cannot be read
        raise
    # The converters' exceptions share no base class.
    except Exception as exc:
        raise TracingError(
            f"ONNX Runtime cannot write this graph in {precision}: {first_line(exc)}",
            hint="--precision fp32, and please report the config",
        ) from exc
    nodes = len(onnx.load(str(path), load_external_data=False).graph.node)
    return Graph(path=path, opset=exact.opset, nodes=nodes, files=(path.name,)), len(kept)


def require(
    kind: Reduced, checks: Sequence[Check], exact: Graph, graph: Graph, clips: Clips
) -> None:
    """Raises ParityError where the precision costs too much, with the layers that lose most.

    clips: on which the layers of `graph` are compared with those of the float32 graph `exact`.
    """
    if all(check.passed for check in checks):
        return
    error = float(np.max([check.error for check in checks]))
    with TemporaryDirectory() as folder:
        rounding = rounding_twin(graph, Path(folder) / "model.onnx") if kind == "fp16" else graph
        worst = worst_layers(exact.path, rounding.path, clips)
    layers = ", ".join(f"{name} ({share:.1%})" for name, share in worst)
    lower = "--precision fp16 or fp32" if kind == "int8" else "--precision fp32"
    raise ParityError(
        f"{kind} changes the scores by {error:.3g} of their spread, more than its bound "
        f"{checks[0].bound:g}; the layers that lose most of their values: {layers}",
        hint=f"nothing was published; {lower}",
    )


def half(graph: Path, path: Path, clips: Iterable[Clips]) -> tuple[str, ...]:
    """Writes `graph` in half precision; input and output keep their types.

    In float32 stay the normalisation of pixels, statistics, softmax, the average over views, and
    each node that gives or takes values near the largest half float on one of `clips`. Returns the
    names of those last ones.
    """
    import onnx
    import onnx_ir
    from onnx_ir.passes import common

    import_onnxruntime()
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(str(graph))
    large = _large(model, clips)
    written = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT32],
        node_block_list=[*_normalising(model.graph), *large],
    )
    tidied = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(written))
    _without_detours(tidied.graph)
    for tidy in (common.TopologicalSortPass(), common.RemoveUnusedNodesPass()):
        tidy(tidied)
    onnx_ir.save(tidied, path)
    return large


def rounding_twin(graph: Graph, path: Path) -> Graph:
    """Writes a half-precision graph as one of float32 that rounds where half floats do.

    ONNX Runtime computes half floats on a CPU in float32, and drops the casts between two such
    nodes (InsertCastTransformer): weights are rounded then, activations are not. Casts that stand
    in the graph stay, so here they do after every node that computes. Sums within a node are in
    float32, as tensor cores have them.
    """
    import onnx
    import onnx_ir
    from onnx_ir import DataType

    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(str(graph.path))))
    for name, value in model.graph.initializers.items():
        if value.dtype == DataType.FLOAT16 and value.const_value is not None:
            exact = value.const_value.numpy().astype(np.float32)
            value.const_value = onnx_ir.tensor(exact, name=name)
            value.dtype = DataType.FLOAT
    for node in list(model.graph):
        for output in node.outputs:
            if output.dtype == DataType.FLOAT16:
                _round(model.graph, node, output)
    onnx_ir.save(model, path)
    return Graph(path=path, opset=graph.opset, nodes=len(model.graph), files=(path.name,))


def _round(graph: Any, node: Any, output: Any) -> None:
    """Gives the users of what was a half float the float32 of its rounded value, by its name."""
    from onnx_ir import DataType
    from onnx_ir import node as node_of

    name, users, added = output.name, list(output.uses()), []
    if not _casts_to(node, DataType.FLOAT16):
        output.dtype = DataType.FLOAT
        if node.op_type in _MOVING:
            return
        added.append(node_of("Cast", [output], {"to": DataType.FLOAT16.value}))
    half = added[0].outputs[0] if added else output
    added.append(node_of("Cast", [half], {"to": DataType.FLOAT.value}))
    rounded = added[-1].outputs[0]
    output.name, rounded.name = f"{name}/exact", name
    for user, index in users:
        user.replace_input_with(index, rounded)
    graph.insert_after(node, added)


def _without_detours(graph: Any) -> None:
    """Joins neighbours in float32, between which the converter rounds each value to a half."""
    from onnx_ir import DataType

    for node in list(graph):
        before = node.inputs[0].producer() if _casts_to(node, DataType.FLOAT) else None
        if before is None or not _casts_to(before, DataType.FLOAT16):
            continue
        value, detour = before.inputs[0], node.outputs[0]
        if value.dtype != DataType.FLOAT:
            node.replace_input_with(0, value)
            continue
        if detour.is_graph_output():
            name, detour.name = detour.name, None
            value.name = name
        detour.replace_all_uses_with(value, replace_graph_outputs=True)


def _casts_to(node: Any, kind: Any) -> bool:
    return bool(node.op_type == "Cast" and node.attributes["to"].as_int() == kind)


def _normalising(graph: Any) -> list[str]:
    """The nodes between `clips` and the first convolution or product of matrices."""
    reached = {graph.input[0].name}
    names = []
    for node in graph.node:
        if reached & set(node.input):
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                break
            reached |= set(node.output)
            names.append(node.name)
    return names


def _large(model: Any, clips: Iterable[Clips]) -> tuple[str, ...]:
    """Names of the nodes that give or take values beyond _LARGEST for one of the clips."""
    from onnx import helper

    floats = last_first(model, float_outputs(model))
    extra = []
    for name in floats:
        # the largest magnitude alone leaves the graph, so that no activation is kept
        extra.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
        extra.append(helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/max"], keepdims=0))
    run = watch(model, [f"{name}/max" for name in floats], extra)
    largest = np.max([run(rows) for rows in clips], axis=0)
    large = {name for name, value in zip(floats, largest, strict=True) if value > _LARGEST}
    return tuple(node.name for node in model.graph.node if large & {*node.input, *node.output})


def worst_layers(
    exact: Path, reduced: Path, clips: Clips, count: int = 5
) -> tuple[tuple[str, float], ...]:
    """The layers whose own error is largest, with it, the worst first.

    A layer is named by its module in the network. Its error is the root mean square of the
    difference from the float32 graph over that of its values there; of it, only what it has more
    than the worst of its inputs is its own.
    """
    import onnx

    model = onnx.load(str(exact))
    layers = [node for node in model.graph.node if node.op_type in QUANTISED]
    watched = {name for node in layers for name in (*node.input, node.output[0])}
    errors = _errors(model, onnx.load(str(reduced)), watched & float_outputs(model), clips)
    own: dict[str, float] = {}
    for node in layers:
        before = max((errors.get(name, 0.0) for name in node.input), default=0.0)
        lost = 0.0 if np.isinf(before) else errors.get(node.output[0], 0.0) - before
        name = module_of(node) or node.name
        own[name] = max(own.get(name, 0.0), lost)
    ranked = sorted(own.items(), key=lambda entry: -entry[1])
    return tuple(ranked[:count])


def _errors(exact: Any, reduced: Any, names: set[str], clips: Clips) -> dict[str, float]:
    """The relative error of each of these tensors that both models have.

    Both run in one session that gives sums of squares, so that no activation is kept.
    """
    from onnx import ModelProto, TensorProto, compose, helper

    both_have = names & {name for node in reduced.graph.node for name in node.output}
    kept = last_first(exact, both_have)
    beside = compose.add_prefix(reduced, "reduced/", rename_inputs=False)
    both = ModelProto()
    both.CopyFrom(exact)
    both.graph.node.extend(beside.graph.node)
    both.graph.initializer.extend(beside.graph.initializer)
    known = {opset.domain for opset in both.opset_import}
    both.opset_import.extend(opset for opset in beside.opset_import if opset.domain not in known)
    extra = []
    for name in kept:
        ours, off, lost, whole = (f"{name}/{part}" for part in ("ours", "off", "lost", "whole"))
        extra += [
            helper.make_node("Cast", [f"reduced/{name}"], [ours], to=TensorProto.FLOAT),
            helper.make_node("Sub", [ours, name], [off]),
            helper.make_node("ReduceSumSquare", [off], [lost], keepdims=0),
            helper.make_node("ReduceSumSquare", [name], [whole], keepdims=0),
        ]
    sums = [f"{name}/{part}" for part in ("lost", "whole") for name in kept]
    squares = np.array(watch(both, sums, extra)(clips), np.float64).reshape(2, -1)
    errors = np.sqrt(squares[0] / (squares[1] + 1e-30))
    # what overflows is infinitely wrong
    return dict(zip(kept, np.nan_to_num(errors, nan=np.inf, posinf=np.inf), strict=True))
