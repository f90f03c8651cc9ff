"""How much of a recording is missing, as far as the recording itself can tell.

A tracer that counts what it lost says so in the metadata. One that does not know may still be
found out: memory that the driver moves is at one side at a time, so a page that came in twice went
out between, and one that went out twice came in between. What such pairs lack is a lower bound of
what is missing (memory that is freed and allocated anew, or read-mostly, makes such pairs too).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from traces.faults import BLOCK, PAGE, FaultTrace

MOST_PAGES = 1 << 25
"""Beyond this many pages moved, every so many-th block is looked at, and counts for the others."""


@dataclass(frozen=True)
class Looked:
    """What the page table said before and after, over all pairs of looks
    (`traces.capture.looks`). Bytes; exact for pages that moved once between two looks."""

    looks: int
    came: int
    """On the GPU at the later look, on the host at the one before."""
    came_unrecorded: int
    """Of these, without a record that says so."""
    went: int
    went_unrecorded: int


@dataclass(frozen=True)
class Missing:
    """What a fault trace lacks; None where it cannot tell. Bytes are lower bounds."""

    dropped: int | None
    """Records the tracer lost by its own count."""
    unwritten: int | None
    """Records it handed over and the trace does not hold, other than those left out on purpose."""
    bytes_in: int | None
    """Moved to the GPU without a record: pages that went out twice."""
    bytes_out: int | None
    """Moved from the GPU without a record: pages that came in twice."""
    blocks_without_arrival: int | None
    """2 MiB blocks on which the GPU faulted, of which nothing was seen to come: the GPU touched them
    first, or records are missing."""

    looks: Looked | None = None
    """What moved by the page table against the records; None where nobody looked."""

    def to_json(self) -> dict[str, Any]:
        made = asdict(self)
        if self.looks is None:
            del made["looks"]
        return made


def missing(t: FaultTrace) -> Missing:
    """What ``t`` lacks."""
    recording = t.meta.get("recording")
    said = recording if isinstance(recording, dict) else {}
    dropped, delivered, ignored = (
        v if isinstance(v := said.get(name), int) else None
        for name in ("dropped", "delivered", "ignored")
    )
    unwritten = None
    if delivered is not None and ignored is not None:
        unwritten = max(delivered - ignored - t.n_rows, 0)
    bytes_in, bytes_out = _without_return(t)
    return Missing(
        dropped, unwritten, bytes_in, bytes_out, _without_arrival(t), _looked(said.get("looks"))
    )


def _looked(pairs: Any) -> Looked | None:
    if not isinstance(pairs, list) or not pairs or not all(isinstance(x, dict) for x in pairs):
        return None
    names = ("came", "came_unrecorded", "went", "went_unrecorded")
    if not all(isinstance(x.get(n), int) for x in pairs for n in names):
        return None
    return Looked(len(pairs) + 1, *(sum(x[n] for x in pairs) for n in names))


def _without_return(t: FaultTrace) -> tuple[int | None, int | None]:
    inward, outward = t.where("migration_in"), t.where("migration_out")
    moved = (inward | outward) & t.present("address") & (t.numbers("bytes") >= PAGE)
    if not (inward & moved).any() or not (outward & moved).any() or _devices(t) > 1:
        return None, None
    first = (t.numbers("address") // np.uint64(PAGE)).astype(np.int64)
    n = t.numbers("bytes") // PAGE
    one_in = -(-int(n[moved].sum()) // MOST_PAGES)
    if one_in > 1:  # a block's pages are all looked at, or none
        moved &= (first // (BLOCK // PAGE)) % one_in == 0
    first, n, way, owner = first[moved], n[moved], inward[moved], t.owners[moved]
    ends = np.cumsum(n)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - n, n)
    page, way, owner = np.repeat(first, n) + within, np.repeat(way, n), np.repeat(owner, n)
    order = np.lexsort((np.arange(len(page)), page, owner))  # in time within a page
    page, way, owner = page[order], way[order], owner[order]
    again = (page[1:] == page[:-1]) & (owner[1:] == owner[:-1]) & (way[1:] == way[:-1])
    twice_in = int((again & way[1:]).sum())
    return (int(again.sum()) - twice_in) * PAGE * one_in, twice_in * PAGE * one_in


def _without_arrival(t: FaultTrace) -> int | None:
    faulted = t.where("gpu_fault") & (t.blocks > 0)
    came = t.where("migration_in", "remote_map") & (t.blocks > 0)
    if not faulted.any() or not came.any():  # gpu_ext's tracers see no migrations
        return None
    key = t.blocks + t.owners.astype(np.uint64)
    return int((~np.isin(np.unique(key[faulted]), np.unique(key[came]))).sum())


def _devices(t: FaultTrace) -> int:
    if "device" not in t.table.column_names:
        return 1
    return len(np.unique(t.numbers("device")[t.present("device")]))
