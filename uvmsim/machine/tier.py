"""A disk below host memory: what it is, how it is read, and how long a read takes there.

``nvme:7GB/s,80us,qd=32,mode=direct`` (`Tier.parse`); docs/tiers.md has the model.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.core.units import format_ns, format_rate, parse_bandwidth, parse_bytes, parse_time

DIRECT, BUFFERED, MMAP = "direct", "buffered", "mmap"
MODES = (DIRECT, BUFFERED, MMAP)
WARM, COLD = "warm", "cold"
PAGE = 4096
"""Bytes of a page of the page cache."""
MOST_DEPTH = 1024
"""Reads in flight: more than any device's queue takes of reads of megabytes."""
_NAME = re.compile(r"[A-Za-z][\w.-]*$")


@dataclass(frozen=True)
class Tier:
    """A disk and the host memory above it."""

    name: str
    bytes_per_s: int
    """Large reads, all of them together."""
    latency_ns: int
    """From the request to the first byte of a read."""
    depth: int = 32
    """Reads in flight."""
    mode: str = DIRECT
    """`DIRECT`: whole experts past the page cache; `BUFFERED`: whole experts by way of the page cache,
    which forgets them; `MMAP`: a mapped file, which the page cache holds as far as memory goes."""
    start: str = WARM
    """What host memory holds before the first token: the first experts of the file that fit, or
    nothing."""
    readahead: int = 128 << 10
    """`MMAP`: bytes that one fault makes the kernel read."""
    fault_ns: int = 500
    """`MMAP`: software time of a page that is brought in. Estimate: no source; see docs/tiers.md."""
    ram_bytes: int = 0
    """Host memory that holds experts."""

    @staticmethod
    def parse(text: str, ram_bytes: int, known: Any = None) -> Tier:
        """``NAME[:RATE,LATENCY][,KEY=VALUE]...``. ``known``: a machine's own disk
        (`uvmsim.machine.disk.DiskSpec`), whose numbers stand in for a rate and a latency that are left
        out. Raises `InputError`."""
        name, _, rest = text.partition(":")
        if not _NAME.match(name):
            raise InputError(f"{text!r}: write it like nvme:7GB/s,80us,qd=32,mode=direct")
        plain = [p.strip() for p in rest.split(",") if p.strip() and "=" not in p]
        pairs = [p.strip().split("=", 1) for p in rest.split(",") if "=" in p]
        options = _options(text, pairs)
        mode = options.get("mode", DIRECT)
        numbers: dict[str, Any] = {}
        if len(plain) == 2:
            numbers["bytes_per_s"] = parse_bandwidth(plain[0])
            numbers["latency_ns"] = parse_time(plain[1])
        elif plain:
            raise InputError(f"{text!r}: give a rate and a latency, such as {name}:7GB/s,80us")
        else:
            found = known.of(mode) if known is not None else None
            if found is None:
                raise InputError(
                    f"{text!r}: the hardware has no [disk] that was read so; give a rate and a "
                    f"latency, such as {name}:7GB/s,80us, or a profile of `uvmsim calibrate --disk DIR`"
                )
            numbers = found
        return Tier(name, **(numbers | options), ram_bytes=ram_bytes)

    def read_ns(self, nbytes: np.ndarray) -> np.ndarray:
        """int64: time that the bytes of each read occupy the disk, at least 1; without its latency."""
        nbytes = np.asarray(nbytes, np.int64)
        ns = -(-nbytes * 10**9 // self.bytes_per_s)
        if self.mode == MMAP:
            windows = -(-nbytes // self.readahead)
            # The first window's latency is the read's own; a thread that faults waits for each.
            ns = ns + np.maximum(windows - 1, 0) * self.latency_ns
            ns = ns + -(-nbytes // PAGE) * self.fault_ns
        return np.maximum(np.asarray(ns, np.int64), 1)

    @property
    def side_by_side(self) -> int:
        """Reads in flight: one thread faults at a time."""
        return 1 if self.mode == MMAP else self.depth

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        told = {
            "name": self.name, "bytes_per_s": self.bytes_per_s, "latency_ns": self.latency_ns,
            "mode": self.mode, "start": self.start, "ram_bytes": self.ram_bytes,
        }  # fmt: skip
        if self.mode == MMAP:
            return told | {"readahead_bytes": self.readahead, "fault_ns": self.fault_ns}
        return told | {"depth": self.depth}

    def said(self) -> str:
        """The disk in a few words."""
        how = f"one thread faults, {self.readahead >> 10} KiB ahead" if self.mode == MMAP else (
            f"{self.depth} in flight"
        )  # fmt: skip
        return (
            f"{self.name}, {format_rate(self.bytes_per_s)}, {format_ns(self.latency_ns)} a read, "
            f"{self.mode}, {how}, {self.start}"
        )


def _options(text: str, pairs: list[list[str]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
            raise InputError(f"{text!r}: no {key!r}; {hint}")
        name, read = _KEYS[key]
        try:
            made[name] = read(value)
        except InputError as err:
            raise InputError(f"{text!r}: {key}: {err}") from None
    return made


def _depth(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= MOST_DEPTH:
        raise InputError(f"{value}: give a whole number, 1 to {MOST_DEPTH}")
    return int(value)


def _one_of(*allowed: str) -> Any:
    def read(value: str) -> str:
        if value not in allowed:
            raise InputError(f"{value}: must be {', '.join(allowed)}")
        return value

    return read


def _window(value: str) -> int:
    size = parse_bytes(value)
    if size < PAGE or size % PAGE:
        raise InputError(f"{value}: give whole pages of 4 KiB, such as 128KiB")
    return size


_KEYS: dict[str, tuple[str, Any]] = {
    "qd": ("depth", _depth),
    "mode": ("mode", _one_of(*MODES)),
    "start": ("start", _one_of(WARM, COLD)),
    "readahead": ("readahead", _window),
    "fault": ("fault_ns", parse_time),
}
