"""This machine, from what it reports: ``--hardware auto``, `uvmsim hardware --detect`.

Asked are nvidia-smi (the card, its memory, its PCI Express slot), else lspci; dmidecode, else udev
(the memory modules: type, rate, channels); /proc/meminfo and /proc/cpuinfo. Nothing is measured. The
card's speeds are the preset's of that name, or of the nearest card where there is none, marked as
estimates; slot and memory modules are parts on it (`uvmsim.machine.parts`). `uvmsim calibrate` measures
instead.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from traces.errors import InputError
from uvmsim.core.units import format_bytes, parse_bytes
from uvmsim.machine.descriptions import preset_paths
from uvmsim.machine.parts import CHANNELS, Part, part

AUTO = "auto"
"""The name under which a machine is asked for what it is."""
SECONDS = 10.0
"""A command that takes longer is taken for one that is not there (nvidia-smi with a lost driver)."""
QUERY = (
    "name", "memory.total", "memory.used", "pcie.link.gen.max", "pcie.link.gen.current",
    "pcie.link.width.current", "pcie.link.width.max", "driver_version",
)  # fmt: skip
USABLE = 0.97
"""Of the memory that nvidia-smi reports. A program gets 98.0 % of it on the rtx4090 preset (23.51 GiB
of 24,564 MiB) and 96.9 % on the rtx5090 preset (31,580 of 32,607 MiB)."""
MIB = 1 << 20
TOO_FAR = 0.12
"""Share by which a card's memory may differ from the preset's before it is another variant."""


class System:
    """What a machine can be asked; tests give one with answers of their own."""

    def run(self, *command: str) -> str | None:
        """What a command prints; None where there is none, it fails, or it takes too long."""
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, check=False,
                env=os.environ | {"LC_ALL": "C"}, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            return None
        return done.stdout if done.returncode == 0 else None

    def read(self, path: str) -> str | None:
        """A file's text; None where it cannot be read."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


@dataclass(frozen=True)
class Found:
    """A machine as a preset with parts, and what it says itself."""

    base: str
    """Preset."""
    parts: list[tuple[Part, str]]
    """Each with who reported it."""
    own: dict[str, Any] = field(default_factory=dict)
    """Tables of a description, to be put over the preset's."""


@dataclass(frozen=True)
class Card:
    """A GPU as a tool reports it; None: it does not say."""

    name: str
    told_by: str
    total_bytes: int | None = None
    used_bytes: int | None = None
    generation: int | None = None
    lanes: int | None = None
    link_told: str = ""
    others: int = 0
    """Further GPUs of the machine, which are not described."""


@dataclass(frozen=True)
class Modules:
    """Host memory as a tool reports it."""

    kind: str
    """``ddr4`` or ``ddr5``."""
    mt_per_s: int
    channels: int
    told: str


def detected(system: System | None = None) -> Found:
    """What this machine reports, as a preset with parts and quantities of its own.

    Raises `InputError` where no tool reports an NVIDIA GPU. The real machine is asked once a process.
    """
    return _real() if system is None else _detect(system)


@functools.cache
def _real() -> Found:
    return _detect(System())


