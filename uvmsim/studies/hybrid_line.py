"""From how many tokens an expert is worth the link: the CPU's time for one against a copy and the GPU.

One missing expert by itself: the CPU computes it where it lies, or it crosses the link and the GPU
computes it. Up to a number of tokens the CPU is done first; beyond it, the link. Nothing is kept
for later: a copy that is used again is worth more than this says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.machine.cpu_experts import cpu_experts
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.model_spec import TYPES
from uvmsim.machine.timing import copy_times, roofline_s, to_ns
from uvmsim.version import __version__

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
KINDS = ("MXFP4", "Q4_K", "Q8_0", "F16")
"""Types that are shown beside the model's own."""


@dataclass(frozen=True)
class Point:
    """ns: an expert with so many tokens."""

    tokens: int
    cpu_ns: int
    copy_ns: int
    gpu_ns: int

    @property
    def cpu_pays(self) -> bool:
        """The CPU is done before the copy and the GPU are."""
        return self.cpu_ns < self.copy_ns + self.gpu_ns


@dataclass(frozen=True)
class Line:
    """An expert of one type."""

    kind: str
    expert_bytes: int
    source: str
    """Where the CPU's speed comes from."""
    points: tuple[Point, ...]
    break_even: int
    """Most tokens with which the CPU is done first, at most 512; 0: never."""


@dataclass(frozen=True)
class HybridLine:
    """The model's own type first."""

    printer: ClassVar[str] = "uvmsim.report.hybrid_line:print_hybrid_line"

    model: str
    hardware: Hardware
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; times in ns."""
        return {
            "uvmsim": __version__,
            "model": self.model,
            "hardware": self.hardware.name,
            "program": self.hardware.engine.name,
            "link_bytes_per_s": self.hardware.h2d_bytes_per_s,
            "types": [
                {
                    "type": x.kind,
                    "expert_bytes": x.expert_bytes,
                    "cpu_pays_up_to_tokens": x.break_even,
                    "cpu": x.source,
                    "tokens": [vars(p) | {"cpu_pays": p.cpu_pays} for p in x.points],
                }
                for x in self.lines
            ],
        }


def hybrid_line(
    model: str | Model = "gpt-oss-20b", hardware: str | Hardware = "rtx5090", pinned: bool = True
) -> HybridLine:
    """An expert of ``model``'s shape in its own type and some others, on a machine. Raises
    `InputError`."""
    m = model if isinstance(model, Model) else Model.load(model)
    hw = hardware if isinstance(hardware, Hardware) else Hardware.load(hardware)
    own = m.quantisation.upper()
    at = int(np.argmax(m.expert_bytes))
    lines = []
    for kind in dict.fromkeys((own, *KINDS)):
        if kind == own:
            nbytes = m.expert_bytes[at]
        else:
            weights, size = TYPES[kind]
            nbytes = -(-m.expert_params[at] * size // weights)
        lines.append(_line(hw, kind, nbytes, m.expert_params[at], pinned))
    return HybridLine(m.name, hw, tuple(lines))


def _line(hw: Hardware, kind: str, nbytes: int, params: int, pinned: bool) -> Line:
    if nbytes <= 0:
        raise InputError(f"an expert of {nbytes} bytes: nothing to compare")
    speed = cpu_experts(hw, kind)
    tokens = np.arange(1, TOKENS[-1] + 1)
    cpu = speed.ns(float(nbytes), float(params), tokens) + speed.sync_ns
    copy = int(copy_times(np.array([nbytes]), hw, "h2d", pinned, False)[0])
    tile = hw.engine.expert_tile_tokens or 1
    tiled = np.where(tokens > hw.engine.row_kernel_tokens, -(-tokens // tile) * tile, tokens)
    gpu = to_ns(roofline_s(hw, float(nbytes), 2.0 * params * tiled)) + hw.engine.expert_launch_ns
    later = np.flatnonzero(cpu >= copy + gpu)
    points = (Point(t, int(cpu[t - 1]), copy, int(gpu[t - 1])) for t in TOKENS)
    return Line(
        kind, int(nbytes), speed.source, tuple(points),
        int(tokens[later[0]]) - 1 if len(later) else TOKENS[-1],
    )  # fmt: skip
