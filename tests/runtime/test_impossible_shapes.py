"""An array of an impossible shape is made empty for those that looked the maker up meanwhile."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
import pytest
from action_runtime import impossible_shapes
from numpy.typing import NDArray

MAKER = ctypes.PYFUNCTYPE(
    ctypes.py_object,
    ctypes.py_object,
    ctypes.py_object,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_ssize_t),
    *[ctypes.c_void_p] * 2,
    ctypes.c_int,
    ctypes.c_void_p,
)


class Library:
    """Looks up NumPy's function once, as pybind11 does, and makes arrays with it."""

    def make(self, shape: list[int], data: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        if not hasattr(self, "maker"):
            self.maker = MAKER(impossible_shapes._table()[94])
        dtype = np.dtype(np.uint8)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dtype))  # the function takes a reference
        dims = (ctypes.c_ssize_t * len(shape))(*shape)
        pointer = None if data is None else data.ctypes.data
        made: Any = self.maker(np.ndarray, dtype, len(shape), dims, None, pointer, 0, None)
        return made


@pytest.fixture
def library() -> Library:
    found = Library()
    assert impossible_shapes.survive(lambda: found.make([1]))
    return found


@pytest.mark.parametrize(
    "shape",
    [[8, 2**32, 2**32, 3], [0, 2**40, 2**40, 3], [4, -4, -4, 3], [-1], [2**41], [2**63 - 1]],
)
def test_an_impossible_shape_becomes_an_empty_array(shape: list[int], library: Library) -> None:
    assert library.make(shape).shape == (0,) * len(shape)


@pytest.mark.parametrize("shape", [[], [0], [3, 0, 2], [2, 3]])
def test_any_other_is_made_as_it_was(shape: list[int], library: Library) -> None:
    data = np.arange(6, dtype=np.uint8)
    made = library.make(shape, data)
    assert made.shape == tuple(shape)
    assert made.reshape(-1).tolist() == data[: made.size].tolist()


def test_only_who_looked_it_up_meanwhile_has_it(library: Library) -> None:
    with pytest.raises(ValueError, match="too big"):
        Library().make([2**62, 2, 2])
    assert not impossible_shapes.survive(lambda: np.zeros(1))


def test_a_numpy_that_keeps_its_functions_elsewhere_is_told_and_not_failed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = importlib.import_module("numpy.core" if np.__version__[0] == "1" else "numpy._core")
    monkeypatch.delattr(core.multiarray, "_ARRAY_API")
    made = []
    assert not impossible_shapes.survive(lambda: made.append(np.zeros(1)))
    assert len(made) == 1
