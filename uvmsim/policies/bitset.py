"""A set of small integers as bits, with summaries of summaries: the highest member below a bound is
found in a few steps however large the set."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from uvmsim.policies.lists import inner

SIX, LOW, ONE, ALL = np.uint64(6), np.uint64(63), np.uint64(1), np.uint64(2**64 - 1)


class BitSet(NamedTuple):
    """uint64 words of four levels: a bit of a level says whether that word below it has any."""

    low: np.ndarray
    mid: np.ndarray
    high: np.ndarray
    top: np.ndarray


def new_bitset(size: int) -> BitSet:
    """An empty set of integers below ``size``."""
    levels = []
    for _ in range(4):
        size = size // 64 + 1
        levels.append(np.zeros(size, np.uint64))
    return BitSet(*levels)


def top_bit(word: Any) -> int:
    """Number of the highest set bit of a word that is not 0."""
    return int(word).bit_length() - 1


@intrinsic
def _leading_zeros(typing_context, word):
    def codegen(context, builder, signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


@overload(top_bit)
def _top_bit(word):
    return lambda word: np.int64(LOW - _leading_zeros(word))


# Unsigned places throughout: an index that cannot be negative needs no check (a fifth of the time).


@inner
def _mark(level, x):
    """Set bit ``x`` of a level; True if its word was empty."""
    word = level[x >> SIX]
    level[x >> SIX] = word | (ONE << (x & LOW))
    return word == 0


@inner
def _unmark(level, x):
    """Clear bit ``x`` of a level; True if its word is empty now."""
    word = level[x >> SIX] ^ (ONE << (x & LOW))
    level[x >> SIX] = word
    return word == 0


@inner
def set_bit(s, x):
    """Add ``x``."""
    x = np.uint64(x)
    if _mark(s.low, x) and _mark(s.mid, x >> SIX) and _mark(s.high, x >> SIX >> SIX):
        _mark(s.top, x >> SIX >> SIX >> SIX)


@inner
def clear_bit(s, x):
    """Remove ``x``, which must be a member."""
    x = np.uint64(x)
    if _unmark(s.low, x) and _unmark(s.mid, x >> SIX) and _unmark(s.high, x >> SIX >> SIX):
        _unmark(s.top, x >> SIX >> SIX >> SIX)


@inner
def _at_most(level, x):
    """Bits of the word of ``x`` that are not above it."""
    return level[x >> SIX] & (ALL >> (LOW - (x & LOW)))


@inner
def _below(level, x):
    """Bits of the word of ``x`` that are below it."""
    return level[x >> SIX] & ((ONE << (x & LOW)) - ONE)


@inner
def _join(x, word):
    return (x & ~LOW) | np.uint64(top_bit(word))


@inner
def _down(level, x):
    """From a word's number to its highest member."""
    return (x << SIX) | np.uint64(top_bit(level[x]))


@inner
def highest(s, bound):
    """The highest member that is at most ``bound``; -1 if there is none."""
    if bound < 0:
        return np.int64(-1)
    x = np.uint64(bound)
    word = _at_most(s.low, x)
    if word != 0:
        return np.int64(_join(x, word))
    x >>= SIX
    word = _below(s.mid, x)
    if word != 0:
        return np.int64(_down(s.low, _join(x, word)))
    x >>= SIX
    word = _below(s.high, x)
    if word != 0:
        return np.int64(_down(s.low, _down(s.mid, _join(x, word))))
    x >>= SIX
    word = _below(s.top, x)
    w = np.int64(x >> SIX)
    while word == 0:
        w -= 1
        if w < 0:
            return np.int64(-1)
        word = s.top[w]
    x = np.uint64(w << 6) | np.uint64(top_bit(word))
    return np.int64(_down(s.low, _down(s.mid, _down(s.high, x))))
