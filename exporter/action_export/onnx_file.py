"""Writes and reads a graph and its weights without a second copy of the weights in memory."""

from __future__ import annotations

import ast
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# protobuf parses no message of 2 GiB or more; this leaves 16 MiB for what is no weight.
_LARGEST_WEIGHTS = 2**31 - 2**24

# onnx.proto's numbers of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
# of the parts of a message, by protobuf's wire types
_VARINT, _FIXED64, _DELIMITED = 0, 1, 2
# Shapes, axes and the like stay in the outline, where shape inference looks for them.
_LEAST_WEIGHT = 1024


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


def outline(path: Path) -> Any:
    """A file's ModelProto without its weights: it says that they lie where they do in that file.

    It can be saved beside the file only.
    """
    from onnx import ModelProto

    kept, graph, weights = bytearray(), bytearray(), []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, start, first, end in _fields(data, 0, len(data)):
            if number != _GRAPH:
                kept += data[start:end]
                continue
            for inner, part, begins, ends in _fields(data, first, end):
                if inner == _INITIALIZER:
                    weights.append(_where_it_lies(data, begins, ends, path.name))
                else:
                    graph += data[part:ends]
    model = ModelProto.FromString(bytes(kept) + _prefix(_GRAPH, len(graph)) + bytes(graph))
    model.graph.initializer.extend(weights)
    return model


def _where_it_lies(data: mmap.mmap, start: int, end: int, file: str) -> Any:
    """A TensorProto that refers to its values, or holds them where they are few."""
    from onnx import TensorProto

    kept, found = bytearray(), None
    for number, part, first, stop in _fields(data, start, end):
        if number == _RAW_DATA and stop - first >= _LEAST_WEIGHT:
            found = first, stop
        else:
            kept += data[part:stop]
    tensor = TensorProto.FromString(bytes(kept))
    if found is not None:
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": file, "offset": found[0], "length": found[1] - found[0]}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where it starts, where its value starts, where that ends) of a message's fields."""
    while at < end:
        start = at
        key, at = _read_varint(data, at)
        first = at
        kind = key & 7
        if kind == _DELIMITED:
            length, first = _read_varint(data, at)
            at = first + length
        elif kind == _VARINT:
            _, at = _read_varint(data, at)
        else:
            at += 8 if kind == _FIXED64 else 4
        yield key >> 3, start, first, at


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """The number, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return number, at
