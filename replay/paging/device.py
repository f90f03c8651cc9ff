"""What a measurement needs of a card whose driver pages, whatever answers: a GPU, or a stand-in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from replay.paging.touches import Touches
from traces.capture.uvm_queue import ENTRY_BYTES, GPU_FAULT, MIGRATION, REPLAY, only

HOSTS = ("ordered", "scattered", "huge")
"""How the arena came into host memory: the CPU touched it page by page in order, or in a random order;
or the GPU had it first and it was prefetched to the host, which takes 2 MiB at a time."""


@dataclass(frozen=True)
class Seen:
    """What the driver noted of one run."""

    faults: np.ndarray
    """`GPU_FAULT` [n]: entries of the fault buffer."""
    moves: np.ndarray
    """`MIGRATION` [n]: runs of pages of one cause."""
    replays: np.ndarray
    """`REPLAY` [n]"""
    base: int
    """Address of the arena's first page."""
    dropped: dict[str, int]
    """By kind: events that found no room in the driver's queue."""
    arrived: np.ndarray | None = None
    """bool [pages]: what is on the GPU after the run by the page table; None where nobody can tell."""
    others: dict[str, int] | None = None
    """By kind: how many other events there were."""

    @staticmethod
    def of(
        entries: np.ndarray, base: int, dropped: dict[str, int],
        arrived: np.ndarray | None = None,
    ) -> Seen:  # fmt: skip
        """From raw entries of the driver's queue."""
        from traces.capture.uvm_queue import KINDS

        known = {KINDS[k] for k in ("gpu_fault", "migration", "replay")}
        counts = np.bincount(entries[:, 0], minlength=256) if len(entries) else np.zeros(256, int)
        others = {k: int(counts[c]) for k, c in KINDS.items() if c not in known and counts[c]}
        return Seen(
            only(entries, "gpu_fault"), only(entries, "migration"), only(entries, "replay"),
            base, dropped, arrived, others,
        )  # fmt: skip

    @staticmethod
    def nothing(base: int = 0) -> Seen:
        """Of a run without events."""
        assert GPU_FAULT.itemsize == MIGRATION.itemsize == REPLAY.itemsize
        return Seen.of(np.zeros((0, ENTRY_BYTES), np.uint8), base, {})


class PagingDevice(ABC):
    """A managed arena of `pages` pages, host memory at first."""

    pages: int
    sms: int

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """GPU, driver and versions; plain JSON types."""

    @abstractmethod
    def renew(self, host: str) -> dict[str, Any]:
        """A fresh arena whose pages came into host memory in the way ``host`` (one of `HOSTS`);
        what is known of its contiguity."""

    @abstractmethod
    def time(self, touches: Touches) -> float:
        """ns on the device's clock of a kernel that makes the touches, everything on the host
        before it."""

    @abstractmethod
    def record(self, touches: Touches) -> tuple[float, Seen]:
        """The same with the driver's events noted."""

    @abstractmethod
    def again(self, touches: Touches) -> float:
        """ns of the kernel with all of its pages there."""

    @abstractmethod
    def move_out(self, piece: int, total: int, written: bool) -> float:
        """ns of prefetching ``total`` bytes to the host in calls of ``piece`` bytes; ``written`` by the
        GPU since they came."""

    @abstractmethod
    def close(self) -> None:
        """Give the arena back."""
