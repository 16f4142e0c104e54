"""A shape that no array can have must cost the request that declares it, not the process.

The stub of Triton's Python backend makes an array of each input before it calls the model, outside
of what catches errors (24.10: `Stub::ProcessRequests`, `PbTensor::PbTensor`). If NumPy refuses the
shape, the process ends, and Triton starts no other. Triton's core does not refuse it before: it
compares the bytes that were sent with a product of the dims that wraps at 64 bits, so that UINT8
[8, 2**32, 2**32, 3] is right with 0 bytes, and [4, -4, -4, 3] with 192. No setting of a model
bounds a dim that is open.

Between the request and NumPy is one pointer: the stub calls `PyArray_NewFromDescr` through
pybind11, which looks it up, once, in the table that NumPy has for other libraries. While it does,
the table here has a function that makes an empty array for an impossible shape. The model then sees
that the array has not the shape of its tensor, and answers so.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

LARGEST = 2**40
"""Elements of an array that is made as declared; a message of gRPC has at most 2**31 bytes."""

_NEW_FROM_DESCR = 94  # its place in NumPy's table, the same in 1.x and 2.x (numpy_api.py)
_FUNCTION = ctypes.PYFUNCTYPE(
    ctypes.c_void_p,  # the new array, or NULL
    ctypes.c_void_p,  # type
    ctypes.c_void_p,  # dtype
    ctypes.c_int,  # rank
    ctypes.POINTER(ctypes.c_ssize_t),  # shape
    ctypes.c_void_p,  # strides, or NULL
    ctypes.c_void_p,  # data, or NULL
    ctypes.c_int,  # flags
    ctypes.c_void_p,  # obj
)


def survive(first_array: Callable[[], object]) -> bool:
    """Whether arrays of impossible shapes will be made empty, by what `first_array` makes one with.

    first_array: makes pybind11 look NumPy's functions up, and then make an array.
    """
    try:
        table = _table()
    except (ImportError, AttributeError, ValueError):  # a NumPy that keeps it elsewhere
        first_array()
        return False
    original = _FUNCTION(table[_NEW_FROM_DESCR])
    called = False

    def new(
        cls: int, dtype: int, rank: int, dims: Any, strides: int | None, *rest: int
    ) -> int | None:
        nonlocal called
        called = True
        shape = dims[:rank]
        if min(shape, default=0) < 0 or math.prod(max(dim, 1) for dim in shape) > LARGEST:
            dims, strides = (ctypes.c_ssize_t * rank)(), None
        array: int | None = original(cls, dtype, rank, dims, strides, *rest)
        return array

    replacement = _FUNCTION(new)
    # pybind11 keeps the pointer for as long as the process lives
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(replacement))
    before = table[_NEW_FROM_DESCR]
    table[_NEW_FROM_DESCR] = ctypes.cast(replacement, ctypes.c_void_p).value
    try:
        first_array()
    finally:
        table[_NEW_FROM_DESCR] = before
    return called


def _table() -> Any:
    """NumPy's C functions, as addresses."""
    # 1.26 has a numpy._core as well, without this
    core = importlib.import_module(
        "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
    )
    get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    address = get_pointer(core.multiarray._ARRAY_API, None)
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
