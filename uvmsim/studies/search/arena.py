"""Runs candidates, each once: what was run is on disk, and is never run again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.errors import InputError
from uvmsim.studies.search.cases import Case, Stretch
from uvmsim.studies.sweep.cells import Cell, Resolver, TraceFacts, expand
from uvmsim.studies.sweep.cluster import Cluster
from uvmsim.studies.sweep.local import Pool
from uvmsim.studies.sweep.rows import OK
from uvmsim.studies.sweep.source import facts_of
from uvmsim.studies.sweep.store import Store
from uvmsim.studies.sweep.study import config_of

OBJECTIVES = ("tokens", "hits")
KEPT = ("cell", "status", "error", "hit_rate", "decode_tokens_per_s", "prefill_tokens_per_s")


@dataclass(frozen=True)
class Score:
    """What a candidate is worth on some stretches: the larger the better. Of several traces and pool
    sizes the geometric mean of speeds, the mean of hit rates; None where a run failed."""

    value: float | None
    speed: float | None = None
    """Tokens per second."""
    hits: float | None = None
    """Hit rate."""
    error: str | None = None


class Until:
    """When to stop: at a moment, or never."""

    def __init__(self, seconds: float | None):
        self.start = time.monotonic()
        self.end = None if seconds is None else self.start + seconds

    @property
    def over(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end

    @property
    def seconds(self) -> tuple[int, int]:
        """How many have passed, and how many there are in all (0: no end)."""
        total = 0 if self.end is None else round(self.end - self.start)
        return min(round(time.monotonic() - self.start), total), total


class Arena:
    """Where candidates are run: the cores of this machine, or a Dask scheduler. Close it when done."""

    def __init__(self, folder: Path, objective: str, jobs: int, dask: str | None):
        self.objective = objective
        self.facts: dict[str | None, TraceFacts] = {}
        self.resolver = Resolver(self.facts)
        self.ran = 0
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(folder))
            self.rows = {r["cell"]: r for r in self.store.read(list(KEPT)).to_pylist()} if (
                self.store.done
            ) else {}  # fmt: skip
            self.cluster = stack.enter_context(Cluster(dask)) if dask else None
            self.pool = None if dask else stack.enter_context(Pool(jobs))
            self._open = stack.pop_all()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def scores(
        self,
        policies: Sequence[str],
        where: Sequence[tuple[Case, Stretch]],
        until: Until | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, Score]:
        """What policies are worth, by name. Those not done when it is over are left out; ``tick`` is
        called now and then."""
        if not policies:
            return {}
        cells = [(case, self._cells(policies, case, at)) for case, at in where]
        todo = {c.key: c for _, found in cells for c in found if c.key not in self.rows}
        for batch in self._run(list(todo.values()), until):
            for row in batch:
                self.store.add([row])
                self.rows[row["cell"]] = {k: row.get(k) for k in KEPT}
                self.ran += 1
            tick()
        found: dict[str, list[tuple[Case, dict[str, Any] | None]]] = {p: [] for p in policies}
        for case, of in cells:
            for cell in of:
                found[str(cell.policy)].append((case, self.rows.get(cell.key)))
        return {p: self._score(rows) for p, rows in found.items() if all(r for _, r in rows)}

    def _run(self, cells: list[Cell], until: Until | None) -> Iterator[list[dict[str, Any]]]:
        if not cells or (until and until.over):
            return
        if self.pool:
            batches = self.pool.run(cells)
        else:
            assert self.cluster
            batches = self.cluster.run(cells)
        for batch in batches:
            yield batch
            if until and until.over:
                break
        batches.close()  # type: ignore[attr-defined]

    def _cells(self, policies: Sequence[str], case: Case, at: Stretch) -> list[Cell]:
        s = case.scenario
        profile: Any = s.profile
        for path in (at.path, profile):
            if path is not None and path not in self.facts:
                self.facts[path] = (
                    self.cluster.facts([path])[path] if self.cluster else facts_of(path)
                )
        config = config_of(s.with_(trace=at.path, limit=at.limit, policies=list(policies)), {})
        return expand(config, self.facts, self.resolver)

    def _score(self, rows: list[tuple[Case, Any]]) -> Score:
        failed = next((r for _, r in rows if r["status"] != OK), None)
        if failed:
            return Score(None, error=failed["error"] or failed["status"])
        speeds = [r[case.speed] for case, r in rows]
        speed = math.exp(sum(map(math.log, speeds)) / len(speeds)) if all(speeds) else None
        hits = sum(r["hit_rate"] for _, r in rows) / len(rows)
        value = speed if self.objective == "tokens" else hits
        return Score(value, speed, hits)


def check_objective(name: str) -> None:
    """`InputError` unless it is one."""
    if name not in OBJECTIVES:
        raise InputError(f"{name}: must be {' or '.join(OBJECTIVES)}", argument="objective")
