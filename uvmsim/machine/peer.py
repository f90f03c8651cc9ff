"""The way between two GPUs of one machine, as ``nvlink:400GB/s:8us`` says it."""

from __future__ import annotations

from dataclasses import dataclass

from traces.errors import InputError
from uvmsim.core.units import format_rate, parse_bandwidth, parse_time
from uvmsim.machine.hardware import Hardware

NVLINK, PCIE, MEASURED = "nvlink", "pcie", "measured"
NVLINK_RATE = 400_000_000_000
"""Bytes a second one way: estimate, nine tenths of the 450 GB/s that NVIDIA names for NVLink 4."""
HOP_NS = 10_000
"""Fixed time of a small copy to a peer that a stream waits for, once: estimate; `--peer KIND:RATE:TIME`
has a measured one."""


@dataclass(frozen=True)
class Peer:
    """One direction; both run at the same time."""

    kind: str
    bytes_per_s: int
    latency_ns: int = HOP_NS
    """From the end of a kernel on one GPU to the start on the other of one that reads a few bytes of
    it."""

    @classmethod
    def of(cls, text: str | None, hardware: Hardware) -> Peer:
        """``nvlink`` or ``pcie``, perhaps with ``:RATE`` and ``:LATENCY``; None: as `uvmsim calibrate`
        found it on the machine, else pcie at the speed of its host link. Raises `InputError`."""
        if text is None and hardware.peer_bytes_per_s:
            return cls(MEASURED, hardware.peer_bytes_per_s, hardware.peer_latency_ns or HOP_NS)
        kind, *rest = (text or PCIE).split(":")
        if kind not in (NVLINK, PCIE) or len(rest) > 2:
            raise InputError(
                f"{text}: give nvlink or pcie, with rate and latency such as nvlink:400GB/s:8us",
                argument="peer",
            )
        rate = NVLINK_RATE if kind == NVLINK else hardware.h2d_bytes_per_s
        latency = HOP_NS
        try:
            if rest:
                rate = parse_bandwidth(rest[0])
            if len(rest) > 1:
                latency = parse_time(rest[1])
        except InputError as err:
            raise InputError(f"{text}: {err}", argument="peer") from None
        return cls(kind, rate, latency)

    def ns(self, nbytes: int) -> int:
        """Time of one copy."""
        return self.latency_ns + round(nbytes / self.bytes_per_s * 1e9)

    def __str__(self) -> str:
        return f"{self.kind} {format_rate(self.bytes_per_s)}, {self.latency_ns / 1e3:g} us a hop"
