"""Triton's onnxruntime backend in Python, for a tritonserver that lacks the official one.

Triton runs it for models with `backend: "onnxruntime"` (see serve/installation.py). It reads
MODEL/VERSION/model.onnx and the same config.pbtxt as the C++ backend
(github.com/triton-inference-server/onnxruntime_backend, src/onnxruntime.cc), and refuses at load
what that one refuses. An instance on a GPU runs with ONNX Runtime's CUDA provider, where the
installed onnxruntime has it; custom operators, sequences, ragged batches and I/O reshapes that
drop the batch axis are not served. The accelerators of the config are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

Arrays = Mapping[str, np.ndarray[Any, Any]]

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


class TritonPythonModel:
    """One instance of one version of a model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads and checks the graph. `model_repository` is the directory of this model."""
        config = json.loads(args["model_config"])
        # By path, not by content: external data lies beside the file.
        path = Path(args["model_repository"], args["model_version"], _file_name(config))
        try:
            self.session = onnxruntime.InferenceSession(
                path,
                session_options(config),
                providers=providers(args["model_instance_kind"], args["model_instance_device_id"]),
            )
        except Exception as exc:
            raise pb_utils.TritonModelException(
                f"unable to load model '{config['name']}', ONNX Runtime: {exc}"
            ) from exc
        check(config, self.session)
        pb_utils.Logger.log_info(f"{config['name']} runs with {self.session.get_providers()[0]}")
        self.batches = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request. All of an execution go through the graph together."""
        if len(requests) == 1 or not self.batches:
            return [self._answer_alone(request) for request in requests]
        try:
            return self._answer_together(requests)
        except Exception:
            # One request may fail all. Alone, each gets its own answer or its own error.
            return [self._answer_alone(request) for request in requests]

    def finalize(self) -> None:
        del self.session

    def _answer_together(self, requests: Sequence[Any]) -> list[Any]:
        """Along axis 0; Triton batches only requests whose other axes are equal."""
        arrays = [self._arrays(request) for request in requests]
        rows = [len(request[self.inputs[0]]) for request in arrays]
        batch = {name: np.concatenate([each[name] for each in arrays]) for name in self.inputs}
        ends = np.cumsum(rows)[:-1]
        parts = {name: np.split(out, ends) for name, out in self._run(batch).items()}
        return [
            _response({name: part[row] for name, part in parts.items()})
            for row in range(len(requests))
        ]

    def _answer_alone(self, request: Any) -> Any:
        try:
            return _response(self._run(self._arrays(request)))
        except Exception as exc:
            error = pb_utils.TritonError(f"ONNX Runtime: {exc}")
            return pb_utils.InferenceResponse(output_tensors=[], error=error)

    def _arrays(self, request: Any) -> Arrays:
        return {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self.inputs
        }

    def _run(self, inputs: Arrays) -> Arrays:
        """The outputs by name. An output with other than one row per row of input is an error."""
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


def session_options(config: Mapping[str, Any]) -> Any:
    """ONNX Runtime's options from `optimization.graph` and `parameters`; 0 leaves its default."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    graph_level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = {
        -1: levels.ORT_ENABLE_BASIC,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }.get(graph_level, levels.ORT_ENABLE_ALL)
    if _parameter(config, "execution_mode") == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.intra_op_num_threads = _parameter(config, "intra_op_thread_count")
    options.inter_op_num_threads = _parameter(config, "inter_op_thread_count")
    return options


def check(config: Mapping[str, Any], session: Any) -> None:
    """TritonModelException where config.pbtxt and the graph differ, worded as the C++ backend."""
    graph_inputs, graph_outputs = session.get_inputs(), session.get_outputs()
    if len(config["input"]) != len(graph_inputs):
        _refuse(
            config,
            f"configuration expects {len(config['input'])} inputs, "
            f"model provides {len(graph_inputs)}",
        )
    for kind, graph_tensors in (("input", graph_inputs), ("output", graph_outputs)):
        by_name = {tensor.name: tensor for tensor in graph_tensors}
        for tensor in config[kind]:
            if tensor["name"] not in by_name:
                _refuse(
                    config,
                    f"unexpected inference {kind} '{tensor['name']}', "
                    f"allowed {kind}s are: {', '.join(sorted(by_name))}",
                )
            _check_tensor(config, kind, tensor, by_name[tensor["name"]])


def _check_tensor(
    config: Mapping[str, Any], kind: str, tensor: Mapping[str, Any], in_graph: Any
) -> None:
    provided = TYPES.get(in_graph.type, in_graph.type)
    if tensor["data_type"] != provided:
        _refuse(
            config,
            f"configuration expects datatype {tensor['data_type']} for {kind} "
            f"'{tensor['name']}', model provides {provided}",
        )
    expected = [dim if isinstance(dim, int) else -1 for dim in in_graph.shape]
    dims = [int(dim) for dim in tensor.get("reshape", tensor).get("shape", tensor["dims"])]
    batched = ""
    if config["max_batch_size"] > 0:
        if expected[:1] != [-1]:
            _refuse(
                config,
                f"tensor '{tensor['name']}': for the model to support batching the shape should "
                "have at least 1 dimension and the first dimension must be -1; but shape expected "
                f"by the model is {expected}",
            )
        dims = [-1, *dims]
        batched = " with the batch dimension that max_batch_size > 0 adds"
    # An axis that the graph leaves open may be fixed by the config for an input, not for an output.
    same = len(expected) == len(dims) and all(
        have == want or (kind == "input" and have == -1)
        for have, want in zip(expected, dims, strict=True)
    )
    if not same:
        _refuse(
            config,
            f"tensor '{tensor['name']}': the model expects {len(expected)} dimensions (shape "
            f"{expected}) but the model configuration specifies {len(dims)} dimensions (shape "
            f"{dims}{batched})",
        )


def _refuse(config: Mapping[str, Any], reason: str) -> None:
    raise pb_utils.TritonModelException(f"unable to load model '{config['name']}', {reason}")


def _response(outputs: Arrays) -> Any:
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, array) for name, array in outputs.items()]
    )


def _file_name(config: Mapping[str, Any]) -> str:
    return str(config.get("default_model_filename") or "model.onnx")


def _parameter(config: Mapping[str, Any], name: str) -> int:
    """A number of `parameters`, which config.pbtxt holds as a string."""
    return int(config.get("parameters", {}).get(name, {}).get("string_value", 0))
