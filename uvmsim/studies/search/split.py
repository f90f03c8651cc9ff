"""A trace in three: to search on, to choose by, to report on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE
from traces.routing import RoutingTrace

PARTS = ("train", "validation", "test")
SHARES = (0.5, 0.25, 0.25)
LEAST = 0.5
"""A part must get this much of its share, or sequences are too long to split by."""
FEWEST = 32
"""Tokens a part needs at least."""


@dataclass(frozen=True)
class Split:
    """Parts of a trace in the order of `PARTS`, and how it was cut, in a line."""

    parts: tuple[RoutingTrace, ...]
    by: str
    """``sequence`` or ``token``."""
    note: str


def split(t: RoutingTrace) -> Split:
    """Half of the trace, a quarter and a quarter, each a stretch of it; policies begin each anew.

    Whole sequences where that comes near enough; else, and where sequences run side by side in one
    forward pass or take turns, whole forward passes. Shares are of decoded tokens where there are
    any. Raises `InputError` where the trace is too short.
    """
    name = t.path.name if t.path else "trace"
    weight = counted(t)
    if weight.sum() < FEWEST / min(SHARES):
        raise InputError(
            f"{name}: {weight.sum()} tokens are too few to split in three; record "
            f"{round(FEWEST / min(SHARES))} or more"
        )
    d = t.dense
    change = np.flatnonzero(np.diff(d.seq)) + 1
    together = len(change) + 1 > len(np.unique(d.seq)) or bool(
        np.isin(change, _inside_steps(d.step)).any()
    )
    ends = None if together else _cut(weight, change)
    if ends is not None:
        counts = [len(np.unique(d.seq[lo:hi])) for lo, hi in _spans(ends, len(d.seq))]
        told = ", ".join(f"{n} {p}" for n, p in zip(counts, PARTS, strict=True))
        return Split(_parts(t, ends), "sequence", f"{name}: split by sequence ({told})")
    ends = _cut(weight, np.flatnonzero(np.diff(d.step)) + 1)
    if ends is None:
        raise InputError(f"{name}: its forward passes are too large to split in three; record more")
    why = "sequences run together" if together else "one sequence"
    if len(change) and not together:
        why = f"{len(change) + 1} sequences are too few or too uneven"
    return Split(_parts(t, ends), "token", f"{name}: {why}, so it is split by token")


def counted(t: RoutingTrace) -> np.ndarray:
    """int64 [tokens], 1 for those whose speed is asked for: decoded ones, or all if none are."""
    decode = (t.dense.phase == DECODE).astype(np.int64)
    return decode if decode.any() else np.ones_like(decode)


def _inside_steps(step: np.ndarray) -> np.ndarray:
    """Token numbers at which no forward pass begins."""
    return np.flatnonzero(np.diff(step) == 0) + 1


def _cut(weight: np.ndarray, at: np.ndarray) -> tuple[int, int] | None:
    """The two of the places ``at`` that come nearest to the shares; None where none come near."""
    if len(at) < 2:
        return None
    before = np.concatenate(([0], np.cumsum(weight)))
    total = before[-1]
    # The first cut leaves a place for the second.
    first = int(np.abs(before[at[:-1]] - SHARES[0] * total).argmin())
    rest = at[first + 1 :]
    second = int(np.abs(before[rest] - (SHARES[0] + SHARES[1]) * total).argmin())
    ends = int(at[first]), int(rest[second])
    got = np.diff([0, *(before[list(ends)]), total])
    near = all(g >= LEAST * s * total and g >= FEWEST for g, s in zip(got, SHARES, strict=True))
    return ends if near else None


def _spans(ends: tuple[int, int], n: int) -> list[tuple[int, int]]:
    return [(0, ends[0]), (ends[0], ends[1]), (ends[1], n)]


def _parts(t: RoutingTrace, ends: tuple[int, int]) -> tuple[RoutingTrace, ...]:
    return tuple(t.select(slice(lo, hi)) for lo, hi in _spans(ends, t.n_tokens))
