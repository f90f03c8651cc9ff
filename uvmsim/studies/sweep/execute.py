"""A whole sweep: what is missing in the dataset is run and written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uvmsim.studies.sweep import local
from uvmsim.studies.sweep.cells import Cell, expand
from uvmsim.studies.sweep.cluster import Cluster
from uvmsim.studies.sweep.config import SweepConfig
from uvmsim.studies.sweep.rows import ERROR, OK, OUT_OF_MEMORY
from uvmsim.studies.sweep.source import facts_of, traces_of
from uvmsim.studies.sweep.store import Store
from uvmsim.version import __version__

FLUSH = 0.5
"""Seconds a finished row waits at most before it is on disk."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Summary:
    """What a sweep came to. Counts are of the grid asked for; the dataset may hold more."""

    dataset: str
    cells: int
    already: int
    """Cells found in the dataset at the start."""
    ran: int
    ok: int
    out_of_memory: int
    errors: int
    first_error: str | None
    other_versions: int
    """Cells whose row was made by another version of uvmsim."""
    keys: frozenset[str]
    """Keys of the grid's cells."""
    order: tuple[str, ...] = ()
    """The same in the grid's order."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the keys."""
        return {k: v for k, v in vars(self).items() if k not in ("keys", "order")} | {
            "uvmsim": __version__
        }


def sweep(
    config: SweepConfig,
    folder: str | Path,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    retry: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Run what the dataset at ``folder`` lacks of the grid, on ``jobs`` cores or a Dask scheduler.

    ``retry``: cells that failed are run again. ``progress`` is called with (cells done, cells in
    all, what was done last); what it counts is on disk. Raises `InputError`.
    """
    with Store(folder, config.model_dump()) as store:
        if retry:
            store.forget_errors()
        with Cluster(dask) if dask else nullcontext() as cluster:
            paths = traces_of(config)
            facts = cluster.facts(paths) if cluster else {p: facts_of(p) for p in paths}
            cells = expand(config, facts)
            todo = [c for c in cells if c.key not in store.done]
            already = len(cells) - len(todo)
            if progress:
                progress(already, len(cells), "")
            if todo:
                rows = cluster.run(todo) if cluster else local.run(todo, jobs or local.cores())
                _write(rows, store, already, cells, progress)
        return _summary(store, cells, already)


def _write(
    rows: Iterator[list[dict[str, Any]]],
    store: Store,
    already: int,
    cells: list[Cell],
    progress: Progress | None,
) -> None:
    held: list[dict[str, Any]] = []
    done, last = already, time.monotonic()
    try:
        for batch in rows:
            held += batch
            if held and time.monotonic() - last > FLUSH:
                done += store.add(held)
                if progress:
                    row = held[-1]
                    progress(done, len(cells), row["policy"] or row["mechanism"])
                held, last = [], time.monotonic()
    finally:
        # Also on Ctrl-C: what has been computed is kept.
        done += store.add(held)
        if progress:
            progress(done, len(cells), "")


def _summary(store: Store, cells: list[Cell], already: int) -> Summary:
    keys = frozenset(c.key for c in cells)
    table = store.read(["cell", "status", "error", "uvmsim"])
    order = {c.key: i for i, c in enumerate(cells)}
    mine = [r for r in table.to_pylist() if r["cell"] in keys]
    mine.sort(key=lambda r: order[r["cell"]])
    count = dict.fromkeys((OK, OUT_OF_MEMORY, ERROR), 0)
    for r in mine:
        count[r["status"]] += 1
    return Summary(
        dataset=str(store.folder),
        cells=len(cells),
        already=already,
        ran=len(cells) - already,
        ok=count[OK],
        out_of_memory=count[OUT_OF_MEMORY],
        errors=count[ERROR],
        first_error=next((r["error"] for r in mine if r["status"] == ERROR), None),
        other_versions=sum(r["uvmsim"] != __version__ for r in mine),
        keys=keys,
        order=tuple(order),
    )


def default_folder(config_path: str) -> Path:
    """Where a config's rows go unless told otherwise: ``NAME.sweep`` in the working directory."""
    return Path(Path(config_path).stem + ".sweep")
