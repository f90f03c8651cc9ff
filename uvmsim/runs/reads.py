"""What host memory does not hold of a plan's copies: reads from the disk below it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Reads:
    """R reads for the C copies of a plan, in the plan's order."""

    of_copy: np.ndarray
    """int64 [C]: the read that brings a copy's bytes to host memory, -1 where they were always there.
    Copies of one expert share its read, also while it is in flight."""
    copy: np.ndarray
    """int64 [R]: the copy that asked for it: it is queued with it, and goes before others as
    it does."""
    bytes: np.ndarray
    """int64 [R]"""
    ns: np.ndarray
    """int64 [R]: time that its bytes occupy the disk, at least 1."""
    after: np.ndarray
    """int64 [R, 2]: last demand copy and last prefetch out of the RAM slot that it overwrites; -1."""
    slot: np.ndarray
    """int32 [R]: the RAM slot that it fills; -1 in the page cache, which has none."""
    latency_ns: int
    depth: int
    """Reads in flight."""
    lookups: int
    """Copies to the device: each looks for its expert in host memory."""
    hits: int
    """Of these, found there, or on the way there."""
    slots: int
    """Experts that host memory holds; 0 for a page cache."""
    policy: str
    about: dict[str, Any] = field(default_factory=dict)
    """The disk, in JSON's types."""

    def measures(self) -> dict[str, Any]:
        """Of the run's whole length."""
        rate = self.hits / self.lookups if self.lookups else None
        return {
            **self.about, "policy": self.policy, "slots": self.slots,
            "lookups": self.lookups, "hits": self.hits, "hit_rate": rate,
            "disk_reads": len(self.bytes), "disk_bytes": int(self.bytes.sum()),
        }  # fmt: skip
