"""The constants with which counted work meets measured times, stage by stage; none is negative.

Each stage holds what earlier ones found fixed and solves for the terms that are new in it: tokens one
by one on the GPU, prompts, then weights on the host and the expert cache, managed memory. Errors are
relative: every test of a stage weighs the same, whatever it took.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from replay.calibrate.stats import non_negative_least_squares
from replay.llama_cpp import design
from replay.llama_cpp.collect import Equation
from replay.llama_cpp.expected import WEIGHT
from uvmsim.machine.llama_terms import stem_of


@dataclass
class Fit:
    """``ns``: nanoseconds a unit by term; ``errors``: predicted over measured, less 1, by equation."""

    ns: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def predict(self, e: Equation) -> float:
        """Nanoseconds of a counted test."""
        total = sum(n * self.ns.get(key, 0.0) for key, n in e.counts.items())
        return total + e.kernels * self.ns.get("launch", 0.0)


def fit(
    equations: list[Equation],
    least: Mapping[str, float] | None = None,
    expected: Mapping[str, float] | None = None,
) -> Fit:
    """All stages. Terms that no equation has stay out. ``least``: what a unit costs at least, by stem
    of a term (a byte cannot be read faster than memory gives it, whatever the fit would like).
    ``expected``: what it costs about, by term or stem, where runs leave it open."""
    out = Fit()
    for e in equations:  # too small a part to be found, and too easily taken for something else
        out.ns |= {k: (least or {}).get(stem_of(k), 0.0) for k in e.counts if _plain(k)}
    resident = [e for e in equations if e.mode == design.RESIDENT]
    whole = [e for e in resident if not e.row and not e.kernels]
    offload = [e for e in equations if e.mode in (design.MAPPED, design.PINNED)]
    cache = [e for e in equations if e.mode == design.CACHE]
    remote = [e for e in equations if e.mode == design.REMOTE]
    stages = [
        [e for e in resident if e.row or _few(e)],
        [e for e in whole if not _few(e)],
        [e for e in offload if e.row] + cache,
        [e for e in offload if _small(e)],
        [e for e in offload if not e.row and not _small(e)],
        [e for e in equations if e.mode == design.MANAGED],
        [e for e in remote if e.row],
        [e for e in remote if not e.row],
    ]
    for i, stage in enumerate(stages):
        _stage(out, stage, least or {}, expected or {})
        if i == 1:
            _launches(out, [e for e in resident if e.kernels])
    for e in equations:
        out.errors[e.key] = out.predict(e) / e.ns - 1
    return out


def _plain(key: str) -> bool:
    """A term of the router's and the norms' float weights, and what the CPU writes beside products."""
    return key.endswith(".F32") or key == "cpu.activations"


def _joined(key: str) -> str:
    """On the CPU a matrix and a chosen expert have one constant: few models tell them apart."""
    return key.replace("cpu.row_experts.", "cpu.row.").replace("cpu.experts.", "cpu.dense.")


def _few(e: Equation) -> bool:
    """A prompt that runs as single tokens do."""
    return not e.row and ("step" in e.counts or "cpu.step" in e.counts)


def _small(e: Equation) -> bool:
    """A prompt so short that the CPU computes with the weights that lie with it."""
    return not e.row and not any(k in e.counts for k in ("pageable", "pinned"))


def _stage(
    out: Fit, equations: list[Equation], least: Mapping[str, float], expected: Mapping[str, float]
) -> None:
    """Solve for the terms of ``equations`` that have no constant yet."""
    seen = {k for e in equations for k, n in e.counts.items() if n} - out.ns.keys()
    new = sorted({_joined(k) for k in seen})
    if not new:
        return
    took = np.array([e.ns for e in equations])
    floor = np.array([least.get(stem_of(k), 0.0) for k in new])
    counts = np.zeros((len(equations), len(new)))
    for i, e in enumerate(equations):
        for k in seen:
            counts[i, new.index(_joined(k))] += e.counts.get(k, 0.0)
    known = counts @ floor + [
        sum(n * out.ns.get(k, 0.0) for k, n in e.counts.items()) for e in equations
    ]
    largest = counts.max(axis=0)
    scaled, wanted = counts / largest / took[:, None], (took - known) / took
    about = np.array([expected.get(k, expected.get(stem_of(k), 0.0)) for k in new])
    pulled = about > 0
    pull = np.diag(WEIGHT / np.where(pulled, about, 1.0) / largest)[pulled]
    scaled = np.vstack([scaled, pull])
    wanted = np.concatenate([wanted, WEIGHT * (1 - floor / np.where(pulled, about, 1.0))[pulled]])
    found = non_negative_least_squares(scaled, wanted) / largest + floor
    ns = {k: float(x) for k, x in zip(new, found, strict=True)}
    out.ns |= {k: ns[_joined(k)] for k in seen}


def _launches(out: Fit, equations: list[Equation]) -> None:
    """What a kernel without a CUDA graph costs more: the median over prompts of changing shape."""
    each = [
        (e.ns - sum(n * out.ns.get(k, 0.0) for k, n in e.counts.items())) / e.kernels
        for e in equations
    ]
    if each:
        out.ns["launch"] = max(0.0, float(np.median(each)))


def mean_error(errors: Iterable[float]) -> float:
    """Mean absolute of some errors; 0 without any."""
    found = [abs(x) for x in errors]
    return float(np.mean(found)) if found else 0.0
