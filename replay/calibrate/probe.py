"""What a machine is asked, whatever answers: the GPU through CuPy, or host memory in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from replay.calibrate.stats import Row

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

HANDOVER = "kernel, event, 4 KiB copy on another stream, event"
"""The round that every layer with a miss makes, with next to nothing to copy."""

HOP, HOP_BYTES = "event, small copy to the other device", 16 << 10
"""The round that activations make."""
TOGETHER = "host to device"
"""One device's copies from the host, ``direction`` one, and while the other's run too, both."""


@dataclass(frozen=True)
class Effort:
    """How much is measured: sizes and repetitions."""

    copy_sizes: tuple[int, ...]
    """Bytes of explicit copies, ascending."""
    big: int
    """Bytes of the buffers for sustained speeds."""
    managed: int
    """Bytes of managed memory in use at a time."""
    repetitions: int


FULL = Effort(
    copy_sizes=tuple(4 * KiB << i for i in range(17)), big=GiB, managed=512 * MiB, repetitions=15
)
"""4 KiB, 8 KiB, ... 256 MiB."""
QUICK = Effort(
    copy_sizes=tuple(4 * KiB << (2 * i) for i in range(7)),
    big=16 * MiB, managed=8 * MiB, repetitions=3,
)  # fmt: skip
"""Enough to see that all of it works: 4 KiB ... 16 MiB."""


class NotHere(Exception):
    """This machine has nothing of the kind; the message says what is missing."""


class Probe(ABC):
    """Measurements by name. All rows are as `replay.calibrate.stats.row` makes them."""

    name: str = ""

    def __init__(self, effort: Effort):
        self.effort = effort

    @abstractmethod
    def machine(self) -> dict[str, Any]:
        """Names and versions of what is measured."""

    @abstractmethod
    def vram_bytes(self) -> int:
        """Device memory a program can use."""

    @abstractmethod
    def copies(self, direction: str, pinned: bool = True) -> list[Row]:
        """``h2d`` or ``d2h``, queued back to back: time of one copy on the link, by size."""

    @abstractmethod
    def single_copies(self, direction: str) -> list[Row]:
        """One copy at a time, from its issue until the host sees it done, by size."""

    @abstractmethod
    def both_ways(self) -> list[Row]:
        """Each direction alone and while the other is busy; rows have ``direction``, ``other``."""

    @abstractmethod
    def launches(self) -> list[Row]:
        """``what``: issue of a copy, of a kernel, an empty kernel on the device, a round trip."""

    @abstractmethod
    def pinned_alloc(self) -> list[Row]:
        """Allocating and page-locking fresh host memory."""

    @abstractmethod
    def reads(self) -> list[Row]:
        """A kernel that only reads, over device memory (``dense``: the engine's own), by size."""

    @abstractmethod
    def zero_copy(self) -> list[Row]:
        """A kernel reading pinned host memory across the link."""

    @abstractmethod
    def faults(self) -> list[Row]:
        """Managed memory that is not there yet, by ``pattern`` of the first touch."""

    @abstractmethod
    def migrations(self) -> list[Row]:
        """Managed memory moved on request: ``what`` and size of the call."""

    def devices(self) -> int:
        """GPUs that this probe can measure the way between."""
        return 1

    def peers(self) -> list[Row]:
        """The way between two devices, ``direction`` 0-1 and 1-0: copies queued back to back, by size
        (``what`` copies), and a small copy that waits for the other device and is waited for by it
        (``what`` `HOP`); and one's copies from the host without and with the other's (`TOGETHER`)."""
        raise NotHere("one GPU")

    def close(self) -> None:  # noqa: B027 (nothing to give back is a fair answer)
        """Give back what was allocated."""
