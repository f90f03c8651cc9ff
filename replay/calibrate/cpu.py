"""How fast the CPU reads expert weights: matrix-vector products over all cores."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numba import prange

from replay.calibrate.stats import Row, repeat, row
from traces.jit import compiled

WIDTH = 2048


@compiled(parallel=True, fastmath=True, nogil=True)
def _gemv(matrix: Any, vector: Any, out: Any) -> None:
    for i in prange(matrix.shape[0]):
        total = np.float32(0)
        for j in range(matrix.shape[1]):
            total += matrix[i, j] * vector[j]
        out[i] = total


def cpu_reads(nbytes: int, repetitions: int) -> list[Row]:
    """float32 weights of ``nbytes`` read once a product, far more than the caches hold: by our own
    kernel over all cores and by NumPy's BLAS."""
    rows = max(nbytes // 4 // WIDTH, 1)
    matrix = np.ones((rows, WIDTH), np.float32)
    vector, out = np.ones(WIDTH, np.float32), np.empty(rows, np.float32)
    _gemv(matrix[:1], vector, out[:1])

    def ours() -> float:
        begin = time.perf_counter_ns()
        _gemv(matrix, vector, out)
        return float(time.perf_counter_ns() - begin)

    def blas() -> float:
        begin = time.perf_counter_ns()
        np.dot(matrix, vector, out=out)
        return float(time.perf_counter_ns() - begin)

    made = []
    for name, run in (("numba, all cores", ours), ("NumPy", blas)):
        run()
        made.append(row(repeat(run, repetitions), matrix.nbytes, kernel=name))
    return made
