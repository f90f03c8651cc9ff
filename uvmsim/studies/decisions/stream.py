"""A stream of questions to a page policy: faults, services, ends of batches; the same for whoever is
asked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FAULT, SERVE, BATCH_END = 0, 1, 2
PROCESSES = 3
WAITS = (0, 1_000, 50_000, 2_000_000, 60_000_000)
"""Nanoseconds between blocks."""


class Stream(NamedTuple):
    """N questions."""

    kind: np.ndarray
    """int64 [N]: ``FAULT`` a page of a block faulted, ``SERVE`` a block is given memory,
    ``BATCH_END``."""
    block: np.ndarray
    """int64 [N]"""
    page: np.ndarray
    """int64 [N]: of a fault."""
    wait_ns: np.ndarray
    """int64 [N]: since the question before."""


def stream(n: int, n_blocks: int, seed: int = 0) -> Stream:
    """``n`` questions or a few more, each batch of one process, whose blocks are a third of all:
    batches of faults that run on, stride, jump and come back, in runs of blocks and across them, with
    pauses from none to tens of milliseconds."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rows: list[tuple[int, int, int, int]] = []
    process, block, page, stride, hop = 0, 0, 0, 1, 1
    own = n_blocks // PROCESSES
    jumpy = 0.1
    while len(rows) < n:
        if rng.random() < 0.15:
            process = int(rng.integers(PROCESSES))
        if rng.random() < 0.1:
            stride = int(rng.choice([1, 1, 2, -1, -3, 16, 0, 200]))
            hop, jumpy = int(rng.choice([1, 1, -1, 2, 0])), float(rng.choice([0.02, 0.1, 0.5]))
        served = []
        for _ in range(int(rng.integers(1, 6))):
            if rng.random() < 0.5:
                block = (block + hop) % own
            if rng.random() < jumpy:
                block = int(rng.integers(own))
            at = process * own + block
            if at in served:
                continue
            served.append(at)
            wait = int(rng.choice(WAITS, p=(0.5, 0.3, 0.1, 0.05, 0.05)))
            for _ in range(int(rng.integers(1, 9))):
                page = (page + stride) % 512
                if rng.random() < jumpy:
                    page = int(rng.integers(512))
                rows.append((FAULT, at, page, wait))
                wait = 0
            rows.append((SERVE, at, page, 1_000))
        rows.append((BATCH_END, served[0], page, 5_000))
    columns = np.array(rows, np.int64).T.copy()
    return Stream(*(np.ascontiguousarray(c) for c in columns))
