"""What a user says of neighbours and of how the slots are shared, from text."""

from __future__ import annotations

from typing import Any

from traces.errors import InputError
from uvmsim.studies.scenario import Scenario


def neighbour_of(text: str) -> tuple[str, dict[str, str]]:
    """``B.arrow:model=M:share=40%`` as a path and its options."""
    path, *rest = text.split(":")
    while rest and "=" not in rest[0]:
        path = f"{path}:{rest.pop(0)}"
    options = dict(x.partition("=")[::2] for x in rest)
    for key in options:
        if key not in ("model", "share"):
            raise InputError(f"{text}: {key}: give model=M or share=40%", argument="neighbour")
    return path, options


def share_of(text: str, argument: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = 0.0
    if not (text.endswith("%") and 0 < value < 1):
        raise InputError(f"{text}: give a share above 0% and below 100%", argument=argument)
    return value


def budgets_of(s: Scenario, shares: list[float | None]) -> tuple[float, ...] | None:
    """Shares of the slots, the first model's too; None: one pool."""
    given: Any = s.budget
    if given == ("shared",):
        return None
    if given is not None:
        found = [share_of(x, "budget") for x in given]
        if len(found) != len(shares):
            raise InputError(
                f"{','.join(given)}: give shared, or {len(shares)} shares, one a model",
                argument="budget",
            )
    elif any(x is not None for x in shares[1:]):
        if None in shares[1:]:
            raise InputError(": give each neighbour a share, or none", argument="neighbour")
        others = [x for x in shares[1:] if x is not None]
        found = [1 - sum(others), *others]
    else:
        return None
    if sum(found) > 1 + 1e-9 or found[0] <= 0:
        told = ", ".join(f"{x:.0%}" for x in found)
        raise InputError(f"{told}: are more than all slots", argument="budget")
    return tuple(found)
