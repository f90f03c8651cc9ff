"""Compiled functions that are kept on disk where that is possible."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from numba import njit

_told = False


def compiled(**options: Any) -> Callable[[Any], Any]:
    """A decorator: Numba's ``njit(cache=True)`` with more ``options``.

    Numba raises, when a module is imported, where neither the module's folder nor a cache folder of
    the user can be written (a read-only container, a system-wide install without a home). The
    function is then compiled anew in each process, which is said once on standard error.
    """

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as err:
            if "no locator available" not in str(err):
                raise
        _tell()
        return njit(**options)(function)

    return decorate


def kept_anew(function: Any) -> bool:
    """Whether this process compiled a function of `compiled` and keeps it on disk for the next."""
    return not _told and bool(sum(function.stats.cache_misses.values()))


def _tell() -> None:
    global _told
    if not _told:
        _told = True
        print(
            "note: no folder to keep compiled code in, so it is compiled again at every start; "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            file=sys.stderr,
        )
