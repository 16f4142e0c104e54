"""How much shared memory the Python models of a repository need.

Each instance of a Python model has a region of its own in /dev/shm, for its inputs and outputs. A
video does not fit in Triton's 1 MiB, nor many in the 64 MiB that Docker gives /dev/shm, and what
overflows is found at the first request. A region that starts large enough for one request is
allocated while the model loads, so that too little memory is known before anyone calls.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from action_export.errors import ServeError
from action_export.serve.configs import model_configs

SHM = Path("/dev/shm")
MIB = 2**20
HEADROOM = 1.25  # Boost's allocator, the message queues, and the request's small tensors
LARGEST = 2**31 - MIB  # the stub parses the size with std::stoi

ITEM_SIZES = {
    "TYPE_BOOL": 1,
    "TYPE_UINT8": 1,
    "TYPE_UINT16": 2,
    "TYPE_UINT32": 4,
    "TYPE_UINT64": 8,
    "TYPE_INT8": 1,
    "TYPE_INT16": 2,
    "TYPE_INT32": 4,
    "TYPE_INT64": 8,
    "TYPE_FP16": 2,
    "TYPE_FP32": 4,
    "TYPE_FP64": 8,
    "TYPE_BF16": 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonModel:
    """request_bytes: its tensors of fixed shape, for one request of batch 1."""

    name: str
    instances: int
    request_bytes: int


def python_models(repository: Path, python_backends: Iterable[str]) -> tuple[PythonModel, ...]:
    """The models that a stub of the Python backend will run."""
    backends = frozenset(python_backends)
    return tuple(
        PythonModel(
            name=name,
            instances=_instances(config),
            request_bytes=sum(map(_fixed_bytes, (*config.input, *config.output))),
        )
        for name, config in model_configs(repository)
        if config.backend in backends
    )


def region_size(models: Iterable[PythonModel]) -> int:
    """Where every region starts, in bytes, whole MiB. One value serves all Python models."""
    largest = max((model.request_bytes for model in models), default=0)
    return min(LARGEST, MIB * max(1, math.ceil(largest * HEADROOM / MIB)))


def check_room(models: Iterable[PythonModel], region: int, shm: Path = SHM) -> None:
    """ServeError where the regions do not fit in what is free of the shared memory."""
    needed = region * sum(model.instances for model in models)
    free = shutil.disk_usage(shm).free
    if needed > free:
        raise ServeError(
            f"the Python models of this repository need {needed / MIB:.0f} MiB of shared memory, "
            f"and {shm} has {free / MIB:.0f} MiB free",
            hint=f"in Docker: docker run --shm-size={math.ceil(2 * needed / MIB)}m",
        )


def _instances(config: Any) -> int:
    # Core (SetDefaultInstanceCount) runs two instances of an ONNX model on the CPU unless told.
    default = 2 if config.backend == "onnxruntime" else 1
    return sum(group.count or default for group in config.instance_group) or default


def _fixed_bytes(tensor: Any) -> int:
    """0 for a shape that only the request knows, and for strings."""
    if any(dim < 0 for dim in tensor.dims):
        return 0
    from tritonclient.grpc import model_config_pb2

    name = model_config_pb2.DataType.Name(tensor.data_type)
    dims: list[int] = list(tensor.dims)
    return math.prod(dims) * ITEM_SIZES.get(name, 0)
