"""What a clock finds out about a plan."""

from __future__ import annotations

from dataclasses import dataclass

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

    def equals(self, other: Timeline) -> bool:
        """Equal to the nanosecond, everywhere."""
        return all(
            np.array_equal(getattr(self, f), getattr(other, f)) for f in self.__dataclass_fields__
        )
