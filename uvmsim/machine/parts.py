"""Parts of a machine around its card: ``rtx3090+pcie3``, ``rtx4060ti+pcie4x8+ddr5-6000x2``.

A part is one file in ``presets/parts/``, found by its presence: a kind of slot (PCI Express by
generation) or of host memory (DDR by generation). What follows its name says how much of it there is:

- ``pcie4`` is sixteen lanes, ``pcie4x8`` eight. A slot slows a card down and never speeds it up: the
  link is the slower of the two. What is bound by the link follows as with ``--link``.
- ``ddr5-6000x4`` is four channels at 6,000 million transfers a second, two where the number of
  channels is left out; without a rate it is the generation's usual one. The CPU reads weights with a
  share of what the channels carry together, and what follows from that is as with ``--ram-bandwidth``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from traces.errors import InputError
from uvmsim.core.units import format_rate
from uvmsim.machine.descriptions import preset_paths, read
from uvmsim.machine.quantities import Count, Rate, Share, Sourced

Hardware = Any
"""`uvmsim.machine.hardware.Hardware`, which is made with this file's help."""

LANES = (1, 2, 4, 8, 16)
CHANNELS = 2
"""Of a desktop."""
TRANSFER_BYTES = 8
"""A memory channel is 64 bits wide; DDR5 has them as two of 32."""
_TEXT = re.compile(r"([a-z]+[0-9]+)(?:-([0-9]+))?(?:x([0-9]+))?")


class SlotSpec(BaseModel):
    """A kind of slot: ``lane_bytes_per_s`` each way, of which copies reach ``reached``."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: Literal["slot"]
    summary: str
    lane_bytes_per_s: Sourced[Rate]
    reached: Sourced[Share]


class MemorySpec(BaseModel):
    """A kind of host memory: ``usual_mt_per_s`` million transfers a second, of whose bytes the CPU
    reads weights with the share ``reached``."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: Literal["memory"]
    summary: str
    usual_mt_per_s: Sourced[Count]
    slowest_mt_per_s: Sourced[Count]
    fastest_mt_per_s: Sourced[Count]
    reached: Sourced[Share]


class Part(NamedTuple):
    """One part as named."""

    text: str
    kind: str
    """``slot`` or ``memory``."""
    bytes_per_s: int
    """What is reached of it."""
    source: str
    """How that was found, as a description's source."""


def list_parts() -> dict[str, str]:
    """Name -> one line saying what it is and how it is written."""
    return {name: str(_spec(name).summary) for name in preset_paths("parts")}


def split(spec: str) -> tuple[str, list[Part]]:
    """``rtx3090+pcie3`` as the machine's name and its parts; a name without parts as it is.

    Raises `InputError` for what is no part, and for two parts of a kind. A plus sign in a path is
    the path's.
    """
    name, plus, last = spec.rpartition("+")
    found: list[Part] = []
    while plus and not last.lower().endswith(".toml"):
        found.insert(0, part(last))
        name, plus, last = name.rpartition("+")
    kinds = [p.kind for p in found]
    for p in found:
        if kinds.count(p.kind) > 1:
            raise InputError(f"{spec}: two parts of a kind ({p.kind}); give one")
    return (f"{name}+{last}" if plus else last), found


def part(text: str) -> Part:
    """The part that ``text`` names; `InputError` where there is none."""
    told = _TEXT.fullmatch(text.lower())
    name, rate, count = told.groups() if told else (text.lower(), None, None)
    if name not in preset_paths("parts"):
        raise InputError(f"{text!r} is no part of a machine; parts: {', '.join(_examples())}")
    spec = _spec(name)
    if isinstance(spec, SlotSpec):
        return _slot(text, spec, rate, count)
    return _memory(text, spec, rate, count)


def fitted(hw: Hardware, p: Part, told_by: str = "") -> Hardware:
    """A machine with a part; ``told_by`` goes before its source."""
    source = f"{p.source}; {told_by}" if told_by else p.source
    if p.kind == "slot":
        slowest = min(p.bytes_per_s, hw.h2d_bytes_per_s, hw.d2h_bytes_per_s)
        if p.bytes_per_s >= max(hw.h2d_bytes_per_s, hw.d2h_bytes_per_s):
            return replace(hw, name=f"{hw.name}+{p.text.lower()}")
        made = hw.with_(link=slowest)
    else:
        made = hw.with_(ram=p.bytes_per_s)
    changed = {k for k, v in made.sources.items() if hw.sources.get(k) != v}
    direct = {"h2d_bytes_per_s", "d2h_bytes_per_s", "cpu_bytes_per_s"}
    why = {
        k: source if k in direct else f"estimate: with {_said(p)}, {_was(hw, k)}" for k in changed
    }
    same = {k: hw.sources[k] for k in changed if _value(made, k) == _value(hw, k)}
    sources = made.sources | why | same
    return replace(made, name=f"{hw.name}+{p.text.lower()}", sources=sources)


def _said(p: Part) -> str:
    return f"{p.text.lower()} ({format_rate(p.bytes_per_s)})"


def _was(hw: Hardware, key: str) -> str:
    return f"from {format_rate(_value(hw, key))} of {hw.name} ({hw.sources[key]})"


def _value(hw: Any, key: str) -> Any:
    for name in key.split("."):
        hw = getattr(hw, name)
    return hw


def _slot(text: str, spec: SlotSpec, rate: str | None, count: str | None) -> Part:
    lanes = 16 if count is None else int(count)
    if rate is not None or lanes not in LANES:
        raise InputError(f"{text}: write it like {spec.name} or {spec.name}x8 (1 to 16 lanes)")
    whole = spec.lane_bytes_per_s.value * lanes
    source = (
        f"estimate: {spec.reached.value * 100:.3g} % of {format_rate(whole)} ({spec.name} x{lanes}: "
        f"{spec.lane_bytes_per_s.source}); {spec.reached.source}"
    )
    return Part(text, spec.kind, round(whole * spec.reached.value), source)


def _memory(text: str, spec: MemorySpec, rate: str | None, count: str | None) -> Part:
    mt = int(rate) if rate else spec.usual_mt_per_s.value
    channels = int(count) if count else CHANNELS
    slowest, fastest = spec.slowest_mt_per_s.value, spec.fastest_mt_per_s.value
    if not slowest <= mt <= fastest:
        raise InputError(
            f"{text}: {spec.name} does {slowest:,} to {fastest:,} million transfers a second; write "
            f"it like {spec.name}-{spec.usual_mt_per_s.value}x2"
        )
    if not 1 <= channels <= 24:
        raise InputError(f"{text}: 1 to 24 channels; write it like {spec.name}-{mt}x2")
    whole = mt * 10**6 * TRANSFER_BYTES * channels
    source = (
        f"estimate: {spec.reached.value * 100:.3g} % of {format_rate(whole)} ({channels} channels of "
        f"64 bits at {mt:,} MT/s); {spec.reached.source}"
    )
    return Part(text, spec.kind, round(whole * spec.reached.value), source)


def _spec(name: str) -> SlotSpec | MemorySpec:
    path = preset_paths("parts")[name]
    if 'kind = "memory"' in path.read_text(encoding="utf-8"):
        return read(path, MemorySpec)
    return read(path, SlotSpec)


def _examples() -> list[str]:
    specs = {name: _spec(name) for name in preset_paths("parts")}
    return [
        f"{name}-{s.usual_mt_per_s.value}x{CHANNELS}" if isinstance(s, MemorySpec) else name
        for name, s in specs.items()
    ]
