"""A calibration as a terminal table."""

from __future__ import annotations

import re
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay.calibrate.profile import Measurements
from uvmsim.core.units import format_bytes, format_ns, format_rate
from uvmsim.machine.hardware import Hardware
from uvmsim.report.progress import wide

DEFAULT_BASE = "h100"


def closest_preset(gpu: str) -> str:
    """The preset whose name stands in the GPU's (``NVIDIA GeForce RTX 4090`` -> ``rtx4090``)."""
    plain = re.sub(r"[^a-z0-9]", "", gpu.lower())
    names = [n for n in Hardware.list_presets() if n in plain]
    return max(names, key=len) if names else DEFAULT_BASE


def print_calibration(found: Measurements, hw: Hardware, console: Console | None = None) -> None:
    """The profile's quantities with their sources, then the tables in short."""
    console = console or wide()
    machine = ", ".join(f"{k} {v}" for k, v in found.machine.items() if not k.endswith("_bytes"))
    console.print(Text(machine, style="bold"), soft_wrap=True)
    table = titled_table("profile", "quantity", "value", "source")
    for key, value, source in hw.quantities():
        found_on, _, how = source.partition(": ")
        table.add_row(key, value, how if found_on.startswith("measured") else source)
    for key, value, source in hw.engine.quantities():
        found_on, _, how = source.partition(": ")
        table.add_row(f"engine: {key}", value, how if found_on.startswith("measured") else source)
    console.print(table)
    for name, rows in found.tables.items():
        shown = titled_table(name, "what", "median", "p10", "p90", "rate")
        for r in rows:
            if "median_ns" not in r:
                continue
            words = [str(v) for v in r.values() if isinstance(v, str)]
            size = [format_bytes(r["bytes"], binary=True)] if "bytes" in r else []
            rate = format_rate(r["bytes_per_s"]) if "bytes_per_s" in r else ""
            times = [format_ns(r[k]) for k in ("median_ns", "p10_ns", "p90_ns")]
            shown.add_row(", ".join(words + size), *times, rate)
        if shown.row_count:
            console.print(shown)
    for name, why in found.errors.items():
        console.print(Text(f"note: {name} not measured: {why}", style="dim"), soft_wrap=True)


def titled_table(title: str, *columns: str) -> Table:
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name in columns:
        words = name in ("source", "what", "quantity", "term", "of what", "mode", "tests")
        justify: Literal["left", "right"] = "left" if words else "right"
        # Numbers are never cut: on a narrow terminal words fold.
        made.add_column(name, justify=justify, no_wrap=not words, overflow="fold")
    return made
