"""What is installed, which GPU is there, and what each missing piece would give.

Nothing heavy is imported to find out.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from uvmsim.core.units import format_bytes
from uvmsim.machine.reports import System, nvidia_smi

Version = Callable[[str], str | None]
"""An installed distribution's version by its name, None where it is not installed."""

CORE = ("simpy", "numpy", "numba", "pyarrow", "pydantic", "click", "rich")
EXTRAS = (
    ("capture", ("xllamacpp",), "capture llama-cpp, calibrate --engine llama.cpp on the CPU"),
    ("transformers", ("torch", "transformers"), "capture transformers"),
    ("gpu", ("cupy-cuda13x", "cupy-cuda12x", "cupy"), "replay, calibrate and validate on a GPU"),
    ("cupti", ("cupti-python",), "capture cupti: page faults of any CUDA program"),
    ("plot", ("matplotlib",), "--plot"),
    ("dask", ("distributed",), "sweep --dask, serve --dask, search on a cluster"),
)
"""Extras of the distribution: their packages (of ``gpu`` any one), and what they are for."""
ANY_OF = ("gpu",)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    what: str
    there: bool
    said: str
    gives: str = ""
    """What it is for, where it is missing."""


def examine(system: System | None = None, installed: Version | None = None) -> list[Finding]:
    """What this machine and this Python have; ``system`` and ``installed`` stand in for them."""
    system, installed = system or System(), installed or _installed
    found = [Finding("Python", True, f"{platform.python_version()}, {sys.executable}")]
    found += [_package(name, installed) for name in CORE]
    found += [_extra(name, packages, gives, installed) for name, packages, gives in EXTRAS]
    return [*found, _cores(system), *_gpu(system), _cache()]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _package(name: str, installed: Version) -> Finding:
    found = installed(name)
    gives = "" if found else "everything: install uvmsim again"
    return Finding(name, found is not None, found or "missing", gives)


def _extra(name: str, packages: tuple[str, ...], gives: str, installed: Version) -> Finding:
    have = {p: v for p in packages if (v := installed(p)) is not None}
    there = bool(have) if name in ANY_OF else len(have) == len(packages)
    said = ", ".join(f"{p} {v}" for p, v in have.items())
    if there:
        return Finding(f"extra {name}", True, said)
    return Finding(f"extra {name}", False, f"pip install 'uvmsim[{name}]'", gives)


def _cores(system: System) -> Finding:
    told = re.search(r"MemTotal:\s+(\d+) kB", system.read("/proc/meminfo") or "")
    memory = f", {format_bytes(int(told[1]) << 10, binary=True)} of memory" if told else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("host", True, f"{cores} cores{memory}")


def _gpu(system: System) -> list[Finding]:
    card = nvidia_smi(system)
    if card is None:
        return [
            Finding("GPU", False, "none that nvidia-smi reports", "replay on a GPU; all else runs")
        ]
    size = f", {format_bytes(card.total_bytes, binary=True)}" if card.total_bytes else ""
    more = f", and {card.others} more" if card.others else ""
    words = (system.read("/proc/driver/nvidia/version") or "").split()
    driver = next((w for w in words if re.fullmatch(r"\d+\.\d+(\.\d+)?", w)), None)
    return [
        Finding("GPU", True, f"{card.name}{size}{more}"),
        Finding("driver", driver is not None, driver or "version not told"),
    ]


def _cache() -> Finding:
    """Where compiled code is kept: a start takes seconds longer where that is nowhere."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(named) if named else Path(__file__).parent
    there = next((p for p in (folder, *folder.parents) if p.is_dir()), folder)
    kept = os.access(there, os.W_OK) or (not named and os.access(Path.home(), os.W_OK))
    gives = "starts without compiling: set NUMBA_CACHE_DIR to a folder that can be written"
    return Finding(
        "compiled code", kept, "kept on disk" if kept else "not kept", "" if kept else gives
    )
