"""A stand-in for a card whose driver pages: a plain handler with known constants.

Faults of the warps are fetched in turns, up to 256 entries a batch; block by block the tree says what
comes along; the batch takes the constants times its counts, and its events are those the driver notes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replay.paging.device import PagingDevice, Seen
from replay.paging.touches import NOTHING, PAGE, PAGES, Touches
from traces.capture.uvm_queue import ENTRY_BYTES, GPU_FAULT, KINDS, MIGRATION, REPLAY

BASE = 0x7F00_0000_0000
ENTRIES, IN_FLIGHT = 256, 8


class FakePaging(PagingDevice):
    """``constants``: ns by count, and by (count, host) of what depends on host memory."""

    def __init__(
        self, pages: int, sms: int, constants: dict[Any, float], *, threshold: int = 51,
        noise: float = 0.0, lost: int = 0,
    ) -> None:  # fmt: skip
        self.pages, self.sms, self.constants = pages, sms, constants
        self.threshold, self.noise, self.lost = threshold, noise, lost
        self._rng, self._host = np.random.default_rng(5), "huge"

    def about(self) -> dict[str, Any]:
        return {"gpu": "stand-in", "driver": "0", "sms": self.sms}

    def renew(self, host: str) -> dict[str, Any]:
        self._host = host
        return {"host": host}

    def time(self, touches: Touches) -> float:
        return self._run(touches)[0]

    def again(self, touches: Touches) -> float:
        return 2000.0

    def record(self, touches: Touches) -> tuple[float, Seen]:
        return self._run(touches)

    def move_out(self, piece: int, total: int, written: bool) -> float:
        return total / 50.0 + total / piece * 3000.0

    def close(self) -> None:
        pass

    def _run(self, t: Touches) -> tuple[float, Seen]:
        resident = np.zeros((-(-self.pages // PAGES), PAGES), bool)
        for first, last in t.placed.tolist() if t.placed is not None else ():
            resident.reshape(-1)[first:last] = True
        waiting = [[int(p) for p in w if p != NOTHING] for w in t.pages]
        depth = 1 if t.chained else IN_FLIGHT
        raw: list[np.ndarray] = []
        ns, batch = 2000.0, 0
        while True:
            entries = self._fetch(waiting, resident, depth)
            if not entries:
                break
            batch += 1
            spent, moves = self._serve(entries, resident)
            for warp, p in entries:
                raw.append(_entry(GPU_FAULT, "gpu_fault", batch=batch, address=BASE + p * PAGE,
                                  client=warp % 64, gpc=warp // 64 % 8, time=int(ns),
                                  time_gpu=int(ns)))  # fmt: skip
            pushed = int(ns) + 1  # after the service looked at its faults, before the next one does
            ns += spent
            for first, n, cause in moves:
                raw.append(_entry(MIGRATION, "migration", cause=cause, dst=1,
                                  address=BASE + first * PAGE, bytes=n * PAGE, begin=pushed,
                                  end=int(ns), begin_gpu=int(ns),
                                  end_gpu=int(ns) + 500 * n))  # fmt: skip
            raw.append(_entry(REPLAY, "replay", batch=batch, time=int(ns), time_gpu=int(ns)))
        kept = raw[: len(raw) - self.lost] if self.lost else raw
        lost = {"migration": self.lost} if self.lost else {}
        events = np.concatenate(kept) if kept else np.zeros((0, ENTRY_BYTES), np.uint8)
        arrived = resident.reshape(-1)[: self.pages]
        ns *= 1 + self.noise * self._rng.standard_normal()
        return ns, Seen.of(events, BASE, lost, arrived)

    def _fetch(
        self, waiting: list[list[int]], resident: np.ndarray, depth: int
    ) -> list[tuple[int, int]]:
        entries: list[tuple[int, int]] = []
        for w, pages in enumerate(waiting):
            while pages and resident[pages[0] // PAGES, pages[0] % PAGES]:
                pages.pop(0)
            for p in pages[:depth]:
                if len(entries) < ENTRIES and not resident[p // PAGES, p % PAGES]:
                    entries.append((w, p))
        return entries

    def _serve(
        self, entries: list[tuple[int, int]], resident: np.ndarray
    ) -> tuple[float, list[tuple[int, int, int]]]:
        c, host = self.constants, self._host
        pages = sorted({p for _, p in entries})
        ns = c["batches"] + c["entries"] * len(entries) + c["pages"] * len(pages)
        moves: list[tuple[int, int, int]] = []
        for b in sorted({p // PAGES for p in pages}):
            faulted = np.zeros(PAGES, bool)
            faulted[[p % PAGES for p in pages if p // PAGES == b]] = True
            come = (brought(resident[b], faulted, self.threshold) | faulted) & ~resident[b]
            found = pieces(come, faulted)
            resident[b] |= come
            ns += c["services"] + c["pieces", host] * len(found) + c["moved", host] * come.sum()
            moves += [(b * PAGES + first, n, 2 if own else 3) for first, n, own in found]
        return ns, moves


def brought(resident: np.ndarray, faulted: np.ndarray, threshold: int) -> np.ndarray:
    """bool [512]: what the tree brings, by its definition (uvm_perf_prefetch.c)."""
    accessed = resident | faulted
    for big in range(0, PAGES, 16):
        if faulted[big : big + 16].any():
            accessed[big : big + 16] = True
    out = np.zeros(PAGES, bool)
    for p in np.flatnonzero(faulted):
        best = None
        size = 1
        while size <= PAGES:
            first = p // size * size
            if accessed[first : first + size].sum() * 100 > size * threshold:
                best = (first, size)
            size *= 2
        if best:
            out[best[0] : best[0] + best[1]] = True
    return out


def pieces(come: np.ndarray, faulted: np.ndarray) -> list[tuple[int, int, bool]]:
    """(first page, pages, faulted on) of the runs of one cause."""
    found: list[tuple[int, int, bool]] = []
    for p in np.flatnonzero(come).tolist():
        own = bool(faulted[p])
        if found and found[-1][0] + found[-1][1] == p and found[-1][2] == own:
            found[-1] = (found[-1][0], found[-1][1] + 1, own)
        else:
            found.append((p, 1, own))
    return found


def _entry(layout: np.dtype, kind: str, **values: Any) -> np.ndarray:
    made = np.zeros(1, layout)
    made["type"] = KINDS[kind]
    for name, value in values.items():
        made[name] = value
    return made.view(np.uint8).reshape(1, ENTRY_BYTES)
