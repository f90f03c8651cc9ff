"""Records of migrations held against where pages are: is a recording whole?

A *look* asks the page table which managed pages the CPU has mapped (`traces.capture.residency`). A page
that was mapped at one look and is not at the next has moved to the GPU between, and the other way round
back: of each such page the last record must say so. What has none is missing, to the page.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from traces.capture.residency import PAGE, managed_ranges, on_host

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Look:
    """Where the managed pages were at a time."""

    time_ns: int
    ranges: Ranges
    """(address, bytes) of allocations, ascending."""
    mapped: list[np.ndarray]
    """bool [pages] of each: mapped by the CPU."""

    @staticmethod
    def now(time_ns: int, ranges: Ranges | None = None) -> Look:
        """Raises `OSError` where the kernel does not tell."""
        ranges = managed_ranges() if ranges is None else ranges
        return Look(time_ns, ranges, [on_host(at, n) for at, n in ranges])

    def on_gpu_bytes(self) -> int:
        """Of the pages that the CPU has not mapped; those nobody ever touched are among them."""
        return sum(int((~m).sum()) * PAGE for m in self.mapped)


class Looks:
    """The looks of a recording, and the migrations it recorded meanwhile."""

    def __init__(self) -> None:
        self.taken: list[Look] = []
        self._moves: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.taken)

    def take(self, time_ns: int) -> str | None:
        """Look now; why it could not be done, or None. Everything the GPU was given must be done."""
        try:
            self.taken.append(Look.now(time_ns))
        except OSError as e:
            return f"where pages are could not be asked ({e.strerror or e})"
        return None

    @property
    def ranges(self) -> Ranges:
        """The allocations at the last look."""
        return self.taken[-1].ranges if self.taken else []

    def note(
        self, time_ns: np.ndarray, address: np.ndarray, nbytes: np.ndarray, inward: np.ndarray
    ) -> None:
        """Migrations that were recorded, arrays [n]."""
        made = (np.asarray(x).astype(np.int64) for x in (time_ns, address, nbytes, inward))
        self._moves.append(np.column_stack(tuple(made)))

    def compared(self) -> list[dict[str, Any]]:
        """What moved from each look to the next against the records; plain JSON types."""
        m = np.concatenate([np.zeros((0, 4), np.int64), *self._moves])
        return [
            compare(a, b, m[:, 0], m[:, 1], m[:, 2], m[:, 3] == 1).to_json()
            for a, b in pairwise(self.taken)
        ]


@dataclass(frozen=True)
class Compared:
    """What moved between two looks, and what of it the records have. Bytes."""

    from_ns: int
    to_ns: int
    came: int
    """On the GPU, and mapped by the CPU before."""
    came_unrecorded: int
    went: int
    went_unrecorded: int
    recorded_in: int
    """By the records of the time between, in the ranges looked at."""
    recorded_out: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    before: Look, after: Look, time_ns: np.ndarray, address: np.ndarray, nbytes: np.ndarray,
    inward: np.ndarray,
) -> Compared:  # fmt: skip
    """The records of migrations (one row each: time, first byte, bytes, whether to the GPU) against two
    looks. Allocations of only one of the looks are left out."""
    between = (time_ns > before.time_ns) & (time_ns <= after.time_ns)
    order = np.flatnonzero(between)[np.argsort(time_ns[between], kind="stable")]
    address = address[order].astype(np.int64)
    nbytes, inward = nbytes[order].astype(np.int64), inward[order]
    totals = dict.fromkeys(("came", "came_unrecorded", "went", "went_unrecorded"), 0)
    recorded = [0, 0]
    known = dict(zip(before.ranges, before.mapped, strict=True))
    for where, mapped in zip(after.ranges, after.mapped, strict=True):
        if where not in known:
            continue
        was, at, size = known[where], where[0] // PAGE * PAGE, len(mapped) * PAGE
        mine = (address >= at) & (address + nbytes <= at + size)
        last = _last_way(address[mine] - at, nbytes[mine], inward[mine], len(mapped))
        for way in (0, 1):
            recorded[way] += int(nbytes[mine & (inward == bool(way))].sum())
        for name, moved, code in (("came", was & ~mapped, 1), ("went", ~was & mapped, 0)):
            totals[name] += int(moved.sum()) * PAGE
            totals[f"{name}_unrecorded"] += int((moved & (last != code)).sum()) * PAGE
    return Compared(
        before.time_ns, after.time_ns, **totals, recorded_in=recorded[1], recorded_out=recorded[0]
    )


def _last_way(at: np.ndarray, nbytes: np.ndarray, inward: np.ndarray, pages: int) -> np.ndarray:
    """int8 [pages]: 1 where the last record of a page says to the GPU, 0 from it, -1 without one."""
    last = np.full(pages, -1, np.int8)
    first, n = at // PAGE, nbytes // PAGE
    ends = np.cumsum(n)
    total = int(ends[-1]) if len(ends) else 0
    page = np.repeat(first, n) + np.arange(total) - np.repeat(ends - n, n)
    last[page] = np.repeat(inward, n)  # of equal places NumPy keeps the last, and rows are in time
    return last
