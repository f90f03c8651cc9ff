"""What is tried next: leads first, then anything, and small changes to the best so far."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np

from uvmsim.policies.kinds import EXPERTS
from uvmsim.studies.search.space import Candidate, Part, Space

LEADS = ("learned", "learned+learned-next", "lrfu", "layer-lru")
"""Tried before all others, with what `uvmsim compare` shows."""
NEW, RANDOM = 1 / 10, 1 / 8
"""Shares of a round: policies nobody has tried, each of which takes seconds to compile, and those tried
with all parameters drawn anew; the rest are small changes to the best."""
ELITE = 6
"""How many of the best are changed; the better ones more often."""
TRIES = 10
"""Draws for each candidate asked for: where all were tried before, the space is at its end."""

Rank = tuple[int, float]
"""How far a candidate came, and what it scored there; the larger, the better."""


class Proposer(Protocol):
    """Says what to try and is told what came of it. The same answers get the same questions."""

    def ask(self, n: int) -> list[Candidate]:
        """Up to ``n`` candidates that were not asked for before; none: nothing is left."""
        ...

    def tell(self, found: dict[Candidate, Rank]) -> None:
        """What came of some candidates."""
        ...


class Drawn:
    """Random search that turns into a local one: our own, without any library."""

    def __init__(self, space: Space, seed: int):
        self.space = space
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.seen: set[str] = set()
        self.ranks: dict[Candidate, Rank] = {}
        self.leads = deque(leads(space))
        self.untried = deque(c for c in space.defaults() if c not in self.leads)
        self.paired: set[tuple[str, ...]] = set()

    def ask(self, n: int) -> list[Candidate]:
        made: list[Candidate] = []
        while len(made) < n and self.leads:
            self._take(self.leads.popleft(), made)
        for _ in range(max(1, round(n * NEW)) if self.ranks else 0):
            if len(made) < n:
                self._take(self._new(), made)
        known = list(self.ranks) or list(made)
        for _ in range(TRIES * n):
            if len(made) == n:
                break
            if self.rng.random() < RANDOM:
                c = known[self.rng.integers(len(known))]
                self._take(self.space.redrawn(c, self.rng), made)
            else:
                self._take(self._changed(self._best() or known), made)
        while len(made) < n and (new := self._new()):
            self._take(new, made)
        return made

    def tell(self, found: dict[Candidate, Rank]) -> None:
        self.ranks |= found

    def _take(self, c: Candidate | None, made: list[Candidate]) -> None:
        if c is not None and c.text not in self.seen:
            self.seen.add(c.text)
            made.append(c)

    def _best(self) -> list[Candidate]:
        return sorted(self.ranks, key=lambda c: (self.ranks[c], c.text), reverse=True)[:ELITE]

    def _new(self) -> Candidate | None:
        """An eviction that was not tried, or one of the best with a prefetcher that was not tried with
        it."""
        if self.untried and self.rng.random() < 0.5:
            return self.untried.popleft()
        for best in self._best() or self.space.defaults()[:1]:
            for piece in self.space.prefetches:
                c = Candidate(best.eviction, Part(piece))
                if c.heads not in self.paired:
                    self.paired.add(c.heads)
                    return c
        return self.untried.popleft() if self.untried else None

    def _changed(self, best: list[Candidate]) -> Candidate:
        """A small change to one of the best; now and then with the prefetcher of another, or none."""
        c = best[min(int(self.rng.exponential(1.5)), len(best) - 1)]
        if self.rng.random() < 0.2:
            other = best[self.rng.integers(len(best))]
            c = Candidate(c.eviction, None if c == other else other.prefetch)
            if c.text not in self.seen:
                return c
        return self.space.near(c, self.rng)


def leads(space: Space) -> list[Candidate]:
    """What is tried first: what the user named, what learns, what `uvmsim compare` shows."""
    named = (space.candidate(text) for text in dict.fromkeys((*LEADS, *EXPERTS.defaults)))
    return list(dict.fromkeys((*space.given, *(c for c in named if c is not None))))
