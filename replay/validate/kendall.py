"""Rank correlation: do predicted and measured values put the policies in the same order?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Ranking:
    """Agreement of two orders of the same things."""

    tau: float | None
    """Kendall's tau-b (Kendall 1945): 1 the same order, -1 reversed; None where one side is all
    ties, since then there is no order to agree with."""
    pairs: int
    discordant: int
    widest: float
    """Largest relative gap, in the second sequence, of a pair that the first puts the other way
    round: how much the wrong order would have cost."""


def kendall(first: Sequence[float], second: Sequence[float]) -> Ranking:
    """tau-b over all pairs; ties count for neither side. O(n^2), for a handful of policies."""
    if len(first) != len(second):
        raise ValueError("two sequences of the same things are needed")
    n = len(first)
    agree = against = tied_first = tied_second = 0
    widest = 0.0
    for i in range(n):
        for j in range(i):
            a, b = first[i] - first[j], second[i] - second[j]
            tied_first += a == 0
            tied_second += b == 0
            if a * b > 0:
                agree += 1
            elif a * b < 0:
                against += 1
                widest = max(widest, abs(b) / max(abs(second[i]), abs(second[j])))
    pairs = n * (n - 1) // 2
    free = sqrt((pairs - tied_first) * (pairs - tied_second))
    tau = (agree - against) / free if free else None
    return Ranking(tau, pairs, against, widest)
