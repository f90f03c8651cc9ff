"""What of a winner pays: its parts and parameters, put back one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uvmsim.policies.registry import builtin
from uvmsim.studies.search.space import Candidate, Part, Piece

PLAIN = "lru"
"""What stands in for the winner's eviction."""


@dataclass(frozen=True)
class Without:
    """A winner less something."""

    what: str
    """What was taken out or put back, in words."""
    candidate: Candidate


def single(c: Candidate) -> list[Without]:
    """The candidate with one parameter at its default each, and without its prefetcher."""
    made = [
        Without(
            f"{part.piece.head}: {key} back to {getattr(part.piece.cls, key):g} (from {value:g})",
            c.with_part(i, part.with_(key, getattr(part.piece.cls, key))),
        )
        for i, part in enumerate(c.parts)
        for key, value in part.values
    ]
    if c.prefetch:
        made.append(Without(f"no prefetch ({c.prefetch.piece.head} out)", Candidate(c.eviction)))
    return made


def trimmed(
    c: Candidate, floor: float, value: Callable[[list[Candidate]], dict[str, float | None]]
) -> Candidate:
    """``c`` less what does not pay: while something can be put back and the value, which ``value``
    gives by name, stays at ``floor`` or above, the one that leaves most is."""
    while options := single(c):
        worth = value([w.candidate for w in options])
        best = max(options, key=lambda w: worth.get(w.candidate.text) or float("-inf"))
        got = worth.get(best.candidate.text)
        if got is None or got < floor:
            return c
        c = best.candidate
    return c


def ablation(c: Candidate) -> list[Without]:
    """All that `single` takes out, all parameters at once, and the eviction itself."""
    made = single(c)
    bare = Candidate(*(Part(p.piece) for p in c.parts))
    if sum(len(p.values) for p in c.parts) > 1:
        made.append(Without("all parameters back to their defaults", bare))
    if c.eviction.piece.head != PLAIN:
        plain = Part(Piece(PLAIN, builtin()[PLAIN]))
        made.append(
            Without(f"{PLAIN} in place of {c.eviction.piece.head}", Candidate(plain, c.prefetch))
        )
    return made
