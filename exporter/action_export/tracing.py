"""Writes a module as an ONNX file whose only dynamic axis is the batch."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from action_export import loop, onnx_file
from action_export.errors import TracingError, UnsupportedError, first_line
from action_export.optimise import optimise
from action_export.types import TensorSpec

if TYPE_CHECKING:
    import torch

# The oldest IR version that holds each opset (onnx/docs/Versioning.md), so that the file loads in
# as many releases of ONNX Runtime as it can.
_IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10}
OPSETS = tuple(_IR_VERSIONS)

# A batch of one is traced as a constant: torch.export specialises sizes 0 and 1.
_EXAMPLE_BATCH = 2
_BATCH = "batch"

_HINT = "docs/adding-a-family.md says how an architecture gets the patch that it needs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A graph that was written.

    nodes: those inside a loop as well. files: names beside `path`, itself first; then its weights.
    """

    path: Path
    opset: int
    nodes: int
    files: tuple[str, ...]


def check_opset(opset: int) -> None:
    """Raises UnsupportedError for an opset that is not written."""
    if opset not in _IR_VERSIONS:
        raise UnsupportedError(
            f"opset {opset} is not written",
            hint=f"--opset {OPSETS[0]} to {OPSETS[-1]}; the default suits every server",
        )


@contextmanager
def _collected_rarely() -> Iterator[None]:
    """Lets Python's collector look for cycles a hundred times less often.

    A trace makes objects by the million, most of which stay until it ends; a collection at every
    700 of them takes an eighth of its time.
    """
    before = gc.get_threshold()
    gc.set_threshold(100 * before[0], *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def onnx_from_module(
    module: torch.nn.Module, *, clips: TensorSpec, scores: TensorSpec, opset: int, path: Path
) -> Graph:
    """Traces `module` and writes it to `path`, weights included or, beyond 2 GiB, beside it.

    Raises:
        TracingError: torch cannot express the module as ONNX, or not for every batch size.
        UnsupportedError: an opset that is not written.
    """
    return _save(_traced(module, clips, scores, opset), opset, path)


def onnx_from_views(
    module: torch.nn.Module, *, clips: TensorSpec, scores: TensorSpec, opset: int, path: Path
) -> Graph:
    """As onnx_from_module, for a module that gives the values of each view and averages none.

    The graph loops over the views, and averages them afterwards.
    """
    at_once = loop.views_at_once(clips.dims[0])
    few = replace(clips, dims=(at_once, *clips.dims[1:]))
    values = replace(scores, dims=(at_once, *scores.dims))
    model = _traced(module, few, values, opset)
    loop.over_views(model, clips, scores)
    return _save(model, opset, path)


@_collected_rarely()
def _traced(module: torch.nn.Module, clips: TensorSpec, scores: TensorSpec, opset: int) -> Any:
    """An onnx_ir.Model, optimised."""
    import torch

    check_opset(opset)
    # Never read: torch traces with shapes only, so these pages are not even touched.
    example = torch.empty(clips.shape(_EXAMPLE_BATCH), dtype=torch.uint8)
    batch = torch.export.Dim(_BATCH, min=1)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=[clips.name],
                output_names=[scores.name],
                opset_version=opset,
                custom_translation_table={torch.ops.aten.roll.default: _roll},
                verbose=False,
                optimize=False,  # see optimise.py
            )
    except torch.onnx.OnnxExporterError as exc:
        _reraise_interrupt(exc)
        raise TracingError(
            f"torch cannot write this model as ONNX: {_cause(exc)}",
            hint=_HINT,
        ) from exc
    assert program is not None
    model = program.model
    _check_axes(model.graph, clips, scores)
    optimise(model)
    _tidy(model)
    return model


def _save(model: Any, opset: int, path: Path) -> Graph:
    model.ir_version = _IR_VERSIONS[opset]
    nodes = len(list(model.graph.all_nodes()))
    return Graph(path=path, opset=opset, nodes=nodes, files=onnx_file.save(model, path))


def _roll(data: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    """aten::roll by slices of known bounds; torch's own takes them from the size at run time."""
    from onnxscript import opset18

    op: Any = opset18
    lengths = [data.shape[axis] for axis in dims]  # what follows has no shape yet
    for shift, axis, length in zip(shifts, dims, lengths, strict=True):
        cut = -shift % length
        if cut:
            front = op.Slice(data, [0], [cut], [axis])
            back = op.Slice(data, [cut], [length], [axis])
            data = op.Concat(back, front, axis=axis)
    return data


def _check_axes(graph: Any, clips: TensorSpec, scores: TensorSpec) -> None:
    """The batch is free, one row stays one row. Where torch fixes a size, only its log says so."""
    for value, spec in zip((*graph.inputs, *graph.outputs), (clips, scores), strict=True):
        expected = [_BATCH, *map(str, spec.dims)]
        traced = [str(axis) for axis in value.shape or ()]
        if traced != expected:
            raise TracingError(
                f"torch traced {spec.name} as [{', '.join(traced)}], not [{', '.join(expected)}]",
                hint=_HINT,
            )


def _tidy(model: Any) -> None:
    """Drops what only a debugger of the exporter reads, among it paths of this machine."""
    for node in model.graph:
        for key in [key for key in node.metadata_props if key != onnx_file.SCOPES]:
            del node.metadata_props[key]
    for holder in (model, model.graph):
        holder.metadata_props.clear()


def _reraise_interrupt(exc: BaseException) -> None:
    """An interrupt in the middle of an import comes out as the lack of what was to be imported."""
    inner: BaseException | None = exc
    while inner is not None:
        if isinstance(inner, KeyboardInterrupt):
            raise KeyboardInterrupt from exc
        inner = inner.__cause__ or inner.__context__


def _cause(exc: BaseException) -> str:
    """The first line of the innermost exception, which names the operator."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {first_line(exc)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's notices about itself, and the graphs it prints, off the terminal."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
