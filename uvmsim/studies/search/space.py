"""What may be tried: who evicts, who prefetches, and the values of their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.policies.base import Eviction, Policy
from uvmsim.policies.registry import builtin, experts_kind, make, parameters

FUTURE = "next_use"
DIGITS = 3
"""Of a value: names stay short, and a name says all of the policy."""
REACH = 8.0
"""An undeclared number is tried from 1/REACH to REACH times its default."""
STEP = 0.15
"""Spread of a small change, as a share of a range."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, evenly or (``log``) by ratio; or the values of ``choices``."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, u: float) -> Any:
        """The value at a share of the range, 0 to 1, with `DIGITS` digits."""
        if self.choices:
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + u * math.log(self.high / self.low))
        else:
            value = self.low + u * (self.high - self.low)
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def share(self, value: Any) -> float:
        """Where a value lies in the range, 0 to 1; what lies outside is brought to its edge."""
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.log:
            if value <= self.low:
                return 0.0
            u = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            u = (value - self.low) / (self.high - self.low)
        return min(max(u, 0.0), 1.0)


@dataclass(frozen=True, eq=False)
class Piece:
    """A policy that may be part of what is tried; one object in a space."""

    head: str
    """Its name, or ``./mine.py:Mine``."""
    cls: type[Policy]
    fixed: tuple[tuple[str, Any], ...] = ()
    """Parameters that the user has set."""
    ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def evicts(self) -> bool:
        return issubclass(self.cls, Eviction)


@dataclass(frozen=True)
class Part:
    """A piece with some parameters set; the others are at their defaults."""

    piece: Piece
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def text(self) -> str:
        told = [f":{k}={_said(v)}" for k, v in (*self.piece.fixed, *self.values)]
        return self.piece.head + "".join(told)

    def with_(self, key: str, value: Any) -> Part:
        """One parameter set; to its default: left out."""
        values = {k: v for k, v in self.values if k != key}
        if value != getattr(self.piece.cls, key):
            values[key] = value
        return replace(self, values=tuple((k, values[k]) for k in self.piece.ranges if k in values))


@dataclass(frozen=True)
class Candidate:
    """A policy that may be tried: who evicts, and maybe who prefetches."""

    eviction: Part
    prefetch: Part | None = None

    @property
    def text(self) -> str:
        """As the command line takes it; equal for equal policies."""
        return "+".join(p.text for p in self.parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.eviction,) if self.prefetch is None else (self.eviction, self.prefetch)

    @property
    def heads(self) -> tuple[str, ...]:
        """What is compiled once, whatever the parameters."""
        return tuple(p.piece.head for p in self.parts)

    def with_part(self, i: int, part: Part) -> Candidate:
        return replace(self, eviction=part) if i == 0 else replace(self, prefetch=part)


@dataclass(frozen=True)
class Space:
    """All candidates: any of ``evictions``, with none or any of ``prefetches``."""

    evictions: tuple[Piece, ...]
    prefetches: tuple[Piece, ...]
    given: tuple[Candidate, ...] = ()
    """Those that the user named, as they were named."""

    @property
    def numbers(self) -> int:
        """Parameters that are searched."""
        return sum(len(p.ranges) for p in (*self.evictions, *self.prefetches))

    def candidate(self, text: str) -> Candidate | None:
        """``learned+learned-next`` as a candidate at defaults; None where a part is not in the
        space."""
        known = {p.head: p for p in (*self.evictions, *self.prefetches)}
        heads = text.split("+")
        if not all(h in known for h in heads):
            return None
        return Candidate(*(Part(known[h]) for h in heads))

    def defaults(self) -> list[Candidate]:
        """Every eviction alone."""
        return [Candidate(Part(p)) for p in self.evictions]

    def drawn(self, rng: np.random.Generator) -> Candidate:
        """Any candidate: parts evenly, one parameter in four at its default."""
        eviction = Part(self.evictions[rng.integers(len(self.evictions))])
        which = int(rng.integers(len(self.prefetches) + 1))
        fetch = Part(self.prefetches[which]) if which < len(self.prefetches) else None
        return self.redrawn(Candidate(eviction, fetch), rng)

    def redrawn(self, c: Candidate, rng: np.random.Generator) -> Candidate:
        """The same policies, one parameter in four at its default, the others anywhere."""
        for i, part in enumerate(c.parts):
            c = c.with_part(i, _draw(Part(part.piece), rng))
        return c

    def near(self, c: Candidate, rng: np.random.Generator) -> Candidate:
        """``c`` with a few of its parameters moved a little, one at least."""
        knobs = [(i, k) for i, p in enumerate(c.parts) for k in p.piece.ranges]
        if not knobs:
            return c
        moved = [knob for knob in knobs if rng.random() < 1.5 / len(knobs)]
        for i, key in moved or [knobs[rng.integers(len(knobs))]]:
            part = c.parts[i]
            span = part.piece.ranges[key]
            u = rng.random()
            if not span.choices and rng.random() < 0.8:
                now = dict(part.values).get(key, getattr(part.piece.cls, key))
                u = min(max(span.share(now) + STEP * rng.standard_normal(), 0.0), 1.0)
            c = c.with_part(i, part.with_(key, span.at(u)))
        return c


