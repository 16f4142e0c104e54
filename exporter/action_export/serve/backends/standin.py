"""What our backends have in common: reading a model, checking it, answering requests.

Triton's utilities are there in its process only, so they are imported where they are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
Config = Mapping[str, Any]
"""A config.pbtxt as JSON: Triton gives it so, with every field by its name there."""


class RefusedError(Exception):
    """config.pbtxt and the model differ; the message is worded as the official backend's."""


class StandIn:
    """One instance of one version of a model; a backend says how to `load` and `run` it."""

    runtime = ""
    default_file = ""

    def load(self, path: Path, config: Config, args: Mapping[str, str]) -> None:
        """Raises RefusedError, or what the runtime raises for a file that it does not read."""
        raise NotImplementedError

    def run(self, inputs: Arrays) -> Arrays:
        """The outputs by name."""
        raise NotImplementedError

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads and checks the model. `model_repository` is the directory of this model."""
        import triton_python_backend_utils as pb_utils

        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or self.default_file
        # By path, not by content: weights may lie beside the file.
        path = Path(args["model_repository"], args["model_version"], name)
        try:
            self.load(path, config, args)
        except Exception as exc:
            reason = str(exc) if isinstance(exc, RefusedError) else f"{self.runtime}: {exc}"
            raise pb_utils.TritonModelException(
                f"unable to load model '{config['name']}', {reason}"
            ) from exc
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        import triton_python_backend_utils as pb_utils

        try:
            return response(self.run(self.arrays(request)))
        except Exception as exc:
            error = pb_utils.TritonError(f"{self.runtime}: {exc}")
            return pb_utils.InferenceResponse(output_tensors=[], error=error)

    def arrays(self, request: Any) -> Arrays:
        import triton_python_backend_utils as pb_utils

        return {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self.inputs
        }


def response(outputs: Arrays) -> Any:
    import triton_python_backend_utils as pb_utils

    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, array) for name, array in outputs.items()]
    )


def check_names(config: Config, *, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raises RefusedError where config.pbtxt leaves out an input, or names what is not there."""
    provided = {"input": sorted(inputs), "output": sorted(outputs)}
    if len(config["input"]) != len(provided["input"]):
        raise RefusedError(
            f"configuration expects {len(config['input'])} inputs, "
            f"model provides {len(provided['input'])}"
        )
    for kind, names in provided.items():
        for tensor in config[kind]:
            if tensor["name"] not in names:
                raise RefusedError(
                    f"unexpected inference {kind} '{tensor['name']}', "
                    f"allowed {kind}s are: {', '.join(names)}"
                )


def dims_of(tensor: Mapping[str, Any]) -> list[int]:
    """What config.pbtxt says of a tensor's shape, without the batch axis."""
    return [int(dim) for dim in tensor.get("reshape", tensor).get("shape", tensor["dims"])]


def other_dims(name: str, expected: list[int], dims: list[int], batched: str) -> RefusedError:
    return RefusedError(
        f"tensor '{name}': the model expects {len(expected)} dimensions (shape {expected}) but the "
        f"model configuration specifies {len(dims)} dimensions (shape {dims}{batched})"
    )


BATCHED = " with the batch dimension that max_batch_size > 0 adds"


def parameter(config: Config, name: str) -> str:
    """A value of `parameters`, or ""."""
    return str(config.get("parameters", {}).get(name, {}).get("string_value", ""))
