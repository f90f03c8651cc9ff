"""Experts computed by the CPU, on the weights where they lie in host memory.

``down @ (silu(gate @ x) * (up @ x)) + bias`` as the CUDA kernels have it (`replay.kernels.reference`),
by all threads: rows of the matrices are shared out, each is decoded once and multiplied with every
token. Floats are multiplied as float32; MXFP4 with activations of 16 bits, in integers
(`replay.mxfp4`). Either differs from the GPU: `TOLERANCE`. A row's result depends on the weights and
its input alone, bit for bit, whatever else is in the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import get_num_threads, prange

from replay.layout import ExpertLayout
from replay.mxfp4 import BLOCK, product, quantise, unpack
from traces.jit import compiled

TOLERANCE = 1e-4
"""Largest difference from the GPU's result, relative to the largest output of the expert: sums of some
thousand float32 products in another order differ by some 1e-6 of it; with activations of 16 bits
4.2e-5 was the most of a million outputs."""
KINDS = {"fp32": 0, "fp16": 1, "bf16": 2}
CHUNKS = 4
"""Pieces of work a thread, so that none waits long for another."""
BIAS_SCALE = np.float32(2.0**-16)
TWO_TO_112 = np.float32(2.0**112)


@compiled(nogil=True, fastmath=True)
def _row(kind, data, at, n, bits):  # type: ignore[no-untyped-def]
    """The ``n`` weights from byte ``at`` on, as float32: where they lie, or in ``bits`` (int32)."""
    if kind == 0:
        return data[at : at + 4 * n].view(np.float32)
    words = data[at : at + 2 * n].view(np.uint16)
    values = bits.view(np.float32)
    if kind == 1:
        for j in range(n):
            h = np.int32(words[j])
            bits[j] = (h & 0x7FFF) << 13 | (h >> 15) << 31
        for j in range(n):
            values[j] *= TWO_TO_112
    else:
        for j in range(n):
            bits[j] = np.int32(words[j]) << 16
    return values


@compiled(nogil=True, fastmath=True)
def _dot(values, x, n):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for j in range(n):
        total += values[j] * x[j]
    return total


@compiled(nogil=True)
def _bias(data, at, end, r, share):  # type: ignore[no-untyped-def]
    """What the tail's bytes ``at`` to ``end`` add to output ``r``."""
    total = np.int64(0)
    for j in range(at + r * share, min(at + (r + 1) * share, end)):
        total += data[j]
    return np.float32(total) * BIAS_SCALE


