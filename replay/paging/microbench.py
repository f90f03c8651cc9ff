"""Every pattern on every kind of host memory: times without the driver's events, counts with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from replay.calibrate.stats import Row, repeat, row
from replay.paging.counts import (
    PREFETCH,
    batch_rows,
    counts,
    inward,
    page_of,
    piece_histogram,
    summary,
    wholeness,
)
from replay.paging.device import HOSTS, PagingDevice, Seen
from replay.paging.touches import PAGE, Touches, patterns
from replay.paging.tree_check import Blocks, Brought, given_faults, observed

Progress = Callable[[int, int, str], None]


def measure(
    device: PagingDevice, *, hosts: Iterable[str] = HOSTS, repetitions: int = 7,
    seconds: float = 240.0, progress: Progress | None = None,
    kept: Callable[[list[Row]], None] | None = None,
) -> list[Row]:  # fmt: skip
    """One row a pattern and kind of host memory. ``kept`` is called with all rows so far after each
    pattern; none is begun after ``seconds``."""
    begin = time.monotonic()
    hosts = tuple(hosts)
    rows: list[Row] = []
    todo = patterns(device.pages, device.sms)
    for i, host in enumerate(hosts):
        arena = device.renew(host)
        arena |= first_touches(device, todo)
        for j, touches in enumerate(todo):
            if time.monotonic() - begin > seconds:
                return rows
            if progress:
                progress(i * len(todo) + j, len(hosts) * len(todo), f"{touches.name}, {host}")
            rows.append(one(device, touches, host, repetitions) | {"arena": arena})
            if kept:
                kept(rows)
    return rows


def one(device: PagingDevice, touches: Touches, host: str, repetitions: int = 7) -> Row:
    """The row of one pattern: spread of its times, of the same kernel with its pages there, and what
    the driver did."""
    device.time(touches)  # so that frames and mappings are there
    taken = repeat(lambda: device.time(touches), repetitions, 0.5)
    there = [device.again(touches) for _ in range(3)]
    recorded_ns, seen = device.record(touches)
    placed = _placed_bytes(touches)
    found = described(seen, touches.placed)
    found["counts"]["runs"] = 1
    if seen.arrived is not None:  # what came, whether or not the driver noted all of it
        found["counts"]["moved"] = int(seen.arrived.sum()) - placed // PAGE
    return {
        "pattern": touches.name, "host": host, "warps": len(touches.pages),
        "turns": touches.pages.shape[1], "distinct": len(touches.distinct),
        "blocks": touches.blocks, "chained": touches.chained, **touches.about,
        **row(taken),
        "placed_bytes": placed,
        "there_ns": round(float(np.median(there)), 1), "recorded_ns": round(recorded_ns, 1),
        **found,
    }  # fmt: skip


def first_touches(
    device: PagingDevice, todo: list[Touches], repetitions: int = 3
) -> dict[str, Any]:
    """All blocks touched right after the arena was made, and again: frames, page tables and the host
    pages' mappings for the copy engines are made once."""
    t = next(t for t in todo if t.about.get("kind") == "wide")
    first = device.time(t)
    again = float(np.median([device.time(t) for _ in range(repetitions)]))
    return {"first_ns": first, "again_ns": again, "first_blocks": t.blocks}


def _placed_bytes(touches: Touches) -> int:
    runs = touches.placed
    return 0 if runs is None else int((runs[:, 1] - runs[:, 0]).sum()) * PAGE


def described(seen: Seen, placed: np.ndarray | None = None) -> dict[str, Any]:
    """What a run's events say, in short; ``placed`` as in `Touches`."""
    made = _modelled(seen, placed)
    b = batch_rows(seen)
    handler = b["replay_ns"] - b["first_ns"]
    return {
        "counts": counts(seen).to_json()
        | {"operations": made.operations, "mappings": made.mappings},
        "tree": {"model": made.to_json(), "driver": _came(seen).to_json()},
        "whole": wholeness(seen),
        "others": seen.others or {},
        "pieces": piece_histogram(seen),
        "piece_ns": piece_times(seen),
        "entries_of_batch": summary(b["entries"]),
        "services_of_batch": summary(b["services"]),
        "entries_of_page": summary(_entries_of_pages(seen)),
        "batch_gpu_ns": summary(b["gpu_ns"][b["gpu_ns"] > 0]),
        "handler_ns": summary(handler[b["replay_ns"] > 0]),
        "resume_ns": summary(resume_times(b, seen)),
        "run_of_client": summary(runs_of_clients(seen)),
    }


def _modelled(seen: Seen, placed: np.ndarray | None) -> Brought:
    """What the model's tree brings, given the recorded faults."""
    blocks, base = Blocks(), seen.base // PAGE
    for first, last in placed.tolist() if placed is not None else ():
        blocks.place(base + first, base + last)
    batch = seen.faults["batch"].astype(np.int64)
    return given_faults(batch, page_of(seen.faults["address"]), blocks=blocks)[0]


def _came(seen: Seen) -> Brought:
    m = inward(seen)
    return observed(m["address"], m["bytes"].astype(np.int64), m["cause"] == PREFETCH)


def piece_times(seen: Seen) -> dict[str, dict[str, float]]:
    """By size in bytes: how many pieces moved in, median and spread of the copy engine's time."""
    m = inward(seen)
    size, ns = m["bytes"].astype(np.int64), (m["end_gpu"] - m["begin_gpu"]).astype(np.int64)
    made = {}
    for s in np.unique(size).tolist():
        found = summary(ns[size == s])
        assert found is not None
        made[str(s)] = {"n": int((size == s).sum())} | found
    if len(made) > 40:  # odd sizes say little: those that are most of it
        most = sorted(made, key=lambda s: -made[s]["n"])[:40]
        made = {s: made[s] for s in sorted(most, key=int)}
    return made


def resume_times(b: dict[str, np.ndarray], seen: Seen) -> np.ndarray:
    """int64 ns: from the end of a batch's replay to the first entry of the next batch, on the GPU's
    clock, where that entry is younger than the replay: warps run on, and fault again."""
    f, r = seen.faults, seen.replays
    if len(b["batch"]) < 2 or not len(r):
        return np.zeros(0, np.int64)
    done = {int(k): int(t) for k, t in zip(r["batch"], r["time_gpu"], strict=True)}
    written: dict[int, int] = {}
    for k, t in zip(f["batch"].tolist(), f["time_gpu"].tolist(), strict=True):
        written[k] = min(written.get(k, t), t)
    made = [
        written[after] - done[before]
        for before, after in zip(b["batch"][:-1].tolist(), b["batch"][1:].tolist(), strict=True)
        if before in done and written[after] > done[before]
    ]
    return np.array(made, np.int64)


def runs_of_clients(seen: Seen) -> np.ndarray:
    """int64: entries that follow one another from one client (an SM's translation buffer), in the
    order in which the GPU wrote them."""
    f = np.sort(seen.faults, order="time_gpu")
    if not len(f):
        return np.zeros(0, np.int64)
    client = f["gpc"].astype(np.int64) << 16 | f["client"]
    edges = np.flatnonzero(np.diff(client, prepend=client[0] - 1, append=client[-1] - 1))
    return np.diff(edges)


def _entries_of_pages(seen: Seen) -> np.ndarray:
    """int64: entries of each page of each batch."""
    f = seen.faults
    key = np.column_stack((f["batch"].astype(np.int64), (f["address"] // PAGE).astype(np.int64)))
    return np.unique(key, axis=0, return_counts=True)[1]