def _detect(system: System) -> Found:
    card = nvidia_smi(system) or lspci(system)
    if card is None:
        raise InputError(
            "auto: no NVIDIA GPU is reported here (nvidia-smi and lspci name none); name a preset, "
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


# ---- the card --------------------------------------------------------------------------------------


def nvidia_smi(system: System) -> Card | None:
    """The first GPU that nvidia-smi lists. A slot's lanes are those in use (the card may have more
    than the slot), its generation the most that card and slot do together: an idle link steps down."""
    told = system.run(
        "nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"
    )
    rows = [line.split(",") for line in (told or "").splitlines() if line.count(",") >= 7]
    if not rows:
        return None
    said = dict(zip(QUERY, (cell.strip() for cell in rows[0]), strict=False))
    if not said["name"] or said["name"].startswith("["):
        return None
    generation = _whole(said["pcie.link.gen.max"]) or _whole(said["pcie.link.gen.current"])
    lanes = _whole(said["pcie.link.width.current"]) or _whole(said["pcie.link.width.max"])
    total, used = _whole(said["memory.total"]), _whole(said["memory.used"])
    return Card(
        said["name"], f"nvidia-smi, driver {said['driver_version']}",
        total * MIB if total else None, None if used is None else used * MIB, generation, lanes,
        f"nvidia-smi: PCIe generation {generation} (gen.max), {lanes} lanes (width.current)",
        len(rows) - 1,
    )  # fmt: skip


def lspci(system: System) -> Card | None:
    """The first NVIDIA display controller that lspci lists (without a driver, say); its speed is what
    the card can do (LnkCap), its lanes those in use (LnkSta), where lspci may read them."""
    told = system.run("lspci", "-vv", "-d", "10de:")
    for block in re.split(r"\n\s*\n", told or ""):
        head = re.search(
            r"(?:VGA compatible|3D|Display) controller: NVIDIA Corporation (.*)", block
        )
        if head is None:
            continue
        names = re.findall(r"\[([^\]]+)\]", head[1])
        name = names[0] if names else re.sub(r"\s*\(rev .*\)", "", head[1])
        speed = re.search(r"LnkCap:.*?Speed ([0-9.]+)GT/s", block)
        width = re.search(r"LnkSta:.*?Width x([0-9]+)", block)
        rates = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
        generation = rates.get(float(speed[1])) if speed else None
        lanes = int(width[1]) if width else None
        link = f"lspci: the card's PCIe generation {generation} (LnkCap), {lanes} lanes (LnkSta)"
        return Card(name, "lspci", generation=generation, lanes=lanes or None, link_told=link)
    return None


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
    """How far two models are from each other, 0 to 4: by number first, then by words."""

    def number(tokens: set[str]) -> str:
        return max((t for t in tokens if any(c.isdigit() for c in t)), key=len, default="")

    a, b = number(mine), number(theirs)
    letters = re.match("[a-z]*", a), re.match("[a-z]*", b)
    far = 0.0 if a == b else 1.0
    far += 2.0 * ((letters[0] and letters[0][0]) != (letters[1] and letters[1][0]))
    da, db = re.sub("[^0-9]", "", a), re.sub("[^0-9]", "", b)
    if da and db and a != b:
        far += min(1.0, abs(int(da) - int(db)) / 1000 if len(da) == len(db) else 1.0)
    return far + 0.1 * len((mine ^ theirs) & set(_WORDS))


def _preset_bytes(preset: dict[str, Any]) -> int | None:
    table = preset.get("vram_bytes")
    return parse_bytes(table["value"]) if isinstance(table, dict) else None


# ---- memory and CPU --------------------------------------------------------------------------------


class Module(NamedTuple):
    """A memory module as it is reported."""

    kind: str
    mt_per_s: int | None
    locator: str
    bank: str


def dmidecode(system: System) -> Modules | None:
    """The memory modules that dmidecode lists; it needs to be run by root."""
    told = system.run("dmidecode", "-t", "memory")
    found = []
    for block in re.split(r"\n\s*\n", told or ""):
        lines = re.findall(r"^\s*([^:\n]+):[ \t]*(.*)$", block, re.MULTILINE)
        d = {key.strip(): value.strip() for key, value in lines}
        if "Memory Device" in block and re.search("[MG]i?B", d.get("Size", "")):
            now = d.get("Configured Memory Speed") or d.get("Configured Clock Speed")
            rate = _whole(now) or _whole(d.get("Speed"))
            found.append(
                Module(d.get("Type", ""), rate, d.get("Locator", ""), d.get("Bank Locator", ""))
            )
    return _modules(found, "dmidecode", system)


def udev(system: System) -> Modules | None:
    """The same from udev's database, which anybody may read (systemd 248 and later)."""
    told = system.run("udevadm", "info", "--query=property", "--path=/sys/class/dmi/id")
    said: dict[str, dict[str, str]] = {}
    for n, key, value in re.findall(r"^MEMORY_DEVICE_(\d+)_(\w+)=(.*)$", told or "", re.MULTILINE):
        said.setdefault(n, {})[key] = value
    found = []
    for d in said.values():
        if d.get("PRESENT", "1") != "0" and _whole(d.get("SIZE")):
            rate = _whole(d.get("CONFIGURED_SPEED_MTS")) or _whole(d.get("SPEED_MTS"))
            found.append(
                Module(d.get("TYPE", ""), rate, d.get("LOCATOR", ""), d.get("BANK_LOCATOR", ""))
            )
    return _modules(found, "udev", system)


def _modules(found: list[Module], told_by: str, system: System) -> Modules | None:
    """What modules are together; None where they do not say it."""
    kinds = {m.kind.lower() for m in found}
    rates = [m.mt_per_s for m in found if m.mt_per_s]
    if kinds not in ({"ddr4"}, {"ddr5"}) or not rates:
        return None
    kind, rate = kinds.pop(), min(rates)  # all run at the slowest one's
    named = {_channel(m.locator, m.bank) for m in found}
    if None in named:
        server = is_server(cpu_name(system))
        channels = len(found) if server else min(len(found), CHANNELS)
        how = f"{channels} channels guessed from {len(found)} modules"
    else:
        channels, how = len(named), f"{len(found)} modules in {len(named)} channels"
    return Modules(kind, rate, channels, f"{told_by}: {kind.upper()}, {rate:,} MT/s, {how}")


def _channel(locator: str, bank: str) -> str | None:
    """The channel that a module's place names: ``ChannelA-DIMM0``, ``P0 CHANNEL C``, ``DIMM_A2``."""
    for text in (bank, locator):
        told = re.search(r"channel\s*[-_]?\s*([A-Z0-9])", text, re.IGNORECASE)
        if told:
            # Controllers and sockets have channels of the same name.
            rest = re.search(
                r"(controller|node|cpu|p)\s*_?(\d+)", f"{locator} {bank}", re.IGNORECASE
            )
            return f"{rest[0] if rest else ''}/{told[1]}".upper()
    told = re.search(r"(?:^|[^A-Z])DIMM[ _-]?([A-P])\d?(?:$|[^A-Z])", locator, re.IGNORECASE)
    return told[1].upper() if told else None


def is_server(cpu: str | None) -> bool:
    """Whether a processor has a channel a module, as those of servers and workstations."""
    return re.search(r"EPYC|Xeon|Threadripper", cpu or "") is not None


def meminfo(system: System) -> int | None:
    """Host memory in bytes."""
    told = re.search(r"^MemTotal:\s*(\d+) kB", system.read("/proc/meminfo") or "", re.MULTILINE)
    return int(told[1]) * 1024 if told else None


def cpu_name(system: System) -> str | None:
    """The processor's name."""
    told = re.search(r"^model name\s*:\s*(.+)$", system.read("/proc/cpuinfo") or "", re.MULTILINE)
    return " ".join(told[1].split()) if told else None


def _whole(text: str | None) -> int | None:
    """The whole number that a text begins with; None for ``[N/A]`` and ``Unknown``."""
    told = re.match(r"\s*(\d+)", text or "")
    return int(told[1]) if told else None
