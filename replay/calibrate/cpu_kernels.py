"""The replay engine's experts on the CPU, by type and tokens."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numba import get_num_threads

from replay.backend.base import X_ROWS
from replay.bank import base_image, stride
from replay.calibrate.kernels import EXPERT_BYTES
from replay.calibrate.stats import Row, non_negative, repeat, row
from replay.cpu_experts import CpuExperts
from replay.layout import STORED, UNITS, layout_for

SPAN = 512 << 20
"""Bytes of experts gone through in turn: more than the caches hold."""
TABLE = "cpu_experts"


def cpu_expert_rows(quick: bool) -> list[Row]:
    """Rows with ``dtype``, ``experts`` and ``tokens`` (each) a call, ``threads``: as many as a replay
    has, since the share of its CPU is worked out from these rows."""
    size, span = (16 * 1024, 1 << 20) if quick else (EXPERT_BYTES, SPAN)
    made: list[Row] = []
    threads = get_num_threads()
    for dtype in UNITS:
        layout = layout_for(size, dtype)
        step = stride(layout.nbytes)
        images = max(8, span // step)
        data = np.tile(np.resize(base_image(layout, 1), step), images)
        x = np.random.default_rng(0).uniform(-1, 1, (X_ROWS, layout.n_embd))
        cpu = CpuExperts(
            data, x.astype(np.float32), np.zeros((256, layout.n_embd), np.float32), layout.n_ff
        )
        at = 0
        for n, tokens in ((1, 1), (2, 1), (4, 1), (1, 8), (1, 64)):
            call = _Call(cpu, layout, step, images, n, tokens, at)
            call()
            taken = repeat(call, 3 if quick else 9, 0.25)
            at = call.at
            about = {"dtype": dtype, "experts": n, "tokens": tokens, "threads": threads}
            made.append(row(taken, n * layout.nbytes, params=3 * layout.weights, **about))
    return made


class _Call:
    """One call after the other, always on the experts that were read longest ago, so that they come
    from memory."""

    def __init__(
        self, cpu: CpuExperts, layout: Any, step: int, images: int, n: int, tokens: int, at: int = 0
    ):
        """``at``: the first expert to read."""
        self.cpu, self.layout, self.step, self.images = cpu, layout, step, images
        self.n, self.tokens, self.at = n, tokens, at

    def __call__(self) -> float:
        places = [(self.at + i) % self.images * self.step for i in range(self.n)]
        self.at += self.n
        begun = time.perf_counter_ns()
        self.cpu.run(self.layout, places, [self.tokens] * self.n, [0] * self.n)
        return float(time.perf_counter_ns() - begun)


def cpu_expert_tables(rows: list[Row], read: list[Row]) -> dict[str, dict[str, Any]]:
    """By tensor type: the values of ``[engine.cpu_experts.TYPE]``.

    One token: a line over the number of experts, whose slope is an expert's time and whose intercept is
    what a wave pays. Many: operations, where these take longer than the bytes. No type is read faster
    than plain floats (``read``: rows of `replay.calibrate.cpu`, may be empty): where other programs
    have the cores, calls take as long with four experts as with one, and the line says nothing.
    """
    found = {}
    most = max((r["bytes_per_s"] for r in read), default=np.inf)
    for stored, dtype in STORED.items():
        of = [r for r in rows if r["dtype"] == dtype]
        if not of:
            continue
        few = [r for r in of if r["tokens"] == 1]
        n = np.array([r["experts"] for r in few], np.float64)
        took = np.array([r["median_ns"] for r in few])
        terms = np.column_stack((n, np.ones(len(n))))
        each, wave = non_negative(terms / took[:, None], np.ones(len(n))).tolist()
        if each <= 0:  # more experts took no longer: nothing but the wave's cost shows
            each, wave = float(took.max() / n.max()), 0.0
        nbytes = few[0]["bytes"] / few[0]["experts"]
        if nbytes / each > most / 1e9:
            each = nbytes / most * 1e9
            wave = max(0.0, float(np.median(took - n * each)))
        many = max(of, key=lambda r: r["tokens"])
        ops = 2.0 * many["params"] * many["tokens"] * many["experts"]
        work = max(many["median_ns"] - wave, each)  # no less than with one token
        found[stored] = {
            "bytes_per_s": max(1, round(nbytes / each * 1e9)),
            "flops": max(1, round(ops / work * 1e9)),
            "wave_ns": round(wave),
            "source": f"the engine's CPU kernels, {many['threads']} threads; 1 to 4 experts with one "
            f"token, one with {many['tokens']}",
        }
    return found
