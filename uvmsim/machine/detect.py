"""This machine, from what it reports: ``--hardware auto``, `uvmsim hardware --detect`.

Asked are nvidia-smi (the card, its memory, its PCI Express slot), else lspci; the CUDA driver (memory,
its bus and clock, multiprocessors); dmidecode, else udev (the memory modules: type, rate, channels);
/proc/meminfo and /proc/cpuinfo. Nothing is measured. The card's speeds are the preset's of that name;
where there is none, they follow from what the driver says, as those of presets follow from
datasheets, or are the nearest card's. Slot and memory modules are parts (`uvmsim.machine.parts`).
`uvmsim calibrate` measures instead.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

from traces.errors import InputError
from uvmsim.core.units import format_bytes, format_flops, format_rate, parse_bytes
from uvmsim.machine.descriptions import preset_paths
from uvmsim.machine.parts import Part, part
from uvmsim.machine.reports import (
    MIB,
    Card,
    Modules,
    System,
    cpu_name,
    cuda_facts,
    dmidecode,
    lspci,
    meminfo,
    nvidia_smi,
    udev,
)

AUTO = "auto"
"""The name under which a machine is asked for what it is."""
USABLE = 0.97
"""Of the memory that nvidia-smi reports. A program gets 98.0 % of it on the rtx4090 preset (23.51 GiB
of 24,564 MiB) and 96.9 % on the rtx5090 preset (31,580 of 32,607 MiB)."""
READ, MULTIPLIED = 0.89, 0.6
"""Shares of a datasheet's memory and compute rates that presets take as reached."""
OPERATIONS = {
    "7.5": 1024,
    "8.0": 2048,
    "8.6": 1024,
    "8.9": 1024,
    "9.0": 4096,
    "10.0": 8192,
    "12.0": 1024,
}
"""Dense FP16 tensor operations with FP32 accumulate a multiprocessor and clock, by compute capability
(the architectures' whitepapers); GeForce cards do half of it."""
TOTAL_MEMORY = "CUDA driver: cuDeviceTotalMem; a program's own CUDA context is to be taken off"
THREADS = 128
"""Of a decode kernel's thread block."""
TOO_FAR = 0.12
"""Share by which a card's memory may differ from the preset's before it is another variant."""


@dataclass(frozen=True)
class Found:
    """A machine as a preset with parts, and what it says itself."""

    base: str
    """Preset."""
    parts: list[tuple[Part, str]]
    """Each with who reported it."""
    own: dict[str, Any] = field(default_factory=dict)
    """Tables of a description, to be put over the preset's."""


def detected(system: System | None = None) -> Found:
    """What this machine reports, as a preset with parts and quantities of its own.

    Raises `InputError` where no tool reports an NVIDIA GPU. The real machine is asked once a process.
    """
    return _real() if system is None else _detect(system)


@functools.cache
def _real() -> Found:
    return _detect(System())


def _detect(system: System) -> Found:
    cuda = cuda_facts(system)
    card = nvidia_smi(system) or lspci(system)
    if card is None and cuda is not None:
        card = Card(str(cuda["name"]), "CUDA driver")
    if card is None:
        raise InputError(
            "auto: no NVIDIA GPU is reported here (nvidia-smi, lspci, CUDA driver); name a preset, "
            "perhaps with parts (`uvmsim hardware` lists both)"
        )
    base, exact = nearest(card.name, card.total_bytes)
    own: dict[str, Any] = {"name": AUTO}
    own["gpu"] = card.name if card.name.startswith("NVIDIA") else f"NVIDIA {card.name}"
    preset = tomllib.loads(preset_paths("hardware")[base].read_text(encoding="utf-8"))
    if not exact:
        for key in ("memory_bytes_per_s", "compute_flops"):
            own[key] = dict(preset[key]) | {
                "source": f"estimate: the {base} preset's, the nearest to a {card.name} "
                f"({card.told_by}); its datasheet's numbers would be better"
            }
    own |= _memory_of(card)
    if cuda is not None and _tokens(str(cuda["name"])) == _tokens(card.name):
        own |= _told_by_cuda(cuda, exact, "uvm" in preset)
    parts = []
    if card.generation is not None and card.lanes is not None:
        slot = _slot(card.generation, card.lanes)
        if slot is not None:
            parts.append((slot, card.link_told))
    modules = dmidecode(system) or udev(system)
    if modules is not None:
        try:
            text = f"{modules.kind}-{modules.mt_per_s}x{modules.channels}"
            parts.append((part(text), modules.told))
        except InputError:
            modules = None  # a rate that no such module has: not believed
    host = meminfo(system)
    if host is not None:
        own["host_bytes"] = {"value": host, "source": "/proc/meminfo: MemTotal"}
    own["summary"] = _summary(system, card, base, exact, modules, host)
    return Found(base, parts, own)


def _memory_of(card: Card) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if card.total_bytes is not None:
        own["vram_bytes"] = {
            "value": int(card.total_bytes * USABLE) // MIB * MIB,
            "source": f"estimate: {USABLE:.0%} of {card.total_bytes // MIB:,} MiB "
            f"({card.told_by}: memory.total), which is about what a program gets of it",
        }
    if card.used_bytes is not None:
        own["reserve_bytes"] = {
            "value": card.used_bytes,
            "source": f"{card.told_by}: memory.used when it was asked (desktop, other programs)",
        }
    return own


