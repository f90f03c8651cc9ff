"""The way between two GPUs: copies by size in both directions, and a small one that is waited for.

What is timed is queued behind a kernel that waits, so the host's own calls are not in it. A hop is what
the replay engine does (`replay.joint`): the other device's stream waits for an event, then copies on
its own stream.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from replay.calibrate.probe import HOP, HOP_BYTES, TOGETHER, MiB
from replay.calibrate.stats import Row, repeat, row

HOPS = 50
"""There and back, one timing."""


def peer_rows(p: Any) -> list[Row]:
    """Rows of `Probe.peers`, between the device of a `replay.calibrate.cuda.CudaProbe` and the next."""
    rt, here = p.rt, int(p.cp.cuda.Device().id)
    there = (here + 1) % p.devices()
    biggest = min(max(p.effort.copy_sizes), p.held)
    direct = bool(rt.deviceCanAccessPeer(here, there)) and bool(rt.deviceCanAccessPeer(there, here))
    other = 0
    try:
        with p.cp.cuda.Device(there):
            other = rt.malloc(biggest)
            stream = p.cp.cuda.Stream(non_blocking=True)
            event = p.cp.cuda.Event(disable_timing=True)
            if direct:
                with suppress(rt.CUDARuntimeError):  # enabled already
                    rt.deviceEnablePeerAccess(here)
        if direct:
            with suppress(rt.CUDARuntimeError):
                rt.deviceEnablePeerAccess(there)
        mine = p.cp.cuda.Event(disable_timing=True)
        rows = []
        ways = (
            ("0-1", other, there, p.device.ptr, here),
            ("1-0", p.device.ptr, here, other, there),
        )
        for direction, to, to_device, source, source_device in ways:
            for size in (s for s in p.effort.copy_sizes if s <= biggest):

                def one(i: int, to: int = to, to_device: int = to_device, source: int = source,
                        source_device: int = source_device, size: int = size) -> None:  # fmt: skip
                    rt.memcpyPeerAsync(to, to_device, source, source_device, size, p.stream.ptr)

                batch = int(min(100, max(3, 128 * MiB // size)))
                p.queued(one, batch)
                times = repeat(partial(p.queued, one, batch), p.effort.repetitions)
                about: dict[str, Any] = {"what": "copies", "direction": direction, "direct": direct}
                rows.append({**about, **row(times, size, queued=batch)})

        def hops(i: int) -> None:
            mine.record(p.stream)
            rt.setDevice(there)
            stream.wait_event(mine)
            rt.memcpyPeerAsync(other, there, p.device.ptr, here, HOP_BYTES, stream.ptr)
            event.record(stream)
            rt.setDevice(here)
            p.stream.wait_event(event)
            rt.memcpyPeerAsync(p.device.ptr, here, other, there, HOP_BYTES, p.stream.ptr)

        hops(0)
        p.stream.synchronize()
        taken = repeat(lambda: p.queued(hops, HOPS, 60_000) / 2, p.effort.repetitions)
        size = min(16 * MiB, biggest)

        def both(busy: bool) -> float:
            batch = max(4, 256 * MiB // size)
            if busy:  # begins before and ends after what is timed
                rt.setDevice(there)
                for _ in range(2 * batch + 4):
                    rt.memcpyAsync(other, p.pinned.ptr, size, 1, stream.ptr)
                rt.setDevice(here)
            taken = p.queued(lambda i: p.copy("h2d", size), batch, 4000)
            stream.synchronize()
            return float(taken)

        for busy in (False, True):
            both(busy)
            about = {"what": TOGETHER, "direction": "both" if busy else "one"}
            rows.append({**about, **row(repeat(partial(both, busy), 7), size)})
        return [*rows, {"what": HOP, "direction": "there and back", **row(taken, HOP_BYTES)}]
    finally:
        rt.setDevice(here)
        if other:
            p.stream.synchronize()
            rt.free(other)
