"""The replay engine's experts on the CPU, by type, tokens and threads."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numba import get_num_threads, set_num_threads

from replay.backend.base import X_ROWS
from replay.bank import base_image, stride
from replay.calibrate.kernels import EXPERT_BYTES
from replay.calibrate.stats import Row, repeat, row
from replay.cpu_experts import CpuExperts
from replay.layout import STORED, UNITS, layout_for

SPAN = 512 << 20
"""Bytes of experts gone through in turn: more than the caches hold."""
TABLE = "cpu_experts"


def cpu_expert_rows(quick: bool) -> list[Row]:
    """Rows with ``dtype``, ``experts`` and ``tokens`` (each) a call, ``threads``."""
    size, span = (16 * 1024, 1 << 20) if quick else (EXPERT_BYTES, SPAN)
    made: list[Row] = []
    most = get_num_threads()
    try:
        for dtype in UNITS:
            layout = layout_for(size, dtype)
            step = stride(layout.nbytes)
            images = max(8, span // step)
            data = np.tile(np.resize(base_image(layout, 1), step), images)
            x = np.random.default_rng(0).uniform(-1, 1, (X_ROWS, layout.n_embd))
            cpu = CpuExperts(
                data, x.astype(np.float32), np.zeros((256, layout.n_embd), np.float32), layout.n_ff
            )
            for threads in sorted({most, max(1, most // 2)}):
                set_num_threads(threads)
                for n, tokens in ((1, 1), (2, 1), (4, 1), (1, 8), (1, 64)):
                    call = _Call(cpu, layout, step, images, n, tokens)
                    call()
                    taken = repeat(call, 3 if quick else 9, 0.25)
                    about = {"dtype": dtype, "experts": n, "tokens": tokens, "threads": threads}
                    made.append(row(taken, n * layout.nbytes, params=3 * layout.weights, **about))
    finally:
        set_num_threads(most)
    return made


class _Call:
    """One call after the other, on other experts each time."""

    def __init__(self, cpu: CpuExperts, layout: Any, step: int, images: int, n: int, tokens: int):
        self.cpu, self.layout, self.step, self.images = cpu, layout, step, images
        self.n, self.tokens, self.at = n, tokens, 0

    def __call__(self) -> float:
        places = [(self.at + i) % self.images * self.step for i in range(self.n)]
        self.at += self.n
        begun = time.perf_counter_ns()
        self.cpu.run(self.layout, places, [self.tokens] * self.n, [0] * self.n)
        return float(time.perf_counter_ns() - begun)


def cpu_expert_tables(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """By tensor type: the values of ``[engine.cpu_experts.TYPE]``, of the fastest number of threads.

    One token: a line over the number of experts, whose slope is an expert's time and whose intercept is
    what a wave pays. Many: operations, where these take longer than the bytes.
    """
    found = {}
    for stored, dtype in STORED.items():
        of = [r for r in rows if r["dtype"] == dtype]
        if not of:
            continue
        one = [r for r in of if r["experts"] == 4 and r["tokens"] == 1]
        threads = min(one, key=lambda r: r["median_ns"])["threads"]
        of = [r for r in of if r["threads"] == threads]
        few = [r for r in of if r["tokens"] == 1]
        n = np.array([r["experts"] for r in few], np.float64)
        took = np.array([r["median_ns"] for r in few])
        each, wave = np.polyfit(n, took, 1, w=1 / took)
        wave = max(0.0, float(wave))
        if each <= 0:  # more experts took no longer: nothing but the wave's cost shows
            each, wave = float(took.max() / n.max()), 0.0
        nbytes = few[0]["bytes"] / few[0]["experts"]
        many = max(of, key=lambda r: r["tokens"])
        ops = 2.0 * many["params"] * many["tokens"] * many["experts"]
        found[stored] = {
            "bytes_per_s": max(1, round(nbytes / each * 1e9)),
            "flops": max(1, round(ops / max(many["median_ns"] - wave, 1.0) * 1e9)),
            "wave_ns": round(wave),
            "source": f"the engine's CPU kernels, {threads} threads; 1 to 4 experts with one token, "
            f"one with {many['tokens']}",
        }
    return found
