"""What the driver did in one run, counted: batches, entries, services, pieces, bytes by cause."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from replay.paging.device import Seen
from replay.paging.touches import BIG, BLOCK, PAGE, PAGES

COHERENCE, PREFETCH = 2, 3
"""UvmEventMigrationCause of pages that were faulted on, and of those the tree added."""
CPU = 0
"""Index of the host among processors."""
EDGES = tuple(PAGE << i for i in range(10))
"""Sizes of the histogram of pieces: 4 KiB, 8 KiB, ... 2 MiB; a piece counts where it first fits."""


@dataclass(frozen=True)
class Counts:
    """One run, or one batch of it."""

    batches: int = 0
    entries: int = 0
    """Of the fault buffer, duplicates too."""
    pages: int = 0
    """Distinct faulted pages of each batch, summed."""
    services: int = 0
    """Blocks served, summed over batches."""
    pieces: int = 0
    """Runs of pages of one cause that moved in."""
    moved: int = 0
    """Pages that moved in."""
    big: int = 0
    """Page table entries: 64 KiB pages whose parts moved in, a batch and block each."""
    demanded: int = 0
    """Of the moved pages, those faulted on."""

    def to_json(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def block_of(address: np.ndarray) -> np.ndarray:
    """Number of the 2 MiB block of an address."""
    return (address // np.uint64(BLOCK)).astype(np.int64)


def page_of(address: np.ndarray) -> np.ndarray:
    """Number of the 4 KiB page of an address."""
    return (address // np.uint64(PAGE)).astype(np.int64)


def inward(seen: Seen) -> np.ndarray:
    """The migrations to the GPU."""
    m = seen.moves
    return m[(m["src"] == CPU) & (m["dst"] != CPU)]


def counts(seen: Seen) -> Counts:
    """All that happened."""
    f, m = seen.faults, inward(seen)
    batch, page = f["batch"].astype(np.int64), page_of(f["address"])
    pages = np.unique(np.column_stack((batch, page)), axis=0)
    services = np.unique(np.column_stack((pages[:, 0], pages[:, 1] // PAGES)), axis=0)
    size = m["bytes"].astype(np.int64)
    first, last = m["address"].astype(np.int64) // BIG, (m["address"].astype(np.int64) + size - 1)
    return Counts(
        len(np.unique(batch)), len(f), len(pages), len(services), len(m), int(size.sum()) // PAGE,
        int((last // BIG - first + 1).sum()) if len(m) else 0,
        int(size[m["cause"] == COHERENCE].sum()) // PAGE,
    )  # fmt: skip


def piece_histogram(seen: Seen) -> dict[str, dict[str, int]]:
    """By cause (``demand``, ``prefetch``): pieces by the first of `EDGES` that they fit in."""
    m = inward(seen)
    made: dict[str, dict[str, int]] = {}
    for name, code in (("demand", COHERENCE), ("prefetch", PREFETCH)):
        size = m["bytes"][m["cause"] == code].astype(np.int64)
        found = np.bincount(np.searchsorted(EDGES, size), minlength=len(EDGES)).tolist()
        made[name] = {str(e): n for e, n in zip(EDGES, found, strict=False)}
    return made


def batch_rows(seen: Seen) -> dict[str, np.ndarray]:
    """By batch, in the order of their numbers: ``batch``, ``entries``, ``pages``, ``services``, int64
    [B]; ``first_ns`` and ``last_ns``, when the handler looked at the first and the last block;
    ``replay_ns``, when the replay was queued, and ``gpu_ns``, from the first entry's being written to
    the replay's being done (0 where the replay is not known)."""
    f, r = seen.faults, seen.replays
    batch, index = np.unique(f["batch"].astype(np.int64), return_inverse=True)
    index = index.reshape(-1)
    n = len(batch)
    page = page_of(f["address"])
    pages = np.unique(np.column_stack((index, page)), axis=0)
    services = np.unique(np.column_stack((pages[:, 0], pages[:, 1] // PAGES)), axis=0)
    far = np.iinfo(np.int64).max
    first, last, written = np.full(n, far), np.zeros(n, np.int64), np.full(n, far)
    np.minimum.at(first, index, f["time"].astype(np.int64))
    np.maximum.at(last, index, f["time"].astype(np.int64))
    np.minimum.at(written, index, f["time_gpu"].astype(np.int64))
    replay, done = np.zeros(n, np.int64), np.zeros(n, np.int64)
    at = np.searchsorted(batch, r["batch"].astype(np.int64))
    good = (at < n) & (batch[np.minimum(at, n - 1)] == r["batch"]) if n else np.zeros(len(r), bool)
    np.maximum.at(replay, at[good], r["time"][good].astype(np.int64))
    np.maximum.at(done, at[good], r["time_gpu"][good].astype(np.int64))
    return {
        "batch": batch,
        "entries": np.bincount(index, minlength=n),
        "pages": np.bincount(pages[:, 0], minlength=n),
        "services": np.bincount(services[:, 0], minlength=n),
        "first_ns": first, "last_ns": last, "replay_ns": replay,
        "gpu_ns": np.where(done > 0, done - written, 0),
    }  # fmt: skip


def summary(values: np.ndarray) -> dict[str, float] | None:
    """Percentiles of something; None of nothing."""
    if not len(values):
        return None
    cuts = np.percentile(values, (10, 50, 90, 100))
    return {k: round(float(v), 1) for k, v in zip(("p10", "p50", "p90", "max"), cuts, strict=True)}


def wholeness(seen: Seen) -> dict[str, Any]:
    """What was recorded against what is on the GPU: ``moved_bytes`` by records, ``arrived_bytes`` by
    the page table, and ``lost`` events by the driver's own count."""
    moved = int(inward(seen)["bytes"].sum())
    there = None if seen.arrived is None else int(seen.arrived.sum()) * PAGE
    return {"moved_bytes": moved, "arrived_bytes": there, "lost": seen.dropped}


def arrived_by_records(seen: Seen, pages: int) -> np.ndarray:
    """bool [pages]: pages of the arena that the records say are on the GPU at the end."""
    there = np.zeros(pages, bool)
    for m in np.sort(seen.moves, order="end"):
        first = (int(m["address"]) - seen.base) // PAGE
        n = int(m["bytes"]) // PAGE
        if first >= 0 and first + n <= pages:
            there[first : first + n] = m["dst"] != CPU
    return there
