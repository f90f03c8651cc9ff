"""Checksums that do not depend on the order in which their parts are added.

Integer sums of mixed words: a GPU may add them with atomics, in any order, and get the same 64 bits
as NumPy. Every word is mixed with its position, so bytes that changed places show.
"""

from __future__ import annotations

import numpy as np

STRIDE = np.uint32(0x9E3779B1)
FACTOR = np.uint64(0x9E3779B97F4A7C15)
WORDS_AT_A_TIME = 1 << 18


def checksum(data: np.ndarray) -> int:
    """64-bit checksum of bytes (uint8 [n]), read as little-endian 32-bit words, zero-padded."""
    whole = len(data) // 4 * 4
    words = np.frombuffer(data[:whole].tobytes() if data.ctypes.data % 4 else data[:whole], "<u4")
    total = 0
    for at in range(0, len(words), WORDS_AT_A_TIME):
        total += _sum(words[at : at + WORDS_AT_A_TIME], at)
    if whole < len(data):
        last = np.zeros(4, np.uint8)
        last[: len(data) - whole] = data[whole:]
        total += _sum(last.view("<u4"), whole // 4)
    return total & 0xFFFFFFFFFFFFFFFF


def _sum(words: np.ndarray, first: int) -> int:
    index = np.arange(first, first + len(words), dtype=np.uint64).astype(np.uint32)
    z = (words ^ (index * STRIDE)).astype(np.uint64) * FACTOR
    z ^= z >> np.uint64(29)
    return int(z.sum(dtype=np.uint64))


def row_hash(row: np.ndarray) -> int:
    """The checksum of one output row (float32 [n_embd])."""
    return checksum(np.ascontiguousarray(row, np.float32).view(np.uint8))


def splitmix64(value: int) -> int:
    """One step of SplitMix64 (Steele, Lea, Flood 2014): a number to a well-mixed number."""
    mask = 0xFFFFFFFFFFFFFFFF
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
