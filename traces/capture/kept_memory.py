"""Memory of ggml's back ends in which a graph leaves what a capture wants to read after it."""

from __future__ import annotations

import ctypes as C
from typing import Any

from traces.capture.ggml_tensor import Tensor
from traces.errors import InputError

SMALLEST = 1 << 20
TENSORS_A_BLOCK = 16
"""A block has room for this many of the size it is made for: a graph's tensors are much alike."""
_I8 = 24  # GGML_TYPE_I8
_PTR = C.c_void_p


class KeptMemory:
    """Blocks of memory, of the same kind as that of the tensors whose place they take."""

    def __init__(self, library: C.CDLL) -> None:
        try:
            self.type_of = library.ggml_backend_buffer_get_type
            """Its C function is called by the compiled half of the callback."""
            self._allocate = library.ggml_backend_buft_alloc_buffer
            self._base = library.ggml_backend_buffer_get_base
            self._free = library.ggml_backend_buffer_free
        except AttributeError as e:
            raise InputError(
                f"this libllama is too old for a capture ({e}); use the one of the capture extra: "
                "pip install 'uvmsim[capture]'"
            ) from None
        self._allocate.restype, self._allocate.argtypes = _PTR, (_PTR, C.c_size_t)
        self._base.restype, self._base.argtypes = _PTR, (_PTR,)
        self._free.restype, self._free.argtypes = None, (_PTR,)
        self._buffers: list[int] = []
        self._wholes: list[Any] = []
        self.ranges: list[tuple[int, int]] = []
        """Address and bytes of each block."""

    def add(self, buffer_type: int, n_bytes: int) -> tuple[int, int, int, int] | None:
        """A new block for tensors of ``n_bytes``: its buffer, address, size, and a tensor that is
        the whole of it. None where the back end has no memory left."""
        size = max(SMALLEST, TENSORS_A_BLOCK * n_bytes)
        buffer = self._allocate(buffer_type, size)
        if not buffer and size > n_bytes:
            size = n_bytes
            buffer = self._allocate(buffer_type, size)
        if not buffer:
            return None
        base = self._base(buffer)
        whole = Tensor(type=_I8, buffer=buffer, data=base, name=b"kept by uvmsim")
        whole.ne[:] = (size, 1, 1, 1)
        whole.nb[:] = (1, size, size, size)
        self._buffers.append(buffer)
        self._wholes.append(whole)
        self.ranges.append((base, size))
        return buffer, base, size, C.addressof(whole)

    def close(self) -> None:
        """Give it back. No graph that uses it may run any more."""
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            self._free(buffer)