def _draw(part: Part, rng: np.random.Generator) -> Part:
    for key, span in part.piece.ranges.items():
        if rng.random() >= 0.25:
            part = part.with_(key, span.at(rng.random()))
    return part


def space_of(named: Sequence[str] | None, offered: Iterable[str]) -> Space:
    """The space of some policies by name (``lrfu``, ``lru+next-layer:n=8``, ``./mine.py:Mine``), or of
    all that ship and are installed.

    ``offered``: what traces have for policies that need it (``router_scores``, ``profile``); what needs
    more, the future first of all, is left out, or refused where it is named. Parameters that a name
    sets stay as they are. Raises `InputError`.
    """
    has = frozenset(offered)
    if not named:
        pieces = [Piece(n, c, (), ranges_of(c)) for n, c in builtin().items() if c.needs <= has]
        return _space(pieces)
    pieces, given = [], []
    for text in named:
        parts = [_named(part) for part in text.split("+")]
        for piece in parts:
            lacking = sorted(piece.cls.needs - has)
            if lacking:
                raise InputError(f"{text}: {_cannot(lacking[0])}", argument="policies")
        pieces += parts
        if parts[0].evicts:
            given.append(Candidate(*(Part(p) for p in parts[:2])))
    return _space(list({p.head + repr(p.fixed): p for p in pieces}.values()), tuple(given))


def _space(pieces: list[Piece], given: tuple[Candidate, ...] = ()) -> Space:
    evict = tuple(p for p in pieces if p.evicts)
    fetch = tuple(p for p in pieces if not p.evicts)
    if not evict:
        raise InputError(
            f"{','.join(p.head for p in fetch)}: only prefetch; name one that evicts too",
            argument="policies",
        )
    return Space(evict, fetch, given)


def _cannot(need: str) -> str:
    if need == FUTURE:
        return "knows the future, which no policy on a machine does; leave it out"
    return f"needs {need.replace('_', ' ')}, which is not there; leave it out"


def _named(text: str) -> Piece:
    policy, file = make(text, experts_kind())
    cls = type(policy)
    head = text.split(":")[0] if file is None else ":".join(text.split(":")[:2])
    fixed = tuple((k, getattr(policy, k)) for k in parameters(cls) if k in vars(policy))
    ranges = {k: r for k, r in ranges_of(cls).items() if k not in dict(fixed)}
    return Piece(head, cls, fixed, ranges)


def ranges_of(cls: type[Policy]) -> dict[str, Range]:
    """What each parameter may be set to: as the class declares (`Policy.search`), else by its type
    and default. Raises `InputError` where a declaration means nothing."""
    hints = parameters(cls)
    unknown = [k for k in cls.search if k not in hints]
    if unknown:
        raise InputError(f"{cls.__name__}.search: {unknown[0]!r} is no parameter of it")
    found = {k: _range(cls, k, kind) for k, kind in hints.items()}
    return {k: r for k, r in found.items() if r is not None}


def _range(cls: type[Policy], key: str, kind: type) -> Range | None:
    told, default = cls.search.get(key), getattr(cls, key)
    if isinstance(told, list) and told:
        return Range(choices=tuple(told))
    if told is not None:
        try:
            low, high, *scale = told
            made = Range(low, high, scale == ["log"], kind is int)
            if not low < high or scale not in ([], ["log"]) or (scale and low <= 0):
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(
                f"{cls.__name__}.search: {key}: {told!r} is no range; give (low, high), "
                "(low, high, 'log') above 0, or a list of values"
            ) from None
        return made
    if kind is bool:
        return Range(choices=(False, True))
    if kind not in (int, float) or not default > 0:
        return None
    low = default / REACH
    return Range(max(1, round(low)) if kind is int else low, default * REACH, True, kind is int)


def _said(value: Any) -> str:
    """A value as a policy's name has it: all of it, and no plus, which would begin a prefetcher."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return (short if float(short) == value else repr(value)).replace("e+0", "e").replace("e+", "e")
