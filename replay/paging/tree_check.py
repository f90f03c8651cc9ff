"""What the tree should have brought, given the faults in the order in which the driver fetched them.

Batch by batch and block by block: the faulted pages of the recorded entries go into the model's own
prefetch rule (`uvmsim.paging.tree`), and what comes out is held against the migrations of that batch.
Time plays no role, so bytes by cause, pieces and their sizes must come out exactly, or the rule is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replay.paging.counts import EDGES
from replay.paging.touches import BIG, PAGE, PAGES
from traces.jit import compiled
from uvmsim.core.jit import KERNEL_OPTIONS
from uvmsim.paging.bits import fill, runs
from uvmsim.paging.tree import densest, grow
from uvmsim.policies.pages.base import FIRST, OUTER

WORDS = PAGES // 64
DEMAND, TREE = 0, 1


@dataclass
class Brought:
    """Pages and pieces by cause (demand, tree), and the pieces' sizes."""

    pages: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    pieces: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((2, len(EDGES)), np.int64))
    """int64 [2, sizes]: pieces by the first of `EDGES` that they fit in."""
    operations: int = 0
    """Runs of pages that came, whatever their cause, cut at 64 KiB: the model's copies."""
    mappings: int = 0
    """Page table entries: 64 KiB pages, and 4 KiB pages of those that came in parts."""

    def add(self, cause: int, pages: int) -> None:
        """A piece."""
        self.pages[cause] += pages
        self.pieces[cause] += 1
        self.sizes[cause, np.searchsorted(EDGES, pages * PAGE)] += 1

    def include(self, other: Brought) -> None:
        """All of another's."""
        self.pages += other.pages
        self.pieces += other.pieces
        self.sizes += other.sizes
        self.operations += other.operations
        self.mappings += other.mappings

    def to_json(self) -> dict[str, Any]:
        return {
            name: {
                "bytes": int(self.pages[i]) * PAGE, "pieces": int(self.pieces[i]),
                "by_size": {str(e): int(n) for e, n in zip(EDGES, self.sizes[i], strict=True)},
            }
            for name, i in (("demand", DEMAND), ("prefetch", TREE))
        }  # fmt: skip


class Blocks:
    """Resident pages of 2 MiB blocks, by the block's number."""

    def __init__(self, n_pages: dict[int, int] | None = None) -> None:
        """``n_pages``: of blocks that are not whole; `PAGES` of all others."""
        self._bits: dict[int, np.ndarray] = {}
        self._n = n_pages or {}

    def of(self, block: int) -> np.ndarray:
        """uint64 [8]"""
        return self._bits.setdefault(block, np.zeros(WORDS, np.uint64))

    def n_pages(self, block: int) -> int:
        return self._n.get(block, PAGES)

    def place(self, first: int, last: int) -> None:
        """Pages [first, last), numbered through all blocks, are resident."""
        while first < last:
            block, end = first // PAGES, min(last, (first // PAGES + 1) * PAGES)
            self.of(block)[:] |= bits(np.arange(first % PAGES, first % PAGES + end - first))
            first = end


def bits(pages: np.ndarray) -> np.ndarray:
    """uint64 [8]: a mask of pages within a block."""
    mask = np.zeros(WORDS, np.uint64)
    np.bitwise_or.at(mask, pages >> 6, np.uint64(1) << (pages & 63).astype(np.uint64))
    return mask


def flags(mask: np.ndarray) -> np.ndarray:
    """bool [512] of a mask."""
    return np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)


@compiled(**KERNEL_OPTIONS)
def _copies(mask):  # type: ignore[no-untyped-def]
    """The model's copies of a mask (uint64 [8])."""
    return runs(mask, WORDS)


def mappings(came: np.ndarray) -> int:
    """Page table entries of pages that came (bool [512]): a 64 KiB page, or 4 KiB pages of one that
    came in parts."""
    of_big = came.reshape(-1, BIG // PAGE).sum(axis=1)
    return int(np.where(of_big == BIG // PAGE, 1, of_big).sum())


@compiled(**KERNEL_OPTIONS)
def _bring(accessed, fault, faulted, n_pages, threshold, region, brought):  # type: ignore[no-untyped-def]
    """Into ``brought`` (uint64 [8]) what the tree adds to the ``faulted`` pages (int64)."""
    grow(accessed, fault, n_pages)
    for i in range(len(faulted)):
        page = faulted[i]
        if brought[page >> 6] >> np.uint64(page & 63) & np.uint64(1):
            continue  # the tree did not change: the region found before is this page's too
        densest(accessed, page, n_pages, threshold, region)
        fill(brought, region[FIRST], region[OUTER])


def serve(blocks: Blocks, block: int, faulted: np.ndarray, threshold: int, out: Brought) -> int:
    """A block's service with its faulted pages (int64, within the block): what comes in is resident
    afterwards, and added to ``out``. Returns how many pages came.

    A fault on a page that is there does not count (uvm_gpu_replayable_faults.c,
    `service_fault_batch_block_locked`): the GPU wrote it before the page's mapping reached it, and the
    tree is not asked for it."""
    resident, n_pages = blocks.of(block), blocks.n_pages(block)
    fault = bits(faulted) & ~resident
    faulted = np.flatnonzero(flags(fault))
    accessed, brought = resident | fault, np.zeros(WORDS, np.uint64)
    _bring(accessed, fault, faulted, n_pages, threshold, np.zeros(4, np.int64), brought)
    mask = (brought | fault) & ~resident
    came = flags(mask)
    out.operations += int(_copies(mask))
    out.mappings += mappings(came)
    resident |= mask
    add_runs(came, flags(fault), out)
    return int(came.sum())


def add_runs(came: np.ndarray, faulted: np.ndarray, out: Brought) -> None:
    """The runs of neighbours of one cause (uvm_va_block.c, `block_copy_resident_pages_between`)."""
    at = np.flatnonzero(came)
    if not len(at):
        return
    cause = np.where(faulted[at], DEMAND, TREE)
    edges = np.flatnonzero((np.diff(at) != 1) | (np.diff(cause) != 0)) + 1
    for run in np.split(np.arange(len(at)), edges):
        out.add(int(cause[run[0]]), len(run))


def given_faults(
    batch: np.ndarray, page: np.ndarray, threshold: int = 51,
    blocks: Blocks | None = None,
) -> tuple[Brought, Blocks, int]:  # fmt: skip
    """What the faults bring, the blocks after it, and how many services that took. ``batch`` and
    ``page`` (numbers of 4 KiB pages) of every entry, int64 [n], batches in order; ``blocks``: what is
    resident before (default: nothing)."""
    out, blocks, services = Brought(), blocks or Blocks(), 0
    key = np.unique(np.column_stack((batch, page // PAGES, page % PAGES)), axis=0)
    if not len(key):
        return out, blocks, 0
    change = np.any(np.diff(key[:, :2], axis=0) != 0, axis=1)
    for part in np.split(key, np.flatnonzero(change) + 1):
        serve(blocks, int(part[0, 1]), part[:, 2], threshold, out)
        services += 1
    return out, blocks, services


def observed(address: np.ndarray, nbytes: np.ndarray, prefetched: np.ndarray) -> Brought:
    """The migrations to the GPU as recorded: first byte, bytes, whether the tree added them, [n]."""
    out = Brought()
    for n, tree in zip((nbytes // PAGE).tolist(), prefetched.tolist(), strict=True):
        out.add(TREE if tree else DEMAND, int(n))
    return out
