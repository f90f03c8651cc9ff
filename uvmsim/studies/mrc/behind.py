"""Curves of host memory above a disk: what each size of it would miss of a pool's copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from uvmsim.experts.cache_misses import cache_misses
from uvmsim.experts.decisions import Decisions
from uvmsim.policies.registry import PolicySpec
from uvmsim.runs.job import Job
from uvmsim.runs.plan import WRITEBACK
from uvmsim.studies.mrc.curves import Curve
from uvmsim.studies.mrc.stack import stack_histogram

BEHIND = "host memory"
"""What stands for the kind of pool in such a curve."""


def copies_of(job: Job) -> np.ndarray:
    """int32: the experts that a job's pool copies in, demand and prefetch, in order."""
    parts = Decisions(job).serve_all()
    ids = [p.copy_expert[p.copy_kind != WRITEBACK] for p in parts]
    return np.concatenate(ids).astype(np.int32)


def curves_behind(
    ids: np.ndarray, n_total: int, specs: Sequence[PolicySpec], sizes: Sequence[int], seed: int,
    told: Callable[[str], None],
) -> list[Curve]:  # fmt: skip
    """LRU's whole curve, then the other policies' at ``sizes``. Host memory is empty at first: each
    expert's first copy is a read. ``told`` hears what comes next."""
    told("lru")
    each = np.arange(len(ids) + 1, dtype=np.int64)
    hist, first = stack_histogram(ids, each, n_total)
    slots = np.arange(1, n_total + 1)
    farther = np.concatenate((np.cumsum(hist[::-1])[::-1], [0]))
    curves = [Curve("lru", slots, first + farther[slots], len(ids))]
    for spec in specs[1:]:
        told(spec.name)
        misses = [cache_misses(ids, n, spec.name, seed) for n in sizes]
        curves.append(Curve(spec.name, np.array(sizes), np.array(misses), len(ids)))
    return curves
