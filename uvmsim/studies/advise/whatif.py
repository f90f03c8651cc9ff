"""What a change of the machine would give: ``vram+8GiB``, ``link*2``, ``ram-bandwidth*1.5``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from traces.errors import InputError
from uvmsim.core.units import parse_bandwidth, parse_bytes
from uvmsim.machine.hardware import Hardware

DEFAULT = ("vram+8GiB", "link*2", "ram-bandwidth*1.5")
WHERE_NOTHING_FITS = ("ram*2",)
_FORM = re.compile(r"\s*([a-z-]+)\s*([-+*=])\s*(.+?)\s*$")
_PARTS: dict[str, tuple[str, Callable[[Any], int]]] = {
    "vram": ("vram_bytes", parse_bytes),
    "ram": ("host_bytes", parse_bytes),
    "link": ("h2d_bytes_per_s", parse_bandwidth),
    "ram-bandwidth": ("cpu_bytes_per_s", parse_bandwidth),
}
EXAMPLES = "vram+8GiB, vram=24GiB, link*2, link=25GB/s, ram+64GiB, ram-bandwidth*1.5"


def usual(hw: Hardware) -> tuple[str, ...]:
    """What is tried where nothing is asked for: on an engine without a GPU what bears on it."""
    on_gpu = hw.engine.terms is None or hw.engine.terms.gpu
    return DEFAULT if on_gpu else tuple(x for x in DEFAULT if x.startswith("ram-"))


def changed(hw: Hardware, text: str) -> Hardware:
    """The machine with one thing changed. Raises `InputError`.

    ``link`` moves both directions and what is bound by it; ``ram-bandwidth`` how fast the CPU reads
    weights, and copies of memory that is not page-locked, up to the link.
    """
    match = _FORM.match(text)
    if match is None or match[1] not in _PARTS:
        raise InputError(f"{text}: not a change; write {EXAMPLES}", argument="what_if")
    name, sign, amount = match.groups()
    field, parse = _PARTS[name]
    now = getattr(hw, field)
    if now is None and sign != "=":
        raise InputError(f"{text}: how much there is now is not known; give `ram`, or {name}=SIZE",
                         argument="what_if")  # fmt: skip
    new = _value(text, sign, amount, now or 0, parse)
    if name == "vram":
        return hw.with_(vram=new)
    if name == "ram":
        return replace(hw, host_bytes=new)
    if name == "link":
        return hw.with_(link=new)
    return _ram_bandwidth(hw, new)


def _value(text: str, sign: str, amount: str, now: int, parse: Callable[[Any], int]) -> int:
    try:
        if sign == "*":
            new = round(now * float(amount))
        else:
            new = parse(amount)
            new = {"+": now + new, "-": now - new, "=": new}[sign]
    except (ValueError, OverflowError):
        raise InputError(f"{text}: {amount!r} is no factor; write {EXAMPLES}", "what_if") from None
    except InputError as err:
        raise InputError(f"{text}: {err}; write {EXAMPLES}", "what_if") from None
    if not 0 < new < 2**63:
        raise InputError(f"{text}: leaves {new:,}; a machine has more than nothing", "what_if")
    return new


def _ram_bandwidth(hw: Hardware, rate: int) -> Hardware:
    was = hw.cpu_bytes_per_s

    def scaled(x: int) -> int:
        return max(1, x * rate // was)

    own = hw.engine.cpu_bytes_per_s
    engine = hw.engine if own is None else replace(hw.engine, cpu_bytes_per_s=scaled(own))
    return replace(
        hw,
        engine=engine,
        cpu_bytes_per_s=rate,
        pageable_h2d_bytes_per_s=min(scaled(hw.pageable_h2d_bytes_per_s), hw.h2d_bytes_per_s),
        pageable_d2h_bytes_per_s=min(scaled(hw.pageable_d2h_bytes_per_s), hw.d2h_bytes_per_s),
    )
