"""Arithmetic that Python's operators do not have, on uint64 registers (instruction-set.rst,
"Arithmetic instructions"): division by 0 gives 0, the rest of one the dividend; the least number by
-1 wraps."""

from __future__ import annotations

import numpy as np

_0, _1 = np.uint64(0), np.uint64(1)
_LOW, _SIGN32 = np.uint64(0xFFFFFFFF), np.uint64(0x80000000)
_8, _16, _32 = np.uint64(8), np.uint64(16), np.uint64(32)
_EVEN8 = np.uint64(0x00FF00FF00FF00FF)
_EVEN16 = np.uint64(0x0000FFFF0000FFFF)
_SIGN64 = np.uint64(1 << 63)


def div(a, b):
    """Unsigned."""
    return a // b if b != _0 else _0


def mod(a, b):
    """Unsigned."""
    return a % b if b != _0 else a


def magnitude(a):
    """Absolute value of a signed number, as an unsigned one."""
    return _0 - a if a & _SIGN64 else a


def sdiv(a, b):
    """Signed, 64 bits, towards 0."""
    if b == _0:
        return _0
    q = magnitude(a) // magnitude(b)
    return _0 - q if (a ^ b) & _SIGN64 else q


def smod(a, b):
    """Signed, 64 bits, with the dividend's sign."""
    if b == _0:
        return a
    r = magnitude(a) % magnitude(b)
    return _0 - r if a & _SIGN64 else r


def sext8(a):
    """The low 8 bits with their sign."""
    return np.uint64(np.int64(np.int8(a & np.uint64(0xFF))))


def sext16(a):
    """The low 16 bits with their sign."""
    return np.uint64(np.int64(np.int16(a & np.uint64(0xFFFF))))


def sext32(a):
    """The low 32 bits with their sign."""
    return np.uint64(np.int64(np.int32(a & _LOW)))


def sdiv32(a, b):
    """Signed, 32 bits; the upper half is 0."""
    return sdiv(sext32(a), sext32(b)) & _LOW


def smod32(a, b):
    """Signed, 32 bits; the upper half is 0."""
    return smod(sext32(a), sext32(b)) & _LOW


def arsh(a, n):
    """Shifted right, the sign filling in; ``n`` under 64."""
    return np.uint64(np.int64(a) >> np.int64(n))


def arsh32(a, n):
    """The same of 32 bits; ``n`` under 32."""
    return np.uint64(np.int64(sext32(a)) >> np.int64(n)) & _LOW


def swap64(a):
    """Bytes in reverse."""
    a = ((a >> _8) & _EVEN8) | ((a & _EVEN8) << _8)
    a = ((a >> _16) & _EVEN16) | ((a & _EVEN16) << _16)
    return (a >> _32) | (a << _32)


def swap32(a):
    """The low 4 bytes in reverse, the rest 0."""
    return swap64(a) >> _32


def swap16(a):
    """The low 2 bytes in reverse, the rest 0."""
    return swap64(a) >> np.uint64(48)


def slt(a, b):
    """Whether a < b, signed."""
    return np.int64(a) < np.int64(b)


def sle(a, b):
    """Whether a <= b, signed."""
    return np.int64(a) <= np.int64(b)
