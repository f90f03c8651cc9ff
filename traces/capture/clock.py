"""Two clocks, one time axis."""

from __future__ import annotations

import time
from collections.abc import Callable

_TRIES = 9


class Clock:
    """Times on CLOCK_MONOTONIC (`time.monotonic_ns`) as those of another clock.

    Both run at the same rate or nearly so; how far they stand apart is measured when this is made,
    and again by `compare`.
    """

    def __init__(self, now: Callable[[], int], origin_ns: int) -> None:
        """``now`` tells the other clock's time in ns; ``origin_ns``: where its axis begins."""
        self._now = now
        self._apart, self.error_ns = self._measure()
        self.origin_monotonic_ns = origin_ns - self._apart
        """The axis' beginning on CLOCK_MONOTONIC."""
        self.drift_ns: int | None = None
        """How far the clocks have moved against each other since; None before `compare`."""

    def compare(self) -> None:
        """Measure again."""
        apart, _ = self._measure()
        self.drift_ns = apart - self._apart

    def _measure(self) -> tuple[int, int]:
        """The other clock less this one, from the quickest of several readings; half its length."""
        best = (0, 1 << 62)
        for _ in range(_TRIES):
            before = time.monotonic_ns()
            other = self._now()
            after = time.monotonic_ns()
            if after - before < best[1]:
                best = (other - (before + after) // 2, after - before)
        return best[0], best[1] // 2
