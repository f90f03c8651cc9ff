"""Where the parts of an expert lie within its bytes.

fp types: ``gate [n_ff, n_embd] | up [n_ff, n_embd] | down [n_embd, n_ff] | tail``, rows contiguous.
MXFP4: the same order for the nibbles (16 bytes a block of 32 weights, low nibbles the first 16, as
ggml's ``block_mxfp4``), then the blocks' E8M0 scales (1 byte each) in that order, then the tail.
Keeping scales apart costs no byte and makes every block a 16-byte aligned load. The tail is what a
real expert has beside its matrices (biases), or what the chosen shape leaves over.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from traces.errors import InputError

UNITS = {"fp32": (1, 4), "fp16": (1, 2), "bf16": (1, 2), "mxfp4": (32, 17)}
"""Weights and bytes a block of each type."""

STEP = {"fp32": 4, "fp16": 8, "bf16": 8, "mxfp4": 32}
"""Both sides of a matrix are multiples of this: every row is whole 16-byte loads."""

STORED = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "MXFP4": "mxfp4"}
"""Storage types of model files that have a kernel of their own."""


@dataclass(frozen=True)
class ExpertLayout:
    """One layer's experts: their matrices and their bytes."""

    dtype: str
    n_embd: int
    n_ff: int
    nbytes: int

    @property
    def weights(self) -> int:
        """Weights of one of the three matrices."""
        return self.n_embd * self.n_ff

    @property
    def plane(self) -> int:
        """Bytes of one matrix, for MXFP4 without its scales."""
        per, size = UNITS[self.dtype]
        return self.weights // per * (size - 1 if self.dtype == "mxfp4" else size)

    @property
    def scales(self) -> int:
        """Bytes of one matrix's scales."""
        return self.weights // 32 if self.dtype == "mxfp4" else 0

    @property
    def tail_at(self) -> int:
        return 3 * (self.plane + self.scales)

    @property
    def tail(self) -> int:
        return self.nbytes - self.tail_at


def matrix_bytes(dtype: str, n_embd: int, n_ff: int) -> int:
    """Bytes of all three matrices."""
    per, size = UNITS[dtype]
    return 3 * n_embd * n_ff // per * size


def layout_for(
    nbytes: int, dtype: str, n_embd: int | None = None, n_ff: int | None = None
) -> ExpertLayout:
    """A layout of exactly ``nbytes``.

    The model's own shape is taken where its matrices fill at least 95 % of the bytes; else a
    nearly square one that fills them. Raises `InputError` where not even the smallest fits.
    """
    step = STEP[dtype]
    if n_embd and n_ff and n_embd % step == 0 and n_ff % step == 0:
        own = matrix_bytes(dtype, n_embd, n_ff)
        if 0.95 * nbytes <= own <= nbytes:
            return ExpertLayout(dtype, n_embd, n_ff, nbytes)
    per, size = UNITS[dtype]
    weights = nbytes * per // (3 * size)
    side = isqrt(weights) // step * step
    if side == 0:
        least = matrix_bytes(dtype, step, step)
        raise InputError(
            f"an expert of {nbytes} bytes cannot hold {dtype} matrices; give `expert_size` "
            f"{least}B or more, or another `dtype`"
        )
    return ExpertLayout(dtype, side, weights // side // step * step, nbytes)


def dtype_of(quantisation: str) -> str:
    """The kernel for a model's storage type: its own, else fp16 matrices of the same bytes."""
    return STORED.get(quantisation.upper(), "fp16")
