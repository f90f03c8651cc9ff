"""Time: clocks play a plan (`uvmsim.runs.plan`). The readable one is SimPy's, the fast one compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from traces.errors import InputError

if TYPE_CHECKING:
    from uvmsim.runs.joint import JointPlan, JointTimeline
    from uvmsim.runs.plan import Plan
    from uvmsim.runs.timeline import Timeline

CLOCKS = {"des": "uvmsim.clocks.des", "fast": "uvmsim.clocks.fast"}
"""Modules with a function ``run(plan) -> Timeline``, by name."""
JOINT = {"des": "uvmsim.clocks.des_joint", "fast": "uvmsim.clocks.joint"}
"""The same for several devices, ``run(plan) -> JointTimeline``."""


def clock(name: str) -> Callable[[Plan], Timeline]:
    """The clock of that name; raises `InputError` for another."""
    played: Callable[[Plan], Timeline] = _module(name, CLOCKS).run
    return played


def joint_clock(name: str) -> Callable[[JointPlan], JointTimeline]:
    """The clock of that name for several devices; raises `InputError` for another."""
    played: Callable[[JointPlan], JointTimeline] = _module(name, JOINT).run
    return played


def _module(name: str, among: dict[str, str]) -> Any:
    if name not in among:
        raise InputError(f"{name}: must be one of {', '.join(among)}", argument="engine")
    return importlib.import_module(among[name])
