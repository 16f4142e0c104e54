"""Lets a graph of a few views run over all views of a video, a few at a time.

A network's activations grow with the views that it sees at once, and views do not depend on each
other before they are averaged. So the graph of a few becomes the body of an ONNX Loop, which takes
its views out of `clips` by itself: only those of one step are copied. A Scan would copy all of them
to slice them, or read `clips` from around its body, which OpenVINO 2026.4 refuses of a Scan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from action_export.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_AT_ONCE = 4


def views_at_once(views: int) -> int:
    """As many views as one step takes: the largest divisor of all views that is four at most.

    All of them where they are four or fewer: nothing is looped over then.
    """
    return max(count for count in range(1, _AT_ONCE + 1) if views % count == 0)


def over_views(model: Any, clips: TensorSpec, scores: TensorSpec) -> None:
    """Turns an onnx_ir.Model of a few views into one of all, and averages over them, in place.

    Before, its input is uint8 [batch, views at once, ...] and its output the values of each view,
    [batch, views at once, classes]; afterwards they are `clips` and `scores`. Weights stay outside
    the loop: onnx_file.py writes those of the outer graph one by one, and ONNX Runtime and OpenVINO
    fold and fuse them into the body's nodes just as in a flat graph.
    """
    import onnx_ir as ir

    network = model.graph
    batch = network.inputs[0].shape[0]
    every = ir.Input(clips.name, ir.Shape([batch, *clips.dims]), network.inputs[0].type)
    weights = list(network.initializers.values())
    body, constants = _body(network, every, clips.dims[0])
    loop = ir.node("Loop", [constants[0], None], {"body": body}, name=_name("loop"))
    loop.outputs[0].name = _name("all_values")  # [steps, batch, views at once, classes]
    axes = _constant("axes", [0, 2])
    mean = ir.node("ReduceMean", [loop.outputs[0], axes], {"keepdims": 0}, name=_name("mean"))
    average = mean.outputs[0]
    average.name, average.type = scores.name, ir.TensorType(ir.DataType.FLOAT)
    average.shape = ir.Shape([batch, *scores.dims])
    model.graph = ir.Graph(
        [every],
        [average],
        nodes=[loop, mean],
        initializers=[*constants, axes, *weights],
        opset_imports=network.opset_imports,
        name=network.name,
    )


def _body(network: Any, every: Any, views: int) -> tuple[Any, list[Any]]:
    """The graph of one step, which `network` is emptied into, and the constants that it reads.

    The first constant is the number of steps.
    """
    import numpy as np
    import onnx_ir as ir

    (few,), (values,) = network.inputs, network.outputs
    order = np.arange(views).reshape(-1, few.shape[1])
    constants = [_constant("steps", len(order)), _constant("views", order)]
    step = ir.Input(_name("step"), ir.Shape([]), ir.TensorType(ir.DataType.INT64))
    # Loop wants to hear whether it goes on, and is told what it said.
    go_on = ir.Input(_name("go_on"), ir.Shape([]), ir.TensorType(ir.DataType.BOOL))
    again = ir.node("Identity", [go_on], name=_name("again"))
    again.outputs[0].type, again.outputs[0].shape = go_on.type, go_on.shape
    which = ir.node("Gather", [constants[1], step], {"axis": 0}, name=_name("which"))
    taken = ir.node("Gather", [every, which.outputs[0]], {"axis": 1}, name=_name("taken"))
    taken.outputs[0].type, taken.outputs[0].shape = few.type, few.shape
    few.replace_all_uses_with(taken.outputs[0])
    values.name = _name("values")
    for node in (again, which, taken):
        node.outputs[0].name = node.name

    nodes = list(network)
    network.remove(nodes)
    network.initializers.clear()
    network.outputs.clear()
    body = ir.Graph(
        [step, go_on],
        [again.outputs[0], values],
        nodes=[again, which, taken, *nodes],
        name=_name("body"),
    )
    return body, constants


def _constant(name: str, numbers: ArrayLike) -> Any:
    import numpy as np
    import onnx_ir as ir

    tensor = ir.tensor(np.array(numbers, np.int64), name=_name(name))
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(np.shape(numbers))
    return ir.Value(name=tensor.name, type=kind, shape=shape, const_value=tensor)


def _name(name: str) -> str:
    """Apart from the network's names, which have no slash: those in a body must be new ones."""
    return f"loop/{name}"
