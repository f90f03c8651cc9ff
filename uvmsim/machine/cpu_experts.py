"""How fast a CPU computes routed experts, by the type of their weights.

Measured by type where the engine's profile has a table of it (``[engine.cpu_experts.MXFP4]``, from
`uvmsim calibrate`) or llama.cpp's terms; else weights are read as fast as the engine's CPU kernels
read any, and operations are an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from uvmsim.machine.model_spec import TYPES
from uvmsim.machine.quantities import Flops, Rate, Time

FLOPS_PER_BYTE = 5
"""Operations for a byte the machine's CPU reads, where nobody measured: of five types on an H100's
host with llama.cpp 3.8 to 7.8, mean 5.3."""


class CpuExpertsSpec(BaseModel):
    """``[engine.cpu_experts.TYPE]``: one type's weights on the CPU; ``wave_ns``: waking its
    threads, once a wave."""

    model_config = ConfigDict(extra="forbid")
    bytes_per_s: Rate
    flops: Flops
    wave_ns: Time
    source: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class CpuExperts:
    """An expert with t tokens takes the longer of reading its bytes and 2 t operations a weight; a wave
    that uses the CPU ``sync_ns`` more."""

    bytes_per_s: float
    flops: float
    sync_ns: int
    """To the CPU and back, its threads woken."""
    source: str
    """Where the numbers come from; begins with ``estimate:`` where the operations were not measured."""

    def ns(self, nbytes: Any, params: Any, tokens: Any) -> np.ndarray:
        """int64: experts of ``nbytes`` and ``params`` weights with ``tokens`` each; none takes none."""
        tokens = np.asarray(tokens)
        seconds = np.maximum(nbytes / self.bytes_per_s, 2.0 * params * tokens / self.flops)
        return np.where(tokens > 0, np.rint(seconds * 1e9), 0).astype(np.int64)


def cpu_experts(hw: Any, kind: str) -> CpuExperts:
    """The CPU of a `uvmsim.machine.hardware.Hardware` with experts of a tensor type (``MXFP4``,
    ``Q4_K``, ``F16``, ...); a type that was not measured takes the nearest one's, in bits a weight."""
    engine, kind = hw.engine, kind.upper()
    known: Mapping[str, CpuExpertsSpec] = engine.cpu_experts or {}
    if known:
        name = kind if kind in known else min(known, key=lambda k: (abs(_bits(k) - _bits(kind)), k))
        found = known[name]
        as_of = "" if name == kind else f" (as {name})"
        return CpuExperts(
            found.bytes_per_s, found.flops, engine.cpu_sync_ns + found.wave_ns,
            f"{found.source}{as_of}",
        )  # fmt: skip
    if engine.terms is not None:
        ns = engine.terms.on(hw)
        row, pair = ns.get(f"cpu.row_experts.{kind}"), ns.get(f"cpu.experts.{kind}")
        if row > 0 and pair > 0:
            return CpuExperts(
                1e9 / row, 1e9 / pair, engine.cpu_sync_ns, f"{engine.name}: its terms"
            )
    rate = hw.reach.cpu_bytes_per_s
    return CpuExperts(
        rate, FLOPS_PER_BYTE * hw.cpu_bytes_per_s, engine.cpu_sync_ns,
        f"estimate: {engine.name} reads weights so fast; {FLOPS_PER_BYTE} operations for a byte that "
        "the machine reads",
    )  # fmt: skip


def _bits(kind: str) -> float:
    weights, size = TYPES.get(kind, (1, 2))
    return 8 * size / weights
