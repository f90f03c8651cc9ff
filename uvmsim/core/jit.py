"""How kernels are compiled: the options, each with what it is for."""

from typing import Any

from numba import njit

KERNEL_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False}
"""``_nrt=False`` compiles without reference counts: the kernels own no array, and counting every
array of every NamedTuple at every call made a 1.2 M access run 5.6 times slower. A hook that makes
an array does not compile, which its author is told."""

INNER_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
"""For functions called by compiled code only: no wrapper for Python is built, which for arguments of
a dozen arrays takes a third of the compile time."""

CHECKED_OPTIONS: dict[str, Any] = {"boundscheck": True}
"""For hooks of users' own files: an index outside an array is an error with a line, not rubbish."""

inner: Any = njit(**INNER_OPTIONS)
kernel_part: Any = njit(**(INNER_OPTIONS | KERNEL_OPTIONS))
"""The same, callable from kernels without reference counts."""
inlined: Any = njit(**(INNER_OPTIONS | KERNEL_OPTIONS | {"forceinline": True}))
"""The same, put into its caller by LLVM: a state of fifty arrays is 4 kB to hand over at every call."""
