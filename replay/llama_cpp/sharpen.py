"""What a few runs of a model itself say about the constants for it: one factor a group of terms."""

from __future__ import annotations

import numpy as np

from replay.llama_cpp import design
from replay.llama_cpp.collect import Equation
from replay.llama_cpp.fit import Fit
from uvmsim.machine.llama_terms import BATCH, CPU_BATCH, CPU_ROW, LINK, MAPPED, ROW, term_of

OWN = "model"
"""The name under which `collect` runs the user's model."""
LEAST, MOST = 0.2, 5.0
"""Factors beyond these mean that something else is wrong; they are cut."""


def sharpen(fit: Fit, equations: list[Equation]) -> dict[str, float]:
    """Factors by group from the model's own equations; groups it has no run for stay out.

    Tokens on the GPU (or all on the CPU) first, then what is left of runs with experts in host memory.
    """
    own = [e for e in equations if e.name == OWN]
    resident = [e for e in own if e.mode == design.RESIDENT]
    offload = [e for e in own if e.mode in (design.MAPPED, design.PINNED)]
    factors: dict[str, float] = {}
    on_cpu = any(k.startswith("cpu.") for e in resident for k in e.counts)
    _set(factors, fit, CPU_ROW if on_cpu else ROW, [e for e in resident if e.row])
    _set(factors, fit, CPU_BATCH if on_cpu else BATCH, [e for e in resident if not e.row])
    _set(factors, fit, CPU_ROW, [e for e in offload if e.row])
    for group, mode in ((LINK, design.PINNED), (MAPPED, design.MAPPED)):
        _set(factors, fit, group, [e for e in offload if e.mode == mode and not e.row])
    return factors


def parts(fit: Fit, e: Equation) -> dict[str, float]:
    """Nanoseconds of an equation by group."""
    out: dict[str, float] = {}
    for key, n in e.counts.items():
        term = term_of(key)
        assert term is not None
        group = term.group(key)
        out[group] = out.get(group, 0.0) + n * fit.ns.get(key, 0.0)
    return out


def _set(factors: dict[str, float], fit: Fit, group: str, equations: list[Equation]) -> None:
    if group in factors:
        return
    each = []
    for e in equations:
        by = parts(fit, e)
        own = by.pop(group, 0.0)
        rest = sum(ns * factors.get(g, 1.0) for g, ns in by.items())
        if own > 0 and e.ns > rest:
            each.append((e.ns - rest) / own)
    if each:
        factors[group] = float(np.clip(np.exp(np.mean(np.log(each))), LEAST, MOST))
