"""The logits of a graph that was written: the same file once more, with them as a further output.

Softmax and sigmoids saturate: of a confident model the scores stay what they are, whatever is done
to the logits within a wide margin, and only these tell whether the graph is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_export import onnx_file

_SQUASHING = ("Sigmoid", "Softmax")
# What may stand between those and the scores: averages, and what moves values only.
_BEHIND = (
    "Cast", "Flatten", "Identity", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Slice",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_NAME = "logits/of_each_view"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A graph that gives its logits beside the scores, under `name`.

    looped: whether it gives them step by step.
    """

    path: Path
    name: str
    looped: bool

    def of_videos(self, given: NDArray[Any]) -> NDArray[np.float32]:
        """What the graph gives, as [batch, rows, classes], rows as mmaction2's head has them."""
        if self.looped:
            given = np.moveaxis(given, 0, 1)
        return given.reshape(len(given), -1, given.shape[-1]).astype(np.float32)


@contextmanager
def with_logits(path: Path) -> Iterator[Probe | None]:
    """Writes a file beside `path`, which refers to the weights in there, and removes it.

    None where there is neither softmax nor sigmoid before the scores: then no score saturates.
    """
    import onnx

    model = onnx_file.outline(path)
    graph = model.graph
    loop, name = _logits_of(graph, graph.output[0].name)
    if not name:
        yield None
        return
    if loop is not None:
        name = _out_of(loop, name)
    graph.output.append(onnx.ValueInfoProto(name=name))
    beside = path.with_name(f"{path.stem}.logits.onnx")
    try:
        beside.write_bytes(model.SerializeToString())
        yield Probe(path=beside, name=name, looped=loop is not None)
    finally:
        beside.unlink(missing_ok=True)


def _logits_of(graph: Any, name: str) -> tuple[Any | None, str]:
    """The Loop that they are computed in, if any, and their name; "" where there are none."""
    producers = {output: node for node in graph.node for output in node.output}
    while (node := producers.get(name)) is not None:
        if node.op_type in _SQUASHING:
            return None, node.input[0]
        if node.op_type == "Loop":
            body = _body(node)
            # of the body's outputs, the first says whether to go on
            _, name = _logits_of(body, body.output[1 + list(node.output).index(name)].name)
            return node, name
        if node.op_type not in _BEHIND:
            break
        name = node.input[0]
    return None, ""


def _out_of(loop: Any, name: str) -> str:
    """Lets the loop give this value of its body, of all steps; returns what it is called there."""
    body = _body(loop)
    given = body.output.add()
    # the values that softmax or a sigmoid makes of it have its type and shape
    given.CopyFrom(body.output[-2])
    given.name = name
    loop.output.append(_NAME)
    return _NAME


def _body(loop: Any) -> Any:
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")
