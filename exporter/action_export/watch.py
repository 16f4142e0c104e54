"""Runs a graph in ONNX Runtime for the tensors inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_export.dependencies import import_onnxruntime

Clips = NDArray[np.uint8]
"""[rows, views, clip_len, h, w, channels]"""


def float_outputs(model: Any) -> set[str]:
    """The tensors of float32 that the nodes give, the model's own outputs left out."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name
        for value in inferred.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }


def last_first(model: Any, names: set[str]) -> list[str]:
    """In the order in which nodes must look at these tensors, so that few are held at once.

    ONNX Runtime orders its work by walking back from the last node of a file. That one must look at
    the first tensor, or all tensors are computed before any is looked at (MViT: 5 GB, not 1.1).
    """
    outputs = [name for node in model.graph.node for name in node.output if name in names]
    return outputs[::-1]


def watch(
    model: Any, names: Sequence[str], extra: Sequence[Any] = ()
) -> Callable[[Clips], list[NDArray[Any]]]:
    """Runs the model, with `extra` nodes, for the tensors of these names instead of its outputs."""
    import onnx

    onnxruntime = import_onnxruntime()
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.node.extend(extra)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        # not from memory: protobuf has a limit, which two models may exceed where one does not
        path = Path(folder) / "watched.onnx"
        onnx.save(watched, str(path), save_as_external_data=True)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name

    def run(clips: Clips) -> list[NDArray[Any]]:
        values: list[NDArray[Any]] = session.run(list(names), {source: clips})
        return values

    return run
