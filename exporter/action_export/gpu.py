"""The first GPU of this machine and its memory, through NVIDIA's bindings of the driver's API.

torch could do this, but only a build of it with CUDA, which an export does not need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from numpy.typing import NDArray

from action_export.errors import DependencyError, EngineError, first_line


class Gpu:
    """name: as NVIDIA sells it. compute_capability: its architecture, such as "8.6"."""

    def __init__(self) -> None:
        """Raises DependencyError where there is no GPU, no driver, or no package for them."""
        try:
            from cuda.bindings import driver

            self._driver: Any = driver
            _value(driver.cuInit(0))
            device = _value(driver.cuDeviceGet(0))
            # the context that TensorRT uses, too
            _value(driver.cuCtxSetCurrent(_value(driver.cuDevicePrimaryCtxRetain(device))))
        # the package is missing, or finds no driver, or the driver no GPU
        except (ImportError, RuntimeError, EngineError) as exc:
            raise DependencyError(
                f"no GPU can be used here: {first_line(exc)}",
                hint="build where the GPU and its driver are, or in the serving image: "
                "--plan-in-container",
            ) from exc
        attributes = driver.CUdevice_attribute
        version = [
            _value(driver.cuDeviceGetAttribute(attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        ]
        self.compute_capability = ".".join(map(str, version))
        self.name: str = _value(driver.cuDeviceGetName(256, device)).decode().rstrip("\0")
        self._stream = _value(driver.cuStreamCreate(0))

    @property
    def stream(self) -> int:
        """The handle of a stream, as TensorRT takes it."""
        return int(self._stream)

    @contextmanager
    def memory(self, *sizes: int) -> Iterator[tuple[int, ...]]:
        """The addresses of blocks of these many bytes, freed at the end of the block."""
        with ExitStack() as freeing:
            addresses = []
            for size in sizes:
                address = _value(self._driver.cuMemAlloc(size))
                freeing.callback(self._driver.cuMemFree, address)
                addresses.append(int(address))
            yield tuple(addresses)

    def upload(self, values: NDArray[Any], address: int) -> None:
        """Copies a contiguous array to an address."""
        _value(self._driver.cuMemcpyHtoD(address, values.ctypes.data, values.nbytes))

    def download(self, address: int, values: NDArray[Any]) -> None:
        """Fills a contiguous array from an address."""
        _value(self._driver.cuMemcpyDtoH(values.ctypes.data, address, values.nbytes))

    def wait(self) -> None:
        """Until what was put on the stream is done."""
        _value(self._driver.cuStreamSynchronize(self._stream))


def _value(result: tuple[Any, ...]) -> Any:
    """What a call of the driver gives beside its status; raises EngineError for a bad one."""
    status, *values = result
    if int(status) != 0:
        raise EngineError(
            f"CUDA: {getattr(status, 'name', status)}",
            hint="nvidia-smi tells whether the GPU is well, and has memory left",
        )
    return values[0] if values else None
