"""Experts computed by the CPU, on the weights where they lie in host memory.

``down @ (silu(gate @ x) * (up @ x)) + bias`` as the CUDA kernels have it (`replay.kernels.reference`),
by all threads: rows of both matrices are shared out, each is decoded to float32 and multiplied with
every token. Sums are taken in another order than on the GPU: `TOLERANCE`. A row's result depends on the
weights and its input alone, bit for bit, whatever else is in the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import get_num_threads, prange

from replay.layout import ExpertLayout
from traces.jit import compiled
from uvmsim.core.jit import inner

TOLERANCE = 1e-4
"""Largest difference from the GPU's result, relative to the largest output of the expert: sums of some
thousand float32 products in another order differ by some 1e-6 of it."""
KINDS = {"fp32": 0, "fp16": 1, "bf16": 2, "mxfp4": 3}
CHUNKS = 4
"""Pieces of work a thread, so that none waits long for another."""
BIAS_SCALE = np.float32(2.0**-16)
TWO_TO_112 = np.float32(2.0**112)


@inner
def _beyond(value, least):  # type: ignore[no-untyped-def]
    return value - least if value > least else 0


@compiled(nogil=True, fastmath=True)
def _decode(kind, data, at, scales, n, bits, values):  # type: ignore[no-untyped-def]
    """Write ``n`` weights that begin at byte ``at`` to ``values``, a float32 view of ``bits`` (int32);
    ``scales``: byte of an MXFP4 row's first scale."""
    if kind == 3:
        for b in range(n // 32):
            e = np.int32(data[scales + b])
            bits[0] = e << 23
            half = values[0] * np.float32(0.5)
            for j in range(16):
                q = np.int32(data[at + 16 * b + j])
                low, high = q & 7, (q >> 4) & 7
                # Twice the value of E2M1: 0 1 2 3 4 6 8 12.
                low += _beyond(low, 4) + 2 * _beyond(low, 6)
                high += _beyond(high, 4) + 2 * _beyond(high, 6)
                values[32 * b + j + 1] = np.float32(-low if q & 8 else low) * half
                values[32 * b + j + 17] = np.float32(-high if q & 128 else high) * half
    elif kind == 1:
        for j in range(n):
            h = np.int32(data[at + 2 * j]) | np.int32(data[at + 2 * j + 1]) << 8
            bits[j + 1] = (h & 0x7FFF) << 13 | (h >> 15) << 31
        for j in range(n):
            values[j + 1] *= TWO_TO_112
    elif kind == 2:
        for j in range(n):
            bits[j + 1] = np.int32(data[at + 2 * j]) << 16 | np.int32(data[at + 2 * j + 1]) << 24
    else:
        for j in range(n):
            bits[j + 1] = (
                np.int32(data[at + 4 * j])
                | np.int32(data[at + 4 * j + 1]) << 8
                | np.int32(data[at + 4 * j + 2]) << 16
                | np.int32(data[at + 4 * j + 3]) << 24
            )


@compiled(nogil=True, fastmath=True)
def _dot(values, x, n):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for j in range(n):
        total += values[j + 1] * x[j]
    return total


@compiled(nogil=True, fastmath=True, parallel=True)
def _experts(kind, data, at, row, x_first, n_embd, n_ff, plane, scales, nbytes, x, hidden, out, chunks):  # type: ignore[no-untyped-def]  # fmt: skip
    """``at`` int64 [n]: first byte of each expert; ``row`` int64 [n + 1]: its rows of ``hidden`` and
    ``out``; ``x_first`` int64 [n]: input row of its first token."""
    n = len(at)
    x_rows = x.shape[0]
    row_bytes, row_scales = plane // n_ff, scales // n_ff
    for task in prange(n * chunks):
        e, c = task // chunks, task % chunks
        bits = np.empty(n_embd + 1, np.int32)
        gate = bits.view(np.float32)
        more = np.empty(n_embd + 1, np.int32)
        up = more.view(np.float32)
        for r in range(c * n_ff // chunks, (c + 1) * n_ff // chunks):
            first = at[e] + r * row_bytes
            scale = at[e] + 3 * plane + r * row_scales
            _decode(kind, data, first, scale, n_embd, bits, gate)
            _decode(kind, data, first + plane, scale + scales, n_embd, more, up)
            for t in range(row[e], row[e + 1]):
                v = x[(x_first[e] + t - row[e]) % x_rows]
                g, u = _dot(gate, v, n_embd), _dot(up, v, n_embd)
                hidden[t, r] = g / (np.float32(1) + np.exp(-g)) * u
    row_bytes, row_scales = plane // n_embd, scales // n_embd
    tail_at = 3 * (plane + scales)
    share = (nbytes - tail_at + n_embd - 1) // n_embd
    for task in prange(n * chunks):
        e, c = task // chunks, task % chunks
        bits = np.empty(n_ff + 1, np.int32)
        down = bits.view(np.float32)
        for r in range(c * n_embd // chunks, (c + 1) * n_embd // chunks):
            first = at[e] + 2 * plane + r * row_bytes
            scale = at[e] + 3 * plane + 2 * scales + r * row_scales
            _decode(kind, data, first, scale, n_ff, bits, down)
            bias = np.int64(0)
            for j in range(r * share, min((r + 1) * share, nbytes - tail_at)):
                bias += data[at[e] + tail_at + j]
            for t in range(row[e], row[e + 1]):
                out[t, r] = _dot(down, hidden[t], n_ff) + np.float32(bias) * BIAS_SCALE


class CpuExperts:
    """The CPU's expert calls on one region of host memory, with buffers for their results."""

    def __init__(self, data: np.ndarray, x: np.ndarray, out: np.ndarray, n_ff: int):
        """``data`` uint8: the bank; ``x`` float32 [X_ROWS, width]: input rows; ``out`` float32 [rows,
        width]: where results go; ``n_ff``: of the widest expert."""
        self.data, self.x, self.out = data, x, out
        self.hidden = np.empty((len(out), n_ff), np.float32)
        self.chunks = CHUNKS * get_num_threads()

    def run(self, layout: ExpertLayout, at: Any, tokens: Any, x_first: Any) -> np.ndarray:
        """Experts at bytes ``at`` of the bank, ``tokens`` each; returns float32 [tokens of all,
        n_embd], a view of the buffer, in order. Raises `ValueError` where the buffer is too short."""
        row = np.concatenate(([0], np.cumsum(np.asarray(tokens, np.int64)))).astype(np.int64)
        if row[-1] > len(self.out):
            raise ValueError(f"{row[-1]} rows of results, room for {len(self.out)}")
        _experts(
            KINDS[layout.dtype], self.data, np.asarray(at, np.int64), row,
            np.asarray(x_first, np.int64), layout.n_embd, layout.n_ff, layout.plane, layout.scales,
            layout.nbytes, self.x, self.hidden, self.out, self.chunks,
        )  # fmt: skip
        return self.out[: row[-1], : layout.n_embd]


def agrees(got: np.ndarray, want: np.ndarray) -> bool:
    """Whether results are the GPU's (or the reference's), within `TOLERANCE`."""
    scale = np.abs(want).max(initial=0.0)
    return bool(np.isfinite(got).all() and np.abs(got - want).max(initial=0.0) <= TOLERANCE * scale)
