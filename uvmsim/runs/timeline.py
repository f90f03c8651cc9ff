"""What a clock finds out about a plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Timeline:
    """All times are int64 ns since the start of the run."""

    step_end: np.ndarray
    """[S]: the GPU is done with a step."""
    wave_open: np.ndarray
    """[W]: a wave's dense work is done and its copies are queued."""
    wave_ready: np.ndarray
    """[W]: everything the wave waits for is there."""
    copy_start: np.ndarray
    """[C]"""
    copy_done: np.ndarray
    """[C]"""
    read_start: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[R]: a read is in flight from then on; no reads where a plan has none."""
    read_done: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[R]: its last byte is in host memory."""

    def equals(self, other: Timeline) -> bool:
        """Equal to the nanosecond, everywhere."""
        return all(
            np.array_equal(getattr(self, f), getattr(other, f)) for f in self.__dataclass_fields__
        )
