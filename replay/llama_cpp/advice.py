"""Move llama.cpp's managed memory to the host and keep it there, mapped on the GPU.

What an LD_PRELOAD of cudaMallocManaged with cudaMemAdvise does for a program, done to its buffers once
they are there: preferred location CPU, accessed by the GPU, prefetched to the host.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

from traces.errors import InputError

PREFERRED_LOCATION, ACCESSED_BY = 3, 5  # CU_MEM_ADVISE_SET_PREFERRED_LOCATION, _SET_ACCESSED_BY
HOST = -1  # CU_DEVICE_CPU


def keep_on_host(library: Any, buffers: dict[int, int]) -> int:
    """Advise and prefetch buffers (address of a ``ggml_backend_buffer`` -> unused); bytes of them.

    Host buffers are left out. Raises `InputError` where the driver refuses.
    """
    c = library.c
    c.ggml_backend_buffer_get_base.restype = C.c_void_p
    c.ggml_backend_buffer_get_base.argtypes = (C.c_void_p,)
    c.ggml_backend_buffer_get_size.restype = C.c_size_t
    c.ggml_backend_buffer_get_size.argtypes = (C.c_void_p,)
    c.ggml_backend_buffer_is_host.restype = C.c_bool
    c.ggml_backend_buffer_is_host.argtypes = (C.c_void_p,)
    driver = C.CDLL("libcuda.so.1")
    total = 0
    for buffer in buffers:
        if c.ggml_backend_buffer_is_host(buffer):
            continue
        base, size = c.ggml_backend_buffer_get_base(buffer), c.ggml_backend_buffer_get_size(buffer)
        if not base or not size:
            continue
        at, n = C.c_uint64(base), C.c_size_t(size)
        for code in (
            driver.cuMemAdvise(at, n, PREFERRED_LOCATION, HOST),
            driver.cuMemAdvise(at, n, ACCESSED_BY, 0),
            driver.cuMemPrefetchAsync(at, n, HOST, None),
        ):
            if code:
                raise InputError(
                    f"the CUDA driver refuses to keep memory on the host (error {code})"
                )
        total += size
    if code := driver.cuCtxSynchronize():
        raise InputError(f"the CUDA driver could not move memory to the host (error {code})")
    return total
