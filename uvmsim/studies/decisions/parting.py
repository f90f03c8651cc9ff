"""Two page policies and where they part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.policies.pages.base import PagePolicy
from uvmsim.policies.pages.registry import (
    ORDER_HOOKS,
    PREFETCH_HOOKS,
    PagePolicySpec,
    builtin_pages,
    hooks_of,
    pages_of,
)
from uvmsim.studies.decisions.ask import N_BLOCKS, ask
from uvmsim.studies.decisions.stream import FAULT, SERVE, Stream, stream

QUESTIONS = ("fault", "service", "end of a batch")
ACTIONS = ("default", "bypass", "enter the loop")
PLACES = ("between", "at the head", "at the tail", "alone")
NEAR_EVENTS = 4_000
"""Questions that a resemblance is told from."""


@dataclass(frozen=True)
class Parting:
    """How two policies answered the same stream."""

    names: tuple[str, str]
    questions: dict[str, int]
    """By kind."""
    equal: dict[str, int]
    first: dict[str, Any] | None
    """The first question they answer differently; None: they never do."""

    @property
    def share(self) -> float:
        """Of equal answers."""
        return sum(self.equal.values()) / max(sum(self.questions.values()), 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "policies": list(self.names), "questions": self.questions, "equal": self.equal,
            "share": self.share, "first": self.first,
        }  # fmt: skip


def part(a: Any, b: Any, events: int = 100_000, seed: int = 0) -> Parting:
    """Ask two page policies (names, files, objects, classes) the same ``events`` questions. Raises
    `InputError`."""
    if not 1 <= events <= 10_000_000:
        raise InputError(f"{events}: 1 to 10,000,000 questions", argument="events")
    if seed < 0:
        raise InputError(f"{seed}: 0 or more", argument="seed")
    first, second = pages_of(a), pages_of(b)
    q = stream(events, N_BLOCKS, seed)
    answers = [ask(one(spec), q, seed) for spec in (first, second)]
    return parted((first.name, second.name), q, answers[0], answers[1])


def one(spec: PagePolicySpec) -> PagePolicy:
    """The policy of a spec; `InputError` where it is two."""
    if spec.prefetch is not spec.order:
        raise InputError(f"policy {spec.name}: give one program, not two joined by +")
    return spec.prefetch


def parted(names: tuple[str, str], q: Stream, a: np.ndarray, b: np.ndarray) -> Parting:
    """Compare answers."""
    same = (a == b).all(axis=1)
    questions = {k: int((q.kind == i).sum()) for i, k in enumerate(QUESTIONS)}
    equal = {k: int((same & (q.kind == i)).sum()) for i, k in enumerate(QUESTIONS)}
    first = None
    if not same.all():
        at = int(np.flatnonzero(~same)[0])
        first = {
            "event": at, "kind": QUESTIONS[q.kind[at]], "block": int(q.block[at]),
            "page": int(q.page[at]), "answers": [told(int(q.kind[at]), x[at]) for x in (a, b)],
        }  # fmt: skip
    return Parting(names, questions, equal, first)


def told(kind: int, row: np.ndarray) -> str:
    """An answer in words."""
    words = []
    if kind == FAULT:
        words.append(ACTIONS[row[0]])
        if row[0]:
            words.append(f"pages {row[1]} to {row[2]}" if row[2] > row[1] else "no pages")
    elif kind == SERVE:
        if row[0] >= 0:
            words.append(f"chunk {row[0]} leaves next")
        if row[1] >= 0:
            words.append(f"allocated, then {PLACES[row[1]]}")
        words.append(f"accessed ({ACTIONS[row[2]]}), then {PLACES[row[3]]}")
    if row[4]:
        words.append(f"{row[4]} blocks asked for, the first {row[5]}")
    return ", ".join(words) or "nothing asked for"


def resembling(policy: PagePolicy, events: int = NEAR_EVENTS) -> list[tuple[str, float]]:
    """Built-in policies that decide in the same kinds of hooks, and the share of answers each has in
    common, the nearest first."""
    q = stream(events, N_BLOCKS)
    mine = ask(policy, q)
    wanted = _kinds(type(policy))
    found = []
    for name, cls in _candidates():
        if _kinds(cls) == wanted or name == "default":
            try:
                theirs = ask(cls(), q, compiled=False)
            except InputError:
                continue  # one that needs a parameter
            found.append((name, float((mine == theirs).all(axis=1).mean())))
    return sorted(found, key=lambda x: (-x[1], x[0] != "default", x[0]))


def _candidates() -> Iterator[tuple[str, type[PagePolicy]]]:
    yield from builtin_pages().items()


def _kinds(cls: type[PagePolicy]) -> tuple[bool, bool]:
    mine = set(hooks_of(cls))
    return bool(mine & set(PREFETCH_HOOKS)), bool(mine & set(ORDER_HOOKS))
