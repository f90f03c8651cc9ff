"""Read llama.cpp's tensors from Python: the layout of `struct ggml_tensor`, checked before use."""

from __future__ import annotations

import ctypes as C
import struct
from typing import Any

import numpy as np

from traces.errors import InputError


class Tensor(C.Structure):
    """`struct ggml_tensor` of ggml.h."""

    _fields_ = (
        ("type", C.c_int),
        ("buffer", C.c_void_p),
        ("ne", C.c_int64 * 4),
        ("nb", C.c_size_t * 4),
        ("op", C.c_int),
        ("op_params", C.c_int32 * 16),
        ("flags", C.c_int32),
        ("src", C.c_void_p * 10),
        ("view_src", C.c_void_p),
        ("view_offs", C.c_size_t),
        ("data", C.c_void_p),
        ("name", C.c_char * 64),
        ("extra", C.c_void_p),
        ("padding", C.c_char * 8),
    )


NAME, VIEWED, SOURCES = Tensor.name.offset, Tensor.view_src.offset, Tensor.src.offset
_OP_PARAMS = Tensor.op_params.offset
SOURCES_MAX = 10
"""Operands an operation may have (GGML_MAX_SRC)."""
_SHAPE = struct.Struct("=i12x4q4Q")  # type, buffer (skipped), ne, nb
_POINTER = struct.Struct("=Q")
NUMPY: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    26: np.dtype(np.int32),
}
_SCRATCH = 1 << 20


def name_of(address: int) -> bytes:
    """The name of the tensor at ``address``."""
    return C.string_at(address + NAME)


def source_of(address: int, i: int = 0) -> int:
    """Address of the i-th operand of the operation that makes this tensor; 0 for none."""
    return int(_POINTER.unpack(C.string_at(address + SOURCES + 8 * i, 8))[0])


def viewed_by(address: int) -> int:
    """Address of the tensor that this one is a view of; 0 where it is no view."""
    return int(_POINTER.unpack(C.string_at(address + VIEWED, 8))[0])


def float_parameter(address: int, i: int = 0) -> float:
    """The i-th parameter of the tensor's operation, as a float."""
    return float(C.c_float.from_address(address + _OP_PARAMS + 4 * i).value)


def is_made(address: int) -> bool:
    """Whether an operation makes this tensor: it is no weight, cache or input."""
    return int(Tensor.from_address(address).op) != 0


class TensorReader:
    """Copies tensors, wherever their memory is, into NumPy arrays."""

    def __init__(self, library: C.CDLL) -> None:
        self._get = library.ggml_backend_tensor_get
        self._get.argtypes = (C.c_void_p, C.c_void_p, C.c_size_t, C.c_size_t)
        self._get.restype = None
        self._name: Any = library.ggml_get_name
        self._name.argtypes, self._name.restype = (C.c_void_p,), C.c_char_p
        self._type_size: Any = library.ggml_type_size
        self._type_size.argtypes, self._type_size.restype = (C.c_int,), C.c_size_t
        self._n_bytes: Any = library.ggml_nbytes
        self._n_bytes.argtypes, self._n_bytes.restype = (C.c_void_p,), C.c_size_t
        self._checked = False
        self._grow(_SCRATCH)

    def place(self, address: int) -> tuple[int, int]:
        """Where a tensor's data are, and how many bytes they take."""
        return int(Tensor.from_address(address).data or 0), int(self._n_bytes(address))

    def _grow(self, n: int) -> None:
        self._scratch = np.empty(n, np.uint8)
        self._scratch_at = self._scratch.ctypes.data

    def read(self, address: int) -> np.ndarray:
        """A dense copy of a float32, float16 or int32 tensor, shape outermost dimension first.

        Leading dimensions of extent 1 are dropped down to two dimensions. A view is read with its
        strides: the top-k ids are the first columns of a wider array.
        """
        if not self._checked:
            self._check(address)
        kind, *extents = _SHAPE.unpack(C.string_at(address, _SHAPE.size))
        shape, strides = extents[3::-1], extents[7:3:-1]
        while len(shape) > 2 and shape[0] == 1:
            shape, strides = shape[1:], strides[1:]
        dtype = NUMPY.get(kind)
        if dtype is None:
            raise InputError(
                f"tensor {name_of(address).decode()} has ggml type {kind}, which capture cannot "
                "read; use another llama.cpp build"
            )
        if 0 in shape:
            return np.empty(shape, dtype)
        span = dtype.itemsize + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if span > len(self._scratch):
            self._grow(2 * span)
        self._get(address, self._scratch_at, 0, span)
        return np.ndarray(shape, dtype, self._scratch.data, 0, strides).copy()

    def _check(self, address: int) -> None:
        """Refuse to go on where the struct is laid out differently in this build."""
        t = Tensor.from_address(address)
        if self._name(address) != t.name or t.nb[0] != self._type_size(t.type):
            raise InputError(
                "this libllama lays out ggml_tensor differently from what capture knows; use the "
                "one of the capture extra: pip install 'uvmsim[capture]'"
            )
        self._checked = True
