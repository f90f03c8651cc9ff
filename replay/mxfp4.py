"""MXFP4 rows times activations in integers, as the CPU's experts compute them.

Twice a 4-bit weight's value is an integer (0 1 2 3 4 6 8 12, E2M1), and activations become 16-bit
integers with a scale for each block of 32, as llama.cpp's CPU kernels do with 8 bits. A block is then a
sum of integer products, exact, and two floats a block carry the scales. What the functions of vectors
compute is what their Python says, on every machine, bit for bit; compiled, they are vector code written
out (LLVM's own vectors, no instruction set named: any CPU runs it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from traces.jit import compiled

BLOCK = 32
LANES = 8
TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16)
MOST = np.float32(32767)
LEAST = np.float32(1e-30)
"""A block whose largest activation is below this counts as zeros: its reciprocal might overflow."""


@compiled(nogil=True, error_model="numpy")
def quantise(values, whole, scales):  # type: ignore[no-untyped-def]
    """Make integers of activations: ``values`` (float32, at least n) are ``whole`` (int16 [n], whole
    blocks) times twice their block's scale (``scales``, float32 [n / 32]), within 2**-16 of the block's
    largest; halved, because weights come doubled. What is not finite gives a scale that is not."""
    for b in range(len(scales)):
        at = BLOCK * b
        # As integers, so that what is not a number is the largest of all.
        bits = values[at : at + BLOCK].view(np.int32)
        top = np.empty(1, np.int32)
        most = np.int32(0)
        for j in range(BLOCK):
            most = max(most, bits[j] & np.int32(0x7FFFFFFF))
        top[0] = most
        largest = top.view(np.float32)[0]
        if largest < LEAST:
            scales[b] = 0
            for j in range(BLOCK):
                whole[at + j] = 0
            continue
        scales[b] = largest * (np.float32(0.5) / MOST)
        if not largest < np.inf:
            continue
        up = MOST / largest
        for j in range(BLOCK):
            whole[at + j] = np.int16(np.rint(values[at + j] * up))


def unpack(
    data: np.ndarray, at: int, scales_at: int, whole: np.ndarray, scales: np.ndarray
) -> None:
    """Write a row's weights, doubled, to ``whole`` (int16 [n], whole blocks) and its scales to
    ``scales`` (float32 [n / 32]); ``data`` uint8, of which the row's nibbles begin at ``at`` and its
    E8M0 bytes at ``scales_at``."""
    blocks = data[at : at + len(whole) // 2].reshape(-1, BLOCK // 2)
    whole[:] = TWICE[np.concatenate((blocks & 15, blocks >> 4), axis=1)].reshape(-1)
    bits = data[scales_at : scales_at + len(scales)].astype(np.int32) << 23
    scales[:] = bits.view(np.float32)


def product(weights: np.ndarray, by: np.ndarray, x: np.ndarray, x_by: np.ndarray) -> np.float32:
    """A row times a token: ``weights``, ``x`` int16 [n], whole blocks; ``by``, ``x_by`` float32
    [n / 32].

    Lane l of eight adds up, over blocks, elements 2l, 2l + 1, 2l + 16 and 2l + 17 as integers, times
    both scales; lanes are then added by halves. Each operation on floats is rounded."""
    terms = (weights.astype(np.int32) * x).reshape(-1, 2, LANES, 2).sum(axis=(1, 3))
    lanes = np.zeros(LANES, np.float32)
    for four, a, b in zip(terms, by, x_by, strict=True):
        lanes += four.astype(np.float32) * (a * b)
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return np.float32(lanes[0])


BYTE, SHORT, INT, FLOAT = (*(ir.IntType(n) for n in (8, 16, 32)), ir.FloatType())


def _arrays(wanted: dict[int, Any], given: tuple[Any, ...]) -> bool:
    return all(
        isinstance(given[i], types.Array)
        and (given[i].dtype, given[i].ndim, given[i].layout) == (dtype, 1, "C")
        for i, dtype in wanted.items()
    )


@type_callable(unpack)
def _type_unpack(context: Any) -> Any:
    def typer(data: Any, at: Any, scales_at: Any, whole: Any, scales: Any) -> Any:
        given = (data, at, scales_at, whole, scales)
        fit = _arrays({0: types.uint8, 3: types.int16, 4: types.float32}, given)
        return types.none(data, types.intp, types.intp, whole, scales) if fit else None

    return typer


@type_callable(product)
def _type_product(context: Any) -> Any:
    def typer(weights: Any, by: Any, x: Any, x_by: Any) -> Any:
        wanted = {0: types.int16, 1: types.float32, 2: types.int16, 3: types.float32}
        return types.float32 if _arrays(wanted, (weights, by, x, x_by)) else None

    return typer


def _vector(builder: Any, pointer: Any, element: Any, n: int) -> Any:
    """Where ``n`` elements lie, as a vector."""
    return builder.bitcast(pointer, ir.VectorType(element, n).as_pointer())


def _all(element: Any, n: int, value: int) -> Any:
    return ir.Constant(ir.VectorType(element, n), [value] * n)


def _pick(builder: Any, vector: Any, places: Any) -> Any:
    mask = ir.Constant(ir.VectorType(INT, len(places)), list(places))
    return builder.shuffle_vector(vector, vector, mask)


def _doubled(builder: Any, codes: Any) -> Any:
    """`TWICE` of a vector of 32 codes (bytes): above 4 and 6 the steps are larger; then the sign."""
    vector = codes.type

    def over(least: int) -> Any:
        above = builder.icmp_unsigned(">", size, _all(BYTE, BLOCK, least))
        beyond = builder.sub(size, _all(BYTE, BLOCK, least))
        return builder.select(above, beyond, _all(BYTE, BLOCK, 0))

    size = builder.and_(codes, _all(BYTE, BLOCK, 7))
    more = over(6)
    value = builder.add(builder.add(size, over(4)), builder.add(more, more))
    negative = builder.icmp_unsigned(">", codes, _all(BYTE, BLOCK, 7))
    return builder.select(negative, builder.sub(ir.Constant(vector, None), value), value)


@lower_builtin(unpack, types.Array, types.Integer, types.Integer, types.Array, types.Array)
def _lower_unpack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data, at, scales_at, whole, scales = args
    data, whole, scales = (
        context.make_array(signature.args[i])(context, builder, x)
        for i, x in ((0, data), (3, whole), (4, scales))
    )
    n = cgutils.unpack_tuple(builder, scales.shape, 1)[0]
    half = BLOCK // 2
    with cgutils.for_range(builder, n) as loop:
        b = loop.index
        place = builder.add(at, builder.mul(b, b.type(half)))
        q = builder.load(_vector(builder, builder.gep(data.data, [place]), BYTE, half), align=1)
        low = builder.and_(q, _all(BYTE, half, 15))
        high = builder.lshr(q, _all(BYTE, half, 4))
        both = ir.Constant(ir.VectorType(INT, BLOCK), list(range(BLOCK)))
        value = _doubled(builder, builder.shuffle_vector(low, high, both))
        to = builder.gep(whole.data, [builder.mul(b, b.type(BLOCK))])
        wide = builder.sext(value, ir.VectorType(SHORT, BLOCK))
        builder.store(wide, _vector(builder, to, SHORT, BLOCK), align=2)
        e = builder.load(builder.gep(data.data, [builder.add(scales_at, b)]))
        bits = builder.shl(builder.zext(e, INT), INT(23))
        builder.store(builder.bitcast(bits, FLOAT), builder.gep(scales.data, [b]))
    return context.get_dummy_value()


@lower_builtin(product, types.Array, types.Array, types.Array, types.Array)
def _lower_product(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    weights, by, x, x_by = (
        context.make_array(t)(context, builder, a)
        for t, a in zip(signature.args, args, strict=True)
    )
    n = cgutils.unpack_tuple(builder, by.shape, 1)[0]
    lanes = ir.VectorType(FLOAT, LANES)
    total = cgutils.alloca_once_value(builder, ir.Constant(lanes, None))
    half = BLOCK // 2
    wide = ir.VectorType(INT, half)

    def halves(array: Any, place: Any) -> Any:
        at = _vector(builder, builder.gep(array.data, [place]), SHORT, half)
        return builder.sext(builder.load(at, align=2), wide)

    with cgutils.for_range(builder, n) as loop:
        b = loop.index
        terms = None
        for part in range(2):
            place = builder.add(builder.mul(b, b.type(BLOCK)), b.type(part * half))
            p = builder.mul(halves(weights, place), halves(x, place))
            # Neighbours' products added: one instruction where the machine has it (pmaddwd).
            pairs = builder.add(
                _pick(builder, p, range(0, half, 2)), _pick(builder, p, range(1, half, 2))
            )
            terms = pairs if terms is None else builder.add(terms, pairs)
        scale = builder.fmul(
            builder.load(builder.gep(by.data, [b])), builder.load(builder.gep(x_by.data, [b]))
        )
        one = builder.insert_element(ir.Constant(lanes, None), scale, INT(0))
        scaled = builder.fmul(builder.sitofp(terms, lanes), _pick(builder, one, [0] * LANES))
        builder.store(builder.fadd(builder.load(total), scaled), total)
    left = builder.load(total)
    for n_left in (4, 2, 1):
        left = builder.fadd(
            _pick(builder, left, range(n_left)), _pick(builder, left, range(n_left, 2 * n_left))
        )
    return builder.extract_element(left, INT(0))