def _told_by_cuda(cuda: dict[str, Any], exact: bool, paged: bool) -> dict[str, Any]:
    """What the driver knows: the memory that a program gets and, of a card without a preset, its
    speeds as a datasheet would have them."""

    def told(value: int, source: str) -> dict[str, Any]:
        return {"value": value, "source": source}

    own = {"vram_bytes": told(cuda["total_bytes"], TOTAL_MEMORY)}
    sms, clock = cuda["sm_count"], cuda["clock_khz"] * 1000
    if paged:
        ctas = max(1, cuda["threads_per_sm"] // THREADS)
        text = (
            f"CUDA driver: {cuda['threads_per_sm']:,} threads an SM, over the {THREADS} of a block"
        )
        own["uvm"] = {"sm_count": told(sms, "CUDA driver"), "ctas_per_sm": told(ctas, text)}
    if exact:
        return own
    memory = 2 * cuda["memory_khz"] * 1000 * cuda["bus_bits"] // 8
    if memory:
        own["memory_bytes_per_s"] = told(
            round(READ * memory),
            f"estimate: {READ:.0%} of {format_rate(memory)} (CUDA driver: {cuda['bus_bits']:,} bits, "
            f"{cuda['memory_khz'] // 1000:,} MHz, both edges), the share that the H100 was measured "
            "to reach",
        )
    capability = f"{cuda['major']}.{cuda['minor']}"
    if capability in OPERATIONS and clock:
        each = OPERATIONS[capability] // (2 if "GeForce" in cuda["name"] else 1)
        flops = sms * clock * each
        own["compute_flops"] = told(
            round(MULTIPLIED * flops),
            f"estimate: {MULTIPLIED:.0%} of {format_flops(flops)} (CUDA driver: {sms} "
            f"multiprocessors, {clock // 10**6:,} MHz, compute capability {capability}: {each:,} "
            "operations a clock)",
        )
    return own


def _summary(
    system: System, card: Card, base: str, exact: bool, modules: Modules | None, host: int | None
) -> str:
    how = f"speeds of the {base} preset" if exact else f"no preset; speeds as {base}"
    words = [cpu_name(system), modules and f"{modules.kind.upper()}-{modules.mt_per_s} "
             f"x{modules.channels}", host and format_bytes(host, binary=True)]  # fmt: skip
    more = f"; the first of {card.others + 1} GPUs" if card.others else ""
    return f"this machine ({', '.join(w for w in words if w)}); {how}{more}"


def _slot(generation: int, lanes: int) -> Part | None:
    """The slot's part; a generation without one is taken as the newest that has."""
    known = [int(n.removeprefix("pcie")) for n in preset_paths("parts") if n.startswith("pcie")]
    older = [g for g in known if g <= generation]
    if not older:
        lanes, older = max(1, lanes // 2 ** (min(known) - generation)), [min(known)]
    try:
        return part(f"pcie{max(older)}x{lanes}")
    except InputError:
        return None


# ---- the nearest preset ----------------------------------------------------------------------------

_WORDS = ("ti", "super", "laptop", "pro", "ada", "max", "d", "gre", "titan")
_NUMBER = re.compile(r"[a-z]{0,2}[0-9]{2,5}[a-z]?")
_SIZE = re.compile(r"([0-9]+)\s?gb", re.IGNORECASE)


def _tokens(name: str) -> set[str]:
    """What tells a model from another: its number, and words such as Ti."""
    words = set(re.findall(r"[a-z0-9]+", _SIZE.sub(" ", name.lower())))
    numbers = {w for w in words if _NUMBER.fullmatch(w) and not w.startswith(("sxm", "hbm"))}
    return numbers | (words & set(_WORDS))


def nearest(name: str, total_bytes: int | None = None) -> tuple[str, bool]:
    """The preset of a card, and whether it is that card.

    It is where model number, words such as Ti and (as far as it is told) the memory agree. Otherwise
    the nearest: of the same series and as much memory, rather.
    """
    mine = _tokens(name)
    best: tuple[float, str, bool] | None = None
    for key, path in preset_paths("hardware").items():
        preset = tomllib.loads(path.read_text(encoding="utf-8"))
        if "gpu" not in preset or not str(preset["gpu"]).startswith("NVIDIA"):
            continue
        theirs = _tokens(str(preset["gpu"]).partition(",")[0])
        size = _preset_bytes(preset)
        away = abs(total_bytes * USABLE / size - 1) if total_bytes and size else 0.0
        exact = mine == theirs and away <= TOO_FAR
        score = (0.0 if mine == theirs else 1.0 + _apart(mine, theirs)) + min(away, 3.0) / 4
        if best is None or (not exact, score) < (not best[2], best[0]):
            best = (score, key, exact)
    assert best is not None
    return best[1], best[2]


def _apart(mine: set[str], theirs: set[str]) -> float:
    """How far two models are from each other, 0 to 4: by series and number first, then by words."""

    def number(tokens: set[str]) -> str:
        return max((t for t in tokens if any(c.isdigit() for c in t)), key=len, default="")

    a, b = number(mine), number(theirs)
    letters = re.match("[a-z]*", a), re.match("[a-z]*", b)
    far = 2.0 * ((letters[0] and letters[0][0]) != (letters[1] and letters[1][0]))
    da, db = re.sub("[^0-9]", "", a), re.sub("[^0-9]", "", b)
    if len(da) != len(db) or da[:-3] != db[:-3]:
        far += 1.0
    elif da:
        far += abs(int(da[-3:]) - int(db[-3:])) / 100
    return far + 0.05 * len((mine ^ theirs) & set(_WORDS))


def _preset_bytes(preset: dict[str, Any]) -> int | None:
    table = preset.get("vram_bytes")
    return parse_bytes(table["value"]) if isinstance(table, dict) else None
