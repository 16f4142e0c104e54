"""Writes a graph and its weights without a second copy of the weights in memory."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

# protobuf parses no message of 2 GiB or more; this leaves 16 MiB for what is no weight.
_LARGEST_WEIGHTS = 2**31 - 2**24

# onnx.proto's numbers of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


SCOPES = "pkg.torch.onnx.name_scopes"
"""The metadata in which torch's exporter lists the modules around a node, outermost first."""


def module_of(node: Any) -> str:
    """The path of the module of the network that a node of a ModelProto comes from, or nothing."""
    entries = {entry.key: entry.value for entry in node.metadata_props}
    scopes: list[str] = ast.literal_eval(entries.get(SCOPES, "[]"))
    # the last scope is the operator's own name
    return scopes[-2] if len(scopes) > 1 else ""


def save(model: Any, path: Path) -> tuple[str, ...]:
    """Writes an onnx_ir.Model, its weights included or, beyond 2 GiB, in a second file beside it.

    Returns the names of the files, the graph first. The model must not be used afterwards: the
    initializers of one that fits a single file are taken out.
    """
    import onnx_ir as ir

    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    if sum(weight.nbytes for weight in weights.values()) > _LARGEST_WEIGHTS:
        beside = f"{path.name}.data"
        ir.save(model, path, external_data=beside)
        return (path.name, beside)
    model.graph.initializers.clear()
    _write(ir.to_proto(model), weights, path)
    return (path.name,)


def _write(model: Any, weights: dict[str, Any], path: Path) -> None:
    """Encodes as protobuf does (protobuf.dev, "Encoding"), but one weight at a time.

    protobuf itself takes five times the weights: it copies them into messages, and those into a
    buffer that doubles as it grows.
    """
    from onnx import TensorProto

    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = []
    for name, weight in weights.items():
        described = TensorProto(name=name, data_type=weight.dtype, dims=weight.shape.numpy())
        head = described.SerializeToString() + _prefix(_RAW_DATA, weight.nbytes)
        heads.append(_prefix(_INITIALIZER, len(head) + weight.nbytes) + head)
    length = len(graph) + sum(map(len, heads)) + sum(w.nbytes for w in weights.values())
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _prefix(_GRAPH, length) + graph)
        for head, weight in zip(heads, weights.values(), strict=True):
            file.write(head)
            weight.tofile(file)


def _prefix(field: int, length: int) -> bytes:
    """What stands before a value: its field, wire type 2 (of known length), and its length."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
