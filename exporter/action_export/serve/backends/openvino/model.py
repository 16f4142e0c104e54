"""Triton's openvino backend in Python, for a tritonserver that lacks the official one.

Triton runs it for models with `backend: "openvino"` (see serve/installation.py). It reads
MODEL/VERSION/model.xml, or the file that config.pbtxt names, and the same config.pbtxt as the C++
backend (github.com/triton-inference-server/openvino_backend, src/openvino.cc), and refuses at load
what that one refuses. It differs in one thing: without HINT_BF16 it computes in float32, where the
official one leaves it to OpenVINO, which takes bf16 on a CPU that has it. RESHAPE_IO_LAYERS and
CPU_EXTENSION_PATH are not served.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from action_export.serve.backends import openvino_network as network
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
)


class TritonPythonModel(StandIn):
    """Requests go through the model one by one, each a batch of max_batch_size."""

    runtime = "OpenVINO"
    default_file = "model.xml"

    def load(self, path: Path, config: Config, args: Mapping[str, str]) -> None:
        check_instance(config, args["model_instance_kind"])
        # OpenVINO's own message for a file that is not there names a line of its source.
        if not path.is_file():
            raise RefusedError(f"unable to find '{path}'")
        model = network.read(path)
        check(config, model)
        compiled = network.compiled(model, config)
        self.request = compiled.create_infer_request()
        self.batch = int(config["max_batch_size"])
        self.pads = parameter(config, "ENABLE_BATCH_PADDING").lower() == "yes"
        precision = compiled.get_property(network.PRECISION).to_string()
        pb_utils.Logger.log_info(f"{config['name']} runs with OpenVINO in {precision}")
        if precision == "bf16" and not network.has_bf16():
            pb_utils.Logger.log_warn(f"{config['name']}: {network.SLOW_BF16}")

    def finalize(self) -> None:
        del self.request

    def run(self, inputs: Arrays) -> Arrays:
        rows = len(inputs[self.inputs[0]])
        if self.batch and rows != self.batch:
            if not self.pads:
                raise ValueError(f"expected requests with batch size '{self.batch}', got '{rows}'")
            inputs = {name: _padded(array, self.batch) for name, array in inputs.items()}
        # without a copy of the input; the outputs' memory is used again by the next request
        self.request.infer(inputs, share_inputs=True)
        return {
            name: self.request.get_tensor(name).data[: rows if self.batch else None].copy()
            for name in self.outputs
        }


def _padded(array: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    missing = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, missing])


def check_instance(config: Config, kind: str) -> None:
    if kind != "CPU":
        raise RefusedError("Triton openVINO backend supports only CPU device")
    for name in ("RESHAPE_IO_LAYERS", "CPU_EXTENSION_PATH"):
        if parameter(config, name):
            raise RefusedError(f"the parameter '{name}' is served by the official backend only")


def check(config: Config, model: Any) -> None:
    """RefusedError where config.pbtxt and the model differ, worded as the C++ backend.

    Types may differ: OpenVINO converts.
    """
    provided = {
        "input": {port.any_name: port for port in model.inputs},
        "output": {port.any_name: port for port in model.outputs},
    }
    check_names(config, inputs=provided["input"], outputs=provided["output"])
    for kind, ports in provided.items():
        for tensor in config[kind]:
            _check_dims(config, kind, tensor, ports[tensor["name"]])


def _check_dims(config: Config, kind: str, tensor: Mapping[str, Any], port: Any) -> None:
    """As CompareDimsSupported of the C++ backend: an open axis of the model fits any other."""
    shape = [dim.get_length() if dim.is_static else -1 for dim in port.partial_shape]
    dims, batched = dims_of(tensor), ""
    if config["max_batch_size"] > 0:
        dims, batched = [config["max_batch_size"], *dims], BATCHED
        shape[:1] = [-1]  # it will be max_batch_size
    # -1 in the config leaves an axis of an input to the model, where there are batches
    same = len(shape) == len(dims) and all(
        have in (-1, want) or (want == -1 and kind == "input" and batched)
        for have, want in zip(shape, dims, strict=True)
    )
    if not same:
        raise other_dims(tensor["name"], shape, dims, batched)
