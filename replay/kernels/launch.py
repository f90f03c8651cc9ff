"""Kernel launches without CuPy's packing of arguments, which costs as much as the launch itself.

`cuLaunchKernel` copies the arguments while it is called, so one block of memory per kernel, with a
table of addresses into it, serves every launch; between two only what differs is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""


class Kernel:
    """One function with its arguments. All are 8-byte values (ints use the low half, which comes
    first on every machine CUDA runs on), except a leading struct where ``struct`` is its address."""

    def __init__(
        self, module: Any, name: str, args: list[int], *, struct: int | None = None,
        threads: int = 256, shared: int = 0,
    ):  # fmt: skip
        from cupy_backends.cuda.api import driver

        self._module = module.get_function(name)  # keeps the code loaded
        self._function = self._module.kernel.ptr
        self._launch = driver.launchKernel
        self.values = np.array(args, np.int64)
        """int64: the arguments after the struct; write to change one."""
        first = [] if struct is None else [struct]
        base = self.values.ctypes.data
        self.params = np.array(first + [base + 8 * i for i in range(len(args))], np.uint64)
        self._params = self.params.ctypes.data
        self.threads, self.shared = threads, shared
        if shared > 48 << 10:
            driver.funcSetAttribute(self._function, MAX_DYNAMIC_SHARED, shared)

    def __call__(self, stream: int, x: int, y: int = 1, z: int = 1) -> None:
        self._launch(
            self._function, x, y, z, self.threads, 1, 1, self.shared, stream, self._params, 0
        )
