"""An array of one value, known when the kernel is compiled: what depends on it vanishes."""

from __future__ import annotations

import operator
from typing import NamedTuple

from numba import types
from numba.extending import overload


class Zeros(NamedTuple):
    """``size`` zeros without memory."""

    size: int

    def __getitem__(self, i):
        return 0

    def __len__(self):
        return tuple.__getitem__(self, 0)


class Ones(NamedTuple):
    """``size`` ones without memory."""

    size: int

    def __getitem__(self, i):
        return 1

    def __len__(self):
        return tuple.__getitem__(self, 0)


@overload(operator.getitem)
def _get(x, i):
    if isinstance(x, types.BaseNamedTuple):
        if x.instance_class is Zeros:
            return lambda x, i: 0
        if x.instance_class is Ones:
            return lambda x, i: 1
    return None
