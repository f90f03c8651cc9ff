"""The runs of a serving study here, on several cores, or on a Dask cluster; in their order."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, cast

from uvmsim.runs.job import Job
from uvmsim.studies.scenario import Progress, Scenario
from uvmsim.studies.serve.asked import Asked
from uvmsim.studies.serve.items import Items, Service, items_of
from uvmsim.studies.sweep.cluster import Cluster

Done = tuple[Service, list[str]]
_kept: dict[str, Items] = {}
"""In a worker: the study at hand, so that its trace is read once."""


def spread(
    items: Items, processes: int, dask: str | None, progress: Progress | None
) -> Iterator[Done]:
    """Each run's outcome. Raises `InputError`."""
    total = len(items.runs)
    if dask is None and min(processes, total) < 2:
        for i in range(total):
            yield items.run(i, _told(progress, i, total, items.named(i)))
        return
    if dask is not None:
        with Cluster(dask) as cluster:
            yield from _together(cluster.client.submit, items, progress)
        return
    with ProcessPoolExecutor(min(processes, total), mp.get_context("spawn")) as pool:
        yield from _together(pool.submit, items, progress)


def _together(submit: Any, items: Items, progress: Progress | None) -> Iterator[Done]:
    s, q = items.scenario, items.asked
    futures = [submit(run_one, s, q, i) for i in range(len(items.runs))]
    try:
        for i, future in enumerate(futures):
            if progress:
                progress(i, len(futures), items.named(i))
            service, notes = future.result()
            yield replace(service, job=items.runs[i][2]), notes
    finally:
        for future in futures:
            future.cancel()


def run_one(s: Scenario, q: Asked, i: int) -> Done:
    """One run, in a worker; without its job, which holds a whole trace."""
    key = repr((s, q))
    if key not in _kept:
        _kept.clear()
        _kept[key] = items_of(s, q)
    service, notes = _kept[key].run(i)
    return replace(service, job=cast(Job, None)), notes


def _told(progress: Progress | None, done: int, total: int, what: str) -> Any:
    """Progress inside a run: requests."""
    if progress is None:
        return None
    progress(done, total, what)
    return lambda n, of: progress(done, total, f"{what}, request {n:,} of {of:,}")
