"""Successive halving (Jamieson and Talwalkar 2016): many candidates on few tokens, the better ones on
more.

A round asks for candidates, runs all on the first rung, the best third on the next, and so on; then the
proposer hears of it. A round is finished before the next begins, so what is asked depends on scores
alone, not on how fast which process was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from uvmsim.studies.search.arena import Arena, Score, Until
from uvmsim.studies.search.cases import ETA, Case, Stretch
from uvmsim.studies.search.proposals import Proposer, Rank
from uvmsim.studies.search.space import Candidate

WIDTH = 10
"""Candidates of a round, times the number of rungs."""

Rung = Sequence[tuple[Case, Stretch]]


@dataclass
class Found:
    """What a search has come to so far."""

    trials: int = 0
    """Candidates that were begun."""
    ranks: dict[Candidate, Rank] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why candidates could not be run, by name."""
    cut: str = ""
    """What ended it before the trials that were asked for."""

    def best(self, n: int) -> list[Candidate]:
        """The ``n`` that came furthest and scored best there."""
        key = lambda c: (self.ranks[c], c.text)  # noqa: E731
        return sorted(self.ranks, key=key, reverse=True)[:n]


def rungs_of(cases: Sequence[Case]) -> list[Rung]:
    """Each rung on all traces; a trace with fewer of them begins later, with its first."""
    n = max(len(c.rungs) for c in cases)
    return [[(c, c.rungs[max(0, i - n + len(c.rungs))]) for c in cases] for i in range(n)]


def halve(
    arena: Arena, proposer: Proposer, rungs: Sequence[Rung], trials: int | None, until: Until,
    tick: Callable[[Found], None],
) -> Found:  # fmt: skip
    """Rounds until ``trials`` candidates were begun, time is over, or nothing is left to try."""
    found = Found()
    while not until.over and (trials is None or found.trials < trials):
        n = WIDTH * len(rungs)
        asked = proposer.ask(n if trials is None else min(n, trials - found.trials))
        if not asked:
            found.cut = "nothing was left to try"
            return found
        found.trials += len(asked)
        alive = asked
        for i, rung in enumerate(rungs):
            texts = [c.text for c in alive]
            scores = arena.scores(texts, rung, until, lambda: tick(found))
            _note(found, alive, scores, i)
            if len(scores) < len(texts):
                break
            alive = sorted((c for c in alive if c in found.ranks and found.ranks[c][0] == i),
                           key=lambda c: (found.ranks[c], c.text), reverse=True)  # fmt: skip
            alive = alive[: max(1, len(asked) // ETA ** (i + 1))]
            if not alive:
                break
        proposer.tell({c: found.ranks[c] for c in asked if c in found.ranks})
        tick(found)
    if trials is not None and found.trials < trials:
        found.cut = "time was over"
    return found


def _note(found: Found, alive: list[Candidate], scores: dict[str, Score], rung: int) -> None:
    for c in alive:
        score = scores.get(c.text)
        if score and score.value is not None:
            found.ranks[c] = (rung, score.value)
        elif score:
            found.ranks.pop(c, None)
            found.failed[c.text] = score.error or "no speed"
