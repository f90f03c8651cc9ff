"""Each block's service held against the copies that the driver noted of it, page by page.

A service pushes its copies at once, so all of them have one begin (uvm_tools.c,
`uvm_tools_record_block_migration_begin`). A service without any either brought nothing or is missing
from the record: the driver notes a push when it sees its channel's progress, and without a flush a
channel that is not used again keeps up to 1,023 pushes to itself (uvm_channel.c,
`channel_reserve_in_pool`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replay.paging.counts import PREFETCH, block_of, inward, page_of
from replay.paging.device import Seen
from replay.paging.touches import PAGE, PAGES
from replay.paging.tree_check import Blocks, Brought, flags, serve


@dataclass
class Checked:
    """Services by what is known of them, and what they brought."""

    services: int = 0
    recorded: int = 0
    """Copies were noted."""
    equal: int = 0
    """Of these: the tree brings the very pages, each by the very cause."""
    nothing: int = 0
    """Nothing was noted, and the tree brings nothing: all faulted pages were there."""
    model: Brought = field(default_factory=Brought)
    """What the tree brings in recorded services."""
    driver: Brought = field(default_factory=Brought)
    """What was noted of them."""
    missing: Brought = field(default_factory=Brought)
    """What the tree brings in services of which nothing was noted."""
    operations: int = 0
    """The model's copies, all services."""

    def to_json(self) -> dict[str, Any]:
        return {
            "services": self.services, "recorded": self.recorded, "equal": self.equal,
            "nothing": self.nothing,
            "unrecorded": self.services - self.recorded - self.nothing,
            "model": self.model.to_json(), "driver": self.driver.to_json(),
            "missing": self.missing.to_json(), "operations": self.operations,
        }  # fmt: skip


def check(seen: Seen, blocks: Blocks | None = None, threshold: int = 51) -> Checked:
    """``blocks``: what is resident before, and how many pages each has (default: nothing, all)."""
    out, blocks = Checked(), blocks or Blocks()
    f = seen.faults
    page = page_of(f["address"])
    key = np.column_stack((f["batch"].astype(np.int64), page // PAGES))
    service, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(index.reshape(-1), kind="stable")
    faulted = np.split(page[order] % PAGES, np.cumsum(np.bincount(index.reshape(-1)))[:-1])
    noted = _noted(seen, service[:, 1], f["time"].astype(np.int64)[first])
    for i, block in enumerate(service[:, 1].tolist()):
        made, before = Brought(), flags(blocks.of(block).copy())
        came = serve(blocks, block, np.unique(faulted[i]), threshold, made)
        out.services += 1
        out.operations += made.operations
        rows = noted.get(i)
        if rows is None:
            out.nothing += not came
            out.missing.include(made)
            continue
        demanded = np.isin(np.arange(PAGES), faulted[i]) & ~before
        causes = np.where(flags(blocks.of(block)) & ~before, np.where(demanded, 1, 2), 0)
        out.recorded += 1
        out.equal += bool((causes == _causes(rows, out.driver)).all())
        out.model.include(made)
    return out


def _noted(seen: Seen, block: np.ndarray, time: np.ndarray) -> dict[int, np.ndarray]:
    """By service (its place in ``block`` and ``time``): its copies, rows of `MIGRATION`."""
    m = inward(seen)
    order = np.lexsort((time, block))
    # One number that orders by block first, then by time.
    blocks, moved = block_of(m["address"]), m["begin"].astype(np.int64)
    known = np.unique(np.concatenate((block, blocks)))
    both = np.concatenate((time, moved))
    low = int(both.min(initial=np.iinfo(np.int64).max))
    span = int(both.max(initial=low)) - low + 1
    at = np.searchsorted(known, block[order]) * span + (time[order] - low)
    mine = np.searchsorted(known, blocks) * span + (moved - low)
    place = np.searchsorted(at, mine, side="right") - 1
    good = (
        (place >= 0) & (block[order][np.maximum(place, 0)] == blocks) if len(order) else place > 0
    )
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero(good).tolist():
        found.setdefault(int(order[place[row]]), []).append(row)
    return {k: m[v] for k, v in found.items()}


def _causes(rows: np.ndarray, out: Brought) -> np.ndarray:
    """int64 [512]: 1 where a page came by demand, 2 by the tree, 0 elsewhere; pieces go to ``out``."""
    made = np.zeros(PAGES, np.int64)
    for r in rows:
        first, n = int(r["address"]) // PAGE % PAGES, int(r["bytes"]) // PAGE
        tree = r["cause"] == PREFETCH
        made[first : first + n] = 2 if tree else 1
        out.add(int(tree), n)
    return made
