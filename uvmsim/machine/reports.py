"""What the tools of a machine report, read: nvidia-smi, lspci, CUDA driver, dmidecode, udev."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from uvmsim.machine.parts import CHANNELS

SECONDS = 10.0
"""A command that takes longer is taken for one that is not there (nvidia-smi with a lost driver)."""
QUERY = (
    "name", "memory.total", "memory.used", "pcie.link.gen.max", "pcie.link.gen.current",
    "pcie.link.width.current", "pcie.link.width.max", "driver_version",
)  # fmt: skip
CUDA_FACTS = str(Path(__file__).with_name("cuda_facts.py"))
MIB = 1 << 20


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


def cuda_facts(system: System) -> dict[str, Any] | None:
    """What the CUDA driver says of its first GPU (`uvmsim.machine.cuda_facts`)."""
    try:
        told = json.loads(system.run(sys.executable, CUDA_FACTS) or "null")
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


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
