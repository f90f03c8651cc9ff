"""Sums in four lanes, which a vector unit keeps in one register.

LLVM may not reorder sums of floats, so a loop over one is never vectorised. Here four lanes *are* the
order, on every machine, and the vector code is written out: a third of the time of the same loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

LANES = 4


def sums_of_products(a: np.ndarray, b: np.ndarray) -> tuple[np.float32, np.float32]:
    """Sum of ``a * b`` and sum of its squares, of contiguous float32 [n]: element e goes to lane e % 4,
    those after the last whole four to lane 0, and the sum is (0 + 1) + (2 + 3). Each operation is
    rounded."""
    d = a * b
    whole = len(d) // LANES * LANES
    told = []
    for x in (d, d * d):
        lane = np.zeros(LANES, np.float32)
        for four in x[:whole].reshape(-1, LANES):
            lane += four
        for rest in x[whole:]:
            lane[0] += rest
        told.append((lane[0] + lane[1]) + (lane[2] + lane[3]))
    return told[0], told[1]


@type_callable(sums_of_products)
def _typer(context: Any) -> Any:
    def typer(a: Any, b: Any) -> Any:
        for x in (a, b):
            if not isinstance(x, types.Array) or (x.dtype, x.ndim, x.layout) != (
                types.float32, 1, "C",
            ):  # fmt: skip
                return None
        return types.UniTuple(types.float32, 2)

    return typer


@lower_builtin(sums_of_products, types.Array, types.Array)
def _lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    a, b = (
        context.make_array(t)(context, builder, x)
        for t, x in zip(signature.args, args, strict=True)
    )
    n = cgutils.unpack_tuple(builder, a.shape, 1)[0]
    four = ir.VectorType(ir.FloatType(), LANES)
    bits = n.type(LANES.bit_length() - 1)
    sums, squares = (cgutils.alloca_once_value(builder, ir.Constant(four, None)) for _ in "12")

    def add(to: Any, what: Any) -> None:
        builder.store(builder.fadd(builder.load(to), what), to)

    def fours(array: Any, i: Any) -> Any:
        at = builder.bitcast(builder.gep(array.data, [i]), four.as_pointer())
        return builder.load(at, align=4)

    whole = builder.lshr(n, bits)
    with cgutils.for_range(builder, whole) as loop:
        i = builder.shl(loop.index, bits)
        d = builder.fmul(fours(a, i), fours(b, i))
        add(sums, d)
        add(squares, builder.fmul(d, d))
    lanes = [
        [
            cgutils.alloca_once_value(
                builder, builder.extract_element(builder.load(v), ir.IntType(32)(k))
            )
            for k in range(LANES)
        ]
        for v in (sums, squares)
    ]
    with cgutils.for_range_slice(builder, builder.shl(whole, bits), n, n.type(1)) as (i, _):
        d = builder.fmul(
            builder.load(builder.gep(a.data, [i])), builder.load(builder.gep(b.data, [i]))
        )
        add(lanes[0][0], d)
        add(lanes[1][0], builder.fmul(d, d))
    told = []
    for lane in lanes:
        x = [builder.load(v) for v in lane]
        told.append(builder.fadd(builder.fadd(x[0], x[1]), builder.fadd(x[2], x[3])))
    return context.make_tuple(builder, signature.return_type, told)