@compiled(nogil=True, fastmath=True, parallel=True)
def _floats(kind, data, at, row, x_first, n_embd, n_ff, plane, nbytes, x, hidden, out, chunks):  # type: ignore[no-untyped-def]  # fmt: skip
    """``at`` int64 [n]: first byte of each expert; ``row`` int64 [n + 1]: its rows of ``hidden`` and
    ``out``; ``x_first`` int64 [n]: input row of its first token."""
    n = len(at)
    row_bytes = plane // n_ff
    for task in prange(n * chunks):
        e, c = task // chunks, task % chunks
        bits, more = np.empty(n_embd, np.int32), np.empty(n_embd, np.int32)
        for r in range(c * n_ff // chunks, (c + 1) * n_ff // chunks):
            first = at[e] + r * row_bytes
            gate = _row(kind, data, first, n_embd, bits)
            up = _row(kind, data, first + plane, n_embd, more)
            for t in range(row[e], row[e + 1]):
                v = x[(x_first[e] + t - row[e]) % len(x)]
                g, u = _dot(gate, v, n_embd), _dot(up, v, n_embd)
                hidden[t, r] = g / (np.float32(1) + np.exp(-g)) * u
    row_bytes = plane // n_embd
    share = (nbytes - 3 * plane + n_embd - 1) // n_embd
    for task in prange(n * chunks):
        e, c = task // chunks, task % chunks
        bits = np.empty(n_ff, np.int32)
        for r in range(c * n_embd // chunks, (c + 1) * n_embd // chunks):
            down = _row(kind, data, at[e] + 2 * plane + r * row_bytes, n_ff, bits)
            bias = _bias(data, at[e] + 3 * plane, at[e] + nbytes, r, share)
            for t in range(row[e], row[e + 1]):
                out[t, r] = _dot(down, hidden[t], n_ff) + bias


@compiled(nogil=True, parallel=True, error_model="numpy")
def _mxfp4(data, at, row, x_first, n_embd, n_ff, plane, scales, nbytes, inputs, between, out, chunks):  # type: ignore[no-untyped-def]  # fmt: skip
    """As `_floats`; ``inputs`` and ``between`` (what was ``hidden``): int16 and their blocks' scales. A
    piece of work is whole blocks of ``between``, which it makes integers of itself."""
    (x, x_by), (hidden, by) = inputs, between
    n, blocks = len(at), n_ff // BLOCK
    row_bytes, row_blocks = plane // n_ff, n_embd // BLOCK
    for task in prange(n * chunks):
        e, c = task // chunks, task % chunks
        gate, gate_by = np.empty(n_embd, np.int16), np.empty(row_blocks, np.float32)
        up, up_by = np.empty(n_embd, np.int16), np.empty(row_blocks, np.float32)
        made = np.empty((row[e + 1] - row[e], BLOCK), np.float32)
        for b in range(c * blocks // chunks, (c + 1) * blocks // chunks):
            for k in range(BLOCK):
                first = at[e] + (b * BLOCK + k) * row_bytes
                scale = at[e] + 3 * plane + (b * BLOCK + k) * row_blocks
                unpack(data, first, scale, gate, gate_by)
                unpack(data, first + plane, scale + scales, up, up_by)
                for t in range(len(made)):
                    v = (x_first[e] + t) % len(x)
                    g = product(gate, gate_by, x[v], x_by[v])
                    u = product(up, up_by, x[v], x_by[v])
                    made[t, k] = g / (np.float32(1) + np.exp(-g)) * u
            for t in range(len(made)):
                to = row[e] + t
                quantise(made[t], hidden[to][b * BLOCK : (b + 1) * BLOCK], by[to][b : b + 1])
    row_bytes, row_blocks = plane // n_embd, blocks
    tail_at = 3 * (plane + scales)
    share = (nbytes - tail_at + n_embd - 1) // n_embd
    for task in prange(n * chunks):
        e, c = task // chunks, task % chunks
        down, down_by = np.empty(n_ff, np.int16), np.empty(blocks, np.float32)
        for r in range(c * n_embd // chunks, (c + 1) * n_embd // chunks):
            scale = at[e] + 3 * plane + 2 * scales + r * row_blocks
            unpack(data, at[e] + 2 * plane + r * row_bytes, scale, down, down_by)
            bias = _bias(data, at[e] + tail_at, at[e] + nbytes, r, share)
            for t in range(row[e], row[e + 1]):
                out[t, r] = product(down, down_by, hidden[t], by[t]) + bias


class CpuExperts:
    """The CPU's expert calls on one region of host memory, with buffers for their results."""

    def __init__(self, data: np.ndarray, x: np.ndarray, out: np.ndarray, n_ff: int):
        """``data`` uint8: the bank; ``x`` float32 [X_ROWS, width]: input rows, read now; ``out``
        float32 [rows, width]: where results go; ``n_ff``: of the widest expert."""
        self.data, self.x, self.out = data, x.copy(), out
        self.hidden = np.empty((len(out), n_ff), np.float32)
        self.chunks = CHUNKS * get_num_threads()
        width = x.shape[1] // BLOCK * BLOCK
        self._x = _integers(len(x), width)
        for values, whole, by in zip(self.x, *self._x, strict=True):
            quantise(values, whole, by)
        self._hidden = _integers(len(out), n_ff // BLOCK * BLOCK)

    def run(self, layout: ExpertLayout, at: Any, tokens: Any, x_first: Any) -> np.ndarray:
        """Experts at bytes ``at`` of the bank, ``tokens`` each; returns float32 [tokens of all,
        n_embd], a view of the buffer, in order. Raises `ValueError` where the buffer is too short."""
        row = np.concatenate(([0], np.cumsum(np.asarray(tokens, np.int64)))).astype(np.int64)
        if row[-1] > len(self.out):
            raise ValueError(f"{row[-1]} rows of results, room for {len(self.out)}")
        at, x_first = np.asarray(at, np.int64), np.asarray(x_first, np.int64)
        if layout.dtype == "mxfp4":
            _mxfp4(
                self.data, at, row, x_first, layout.n_embd, layout.n_ff, layout.plane, layout.scales,
                layout.nbytes, self._x, self._hidden, self.out, self.chunks,
            )  # fmt: skip
        else:
            _floats(
                KINDS[layout.dtype], self.data, at, row, x_first, layout.n_embd, layout.n_ff,
                layout.plane, layout.nbytes, self.x, self.hidden, self.out, self.chunks,
            )  # fmt: skip
        return self.out[: row[-1], : layout.n_embd]


def _integers(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for rows of whole blocks: int16 [rows, width] and their scales (`quantise`)."""
    return np.empty((rows, width), np.int16), np.empty((rows, width // BLOCK), np.float32)


def agrees(got: np.ndarray, want: np.ndarray) -> bool:
    """Whether results are the GPU's (or the reference's), within `TOLERANCE`."""
    scale = np.abs(want).max(initial=0.0)
    return bool(np.isfinite(got).all() and np.abs(got - want).max(initial=0.0) <= TOLERANCE * scale)
