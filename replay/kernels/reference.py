"""What the CUDA kernels compute, in NumPy: slow, plain, and the host backend's own arithmetic.

Sums are taken in another order than on the GPU, so the two agree to rounding, not to the bit.
Within this file a row's result depends on the weights and its input alone.
"""

from __future__ import annotations

import numpy as np

from replay.layout import ExpertLayout

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of a 4-bit weight (OCP Microscaling Formats 1.0, table 5)."""

BIAS_SCALE = 2.0**-16
"""What one unit of the tail's bytes adds to an output."""


def matrices(data: np.ndarray, layout: ExpertLayout) -> list[np.ndarray]:
    """Gate and up float32 [n_ff, n_embd], down float32 [n_embd, n_ff] of an expert's bytes."""
    shapes = [(layout.n_ff, layout.n_embd)] * 2 + [(layout.n_embd, layout.n_ff)]
    out = []
    for i, (rows, cols) in enumerate(shapes):
        raw = data[i * layout.plane : (i + 1) * layout.plane]
        if layout.dtype == "mxfp4":
            at = 3 * layout.plane + i * layout.scales
            out.append(_mxfp4(raw, data[at : at + layout.scales], rows, cols))
        elif layout.dtype == "bf16":
            wide = raw.copy().view(np.uint16).astype(np.uint32) << np.uint32(16)
            out.append(wide.view(np.float32).reshape(rows, cols))
        else:
            kind = np.float16 if layout.dtype == "fp16" else np.float32
            out.append(raw.copy().view(kind).astype(np.float32).reshape(rows, cols))
    return out


def _mxfp4(nibbles: np.ndarray, scales: np.ndarray, rows: int, cols: int) -> np.ndarray:
    q = nibbles.reshape(rows, cols // 32, 16)
    block = E2M1[np.concatenate([q & 15, q >> 4], axis=2)]
    scale = np.ldexp(np.float32(1), scales.astype(np.int32) - 127).reshape(rows, cols // 32, 1)
    return (block * scale).reshape(rows, cols)


def bias(data: np.ndarray, layout: ExpertLayout) -> np.ndarray:
    """float32 [n_embd]: each output row adds up an equal share of the tail's bytes."""
    share = -(-layout.tail // layout.n_embd)
    padded = np.zeros(share * layout.n_embd, np.int64)
    padded[: layout.tail] = data[layout.tail_at :]
    total = padded.reshape(layout.n_embd, share).sum(axis=1) if share else np.zeros(layout.n_embd)
    return (total * BIAS_SCALE).astype(np.float32)


def expert(data: np.ndarray, layout: ExpertLayout, x: np.ndarray) -> np.ndarray:
    """float32 [rows, n_embd]: ``down @ (silu(gate @ x) * (up @ x)) + bias`` of each row of ``x``."""
    gate, up, down = matrices(data, layout)
    extra = bias(data, layout)
    out = np.empty((len(x), layout.n_embd), np.float32)
    for i, row in enumerate(x):
        v = row[: layout.n_embd]
        with np.errstate(all="ignore"):  # wrong bytes may be any number, and are then found out
            g, u = (gate * v).sum(axis=1), (up * v).sum(axis=1)
            hidden = g / (1 + np.exp(-g)) * u
            out[i] = (down * hidden).sum(axis=1) + extra
    return out
