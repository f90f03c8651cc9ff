"""Time: clocks play a plan (`uvmsim.runs.plan`). The readable one is SimPy's, the fast one compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from traces.errors import InputError

if TYPE_CHECKING:
    from uvmsim.runs.plan import Plan
    from uvmsim.runs.timeline import Timeline

CLOCKS = {"des": "uvmsim.clocks.des", "fast": "uvmsim.clocks.fast"}
"""Modules with a function ``run(plan) -> Timeline``, by name."""


def clock(name: str) -> Callable[[Plan], Timeline]:
    """The clock of that name; raises `InputError` for another."""
    if name not in CLOCKS:
        raise InputError(f"{name}: must be one of {', '.join(CLOCKS)}", argument="engine")
    played: Callable[[Plan], Timeline] = importlib.import_module(CLOCKS[name]).run
    return played
