"""Triton's onnxruntime backend in Python, for a tritonserver that lacks the official one.

Triton runs it for models with `backend: "onnxruntime"` (see serve/installation.py). It reads
MODEL/VERSION/model.onnx and the same config.pbtxt as the C++ backend
(github.com/triton-inference-server/onnxruntime_backend, src/onnxruntime.cc), and refuses at load
what that one refuses. An instance on a GPU runs with ONNX Runtime's CUDA provider, where the
installed onnxruntime has it; custom operators, sequences, ragged batches and I/O reshapes that
drop the batch axis are not served. The accelerators of the config are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from action_export.dependencies import import_onnxruntime
from action_export.serve.backends.standin import (
    BATCHED,
    Arrays,
    Config,
    RefusedError,
    StandIn,
    check_names,
    dims_of,
    other_dims,
    parameter,
    response,
)

onnxruntime = import_onnxruntime()

TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel(StandIn):
    """All requests of an execution go through the graph together."""

    runtime = "ONNX Runtime"
    default_file = "model.onnx"

    def load(self, path: Path, config: Config, args: Mapping[str, str]) -> None:
        self.session = onnxruntime.InferenceSession(
            path,
            session_options(config),
            providers=providers(args["model_instance_kind"], args["model_instance_device_id"]),
        )
        check(config, self.session)
        pb_utils.Logger.log_info(f"{config['name']} runs with {self.session.get_providers()[0]}")
        self.batches = config["max_batch_size"] > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        if len(requests) == 1 or not self.batches:
            return super().execute(requests)
        try:
            return self._answer_together(requests)
        except Exception:
            # One request may fail all. Alone, each gets its own answer or its own error.
            return super().execute(requests)

    def finalize(self) -> None:
        del self.session

    def _answer_together(self, requests: Sequence[Any]) -> list[Any]:
        """Along axis 0; Triton batches only requests whose other axes are equal."""
        arrays = [self.arrays(request) for request in requests]
        rows = [len(request[self.inputs[0]]) for request in arrays]
        batch = {name: np.concatenate([each[name] for each in arrays]) for name in self.inputs}
        ends = np.cumsum(rows)[:-1]
        parts = {name: np.split(out, ends) for name, out in self.run(batch).items()}
        return [
            response({name: part[row] for name, part in parts.items()})
            for row in range(len(requests))
        ]

    def run(self, inputs: Arrays) -> Arrays:
        """An output with other than one row per row of input is an error."""
        rows = len(inputs[self.inputs[0]])
        outputs = dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))
        for name, output in outputs.items():
            if self.batches and output.shape[:1] != (rows,):
                raise ValueError(f"output '{name}' has shape {output.shape} for a batch of {rows}")
        return outputs


def providers(kind: str, device: str) -> list[Any]:
    """In ONNX Runtime's order of preference, for an instance of this kind on this device."""
    found: list[Any] = ["CPUExecutionProvider"]
    if kind == "GPU" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        found.insert(0, ("CUDAExecutionProvider", {"device_id": device, "use_tf32": "0"}))
    return found


def session_options(config: Config) -> Any:
    """ONNX Runtime's options from `optimization.graph` and `parameters`; 0 leaves its default."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    graph_level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = {
        -1: levels.ORT_ENABLE_BASIC,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }.get(graph_level, levels.ORT_ENABLE_ALL)
    if int(parameter(config, "execution_mode") or 0) == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.intra_op_num_threads = int(parameter(config, "intra_op_thread_count") or 0)
    options.inter_op_num_threads = int(parameter(config, "inter_op_thread_count") or 0)
    return options


def check(config: Config, session: Any) -> None:
    """RefusedError where config.pbtxt and the graph differ, worded as the C++ backend."""
    provided = {
        "input": {tensor.name: tensor for tensor in session.get_inputs()},
        "output": {tensor.name: tensor for tensor in session.get_outputs()},
    }
    check_names(config, inputs=provided["input"], outputs=provided["output"])
    for kind, tensors in provided.items():
        for tensor in config[kind]:
            _check_tensor(config, kind, tensor, tensors[tensor["name"]])


def _check_tensor(config: Config, kind: str, tensor: Mapping[str, Any], in_graph: Any) -> None:
    provided = TYPES.get(in_graph.type, in_graph.type)
    if tensor["data_type"] != provided:
        raise RefusedError(
            f"configuration expects datatype {tensor['data_type']} for {kind} "
            f"'{tensor['name']}', model provides {provided}"
        )
    expected = [dim if isinstance(dim, int) else -1 for dim in in_graph.shape]
    dims, batched = dims_of(tensor), ""
    if config["max_batch_size"] > 0:
        if expected[:1] != [-1]:
            raise RefusedError(
                f"tensor '{tensor['name']}': for the model to support batching the shape should "
                "have at least 1 dimension and the first dimension must be -1; but shape expected "
                f"by the model is {expected}"
            )
        dims, batched = [-1, *dims], BATCHED
    # An axis that the graph leaves open may be fixed by the config for an input, not for an output.
    same = len(expected) == len(dims) and all(
        have == want or (kind == "input" and have == -1)
        for have, want in zip(expected, dims, strict=True)
    )
    if not same:
        raise other_dims(tensor["name"], expected, dims, batched)
