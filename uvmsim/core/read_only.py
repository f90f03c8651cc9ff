"""Arrays that hooks may read and not write: refused by the compiler, not by a promise.

A kernel hands its tables to hooks as `read_only` views. Writing to one does not compile ("Cannot
modify readonly array"), and raises `ValueError` where hooks run as plain Python. `writable` is the way
back, for the actions of a contract (`uvmsim.policies.pages.base.move_head`) that write on a hook's
behalf.

Both cost nothing in compiled code: the same memory under another type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import lower_builtin, type_callable


def read_only(array: np.ndarray) -> np.ndarray:
    """The same memory, not to be written."""
    view = array.view()
    view.flags.writeable = False
    return view


def writable(array: np.ndarray) -> np.ndarray:
    """The memory of a `read_only` view, to be written."""
    view = array.view()
    view.flags.writeable = True
    return view


def _define(function: Any, readonly: bool) -> None:
    """The compiled form: the same array, of another type."""

    @type_callable(function)
    def _(context):  # type: ignore[no-untyped-def]
        def typer(array):  # type: ignore[no-untyped-def]
            if not isinstance(array, types.Array):
                return None
            return types.Array(
                array.dtype, array.ndim, array.layout, readonly, aligned=array.aligned
            )

        return typer

    @lower_builtin(function, types.Array)
    def _(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return impl_ret_borrowed(context, builder, signature.return_type, args[0])


_define(read_only, True)
_define(writable, False)
