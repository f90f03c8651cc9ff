"""The replay engine's own kernels, timed through its backend: dense reads and expert products."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np

from replay.backend import backend as open_backend
from replay.backend.base import COMPUTE, MAX_TASKS, X_ROWS, Backend, Memory, Tasks
from replay.calibrate.stats import Row, repeat, row
from replay.layout import UNITS, ExpertLayout, layout_for

MiB = 1 << 20
EXPERT_BYTES = 13_219_200
"""A gpt-oss expert: the size most of our cells have."""


def kernel_rows(name: str, quick: bool) -> list[Row]:
    """Rows with ``kernel`` (read, experts), ``dtype``, ``experts`` and ``tokens`` a call.

    Each is timed in a queue of calls, over far more bytes than the caches hold.
    """
    size = 16 * 1024 if quick else EXPERT_BYTES
    span = 16 * MiB if quick else 1024 * MiB
    times = 3 if quick else 9
    with open_backend(name) as b:
        ballast = b.device(span, "buffer of the calibration")
        rows = _reads(b, ballast, times)
        for dtype in UNITS:
            layouts = [layout_for(s, dtype) for s in (size, 4 * size)]
            rows += _experts(b, layouts, ballast, times, quick)
        return rows


def _reads(b: Backend, memory: Memory, times: int) -> list[Row]:
    rows, span = [], memory.nbytes
    for nbytes in (span // 256, span // 64, span // 16, span // 4):
        calls = min(32, max(2, 2 * span // nbytes))

        def call(i: int, n: int = nbytes) -> None:
            b.read(memory, i * n % span, n)

        taken = repeat(partial(_queued, b, call, calls, memory), times)
        rows.append({"kernel": "read", **row(taken, nbytes)})
    return rows


def _experts(
    b: Backend, layouts: list[ExpertLayout], ballast: Memory, times: int, quick: bool
) -> list[Row]:
    most = 32 if quick else 512
    b.prepare(layouts, _inputs(max(x.n_embd for x in layouts)), most, MAX_TASKS)
    rows, span = [], ballast.nbytes
    for layout in layouts:
        step = -(-layout.nbytes // 256) * 256
        places = [ballast.ptr + i * step for i in range(span // step)]
        for n, tokens in [
            (n, 1) for n in ((1, 4) if quick else (1, 2, 4, 8)) if n <= len(places) // 2
        ]:
            rows.append(_one(b, layout, places, n, tokens, times, ballast, quick))
        if layout is layouts[0]:
            for tokens in (
                t for t in ((2, 32) if quick else (2, 4, 16, 64, 256, 512)) if t <= most
            ):
                rows.append(_one(b, layout, places, 1, tokens, times, ballast, quick))
    return rows


def _one(
    b: Backend,
    layout: ExpertLayout,
    places: list[int],
    n: int,
    tokens: int,
    times: int,
    ballast: Memory,
    quick: bool,
) -> Row:
    turn = itertools.cycle(range(len(places)))
    tasks = Tasks.empty()

    def call(_: int) -> None:
        for t in range(n):
            tasks.weights[t] = places[next(turn)]
            tasks.first_row[t] = t * tokens
            tasks.tokens[t] = tokens
            tasks.x_first[t] = t % X_ROWS
        b.experts(layout, tasks, n, 0)

    calls = 2 if quick else 4 if tokens > 16 else 24
    taken = repeat(lambda: _queued(b, call, calls, ballast), times)
    weights = 3 * layout.weights
    return {
        "kernel": "experts", "dtype": layout.dtype, "experts": n, "tokens": tokens,
        "expert_bytes": layout.nbytes, "flops": 2 * weights * n * tokens,
        **row(taken, n * layout.nbytes),
    }  # fmt: skip


def _queued(b: Backend, call: Callable[[int], None], calls: int, ballast: Memory) -> float:
    """ns of one of ``calls`` calls, queued while a long read keeps the device busy."""
    first, last = b.events(2, timing=True)
    if b.name != "host":
        for _ in range(6):
            b.read(ballast, 0, ballast.nbytes)
    b.record(first, COMPUTE)
    for i in range(calls):
        call(i)
    b.record(last, COMPUTE)
    b.synchronise(last)
    taken = b.elapsed_ns(first, last) / calls
    b.forget([first, last])
    return taken


def _inputs(width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((X_ROWS, width)).astype(np.float32)
