"""Cells on a cluster: chunks as tasks of an existing Dask scheduler.

Dask runs a task again where its worker was lost; rows travel with the task's result and are written
by this process alone, so none is lost or doubled.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from traces.errors import InputError
from uvmsim.studies.sweep.cells import Cell, TraceFacts, chunks
from uvmsim.studies.sweep.runner import Runner, failed
from uvmsim.studies.sweep.source import facts_of

CHUNK = 32
"""Most cells of a task: what is lost with a worker."""
AHEAD = 4
"""Tasks submitted for each thread of the cluster."""
TIMEOUT = "10s"
"""How long a scheduler may take to answer at first."""
POLL = 0.02
"""Seconds between looks at what has finished."""

_own = threading.local()


def run_chunk(cells: list[Cell]) -> list[dict[str, Any]]:
    """A task: the rows of some cells. Each worker thread keeps its trace and last decisions."""
    if not hasattr(_own, "runner"):
        _own.runner = Runner()
    return list(_own.runner.rows(cells))


class Cluster:
    """A connection to a scheduler; close it when done."""

    def __init__(self, address: str):
        try:
            from distributed import Client
        except ImportError:
            raise InputError("--dask needs Dask distributed; pip install 'uvmsim[dask]'") from None
        try:
            self.client = Client(address, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as err:
            why = " ".join(str(err).split()) or type(err).__name__
            raise InputError(f"--dask {address}: no scheduler answers there ({why})") from None
        self.address = address
        self._known, self._asked = 1, float("-inf")
        if not self.client.scheduler_info(n_workers=-1)["workers"]:
            self.close()
            raise InputError(f"--dask {address}: the scheduler has no workers")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()

    def facts(self, paths: list[str | None]) -> dict[str | None, TraceFacts]:
        """Facts of traces as the workers see them; raises `InputError` where one cannot be read."""
        futures = {p: self.client.submit(facts_of, p, pure=False) for p in paths}
        return {p: f.result() for p, f in futures.items()}

    def run(self, cells: list[Cell]) -> Iterator[list[dict[str, Any]]]:
        """Rows of all cells as they finish, in batches (maybe empty), in no particular order."""
        todo: deque[list[Cell]] = deque(chunks(cells, CHUNK))
        running: dict[Any, list[Cell]] = {}
        while todo or running:
            while todo and len(running) < AHEAD * self._threads():
                chunk = todo.popleft()
                running[self.client.submit(run_chunk, chunk, pure=False)] = chunk
            batch: list[dict[str, Any]] = []
            for future in [f for f in running if f.done()]:
                chunk = running.pop(future)
                batch += self._result(future, chunk, todo)
            if not batch:
                self._still_there()
                time.sleep(POLL)
            yield batch

    def _result(
        self, future: Any, chunk: list[Cell], todo: deque[list[Cell]]
    ) -> list[dict[str, Any]]:
        """The rows of a finished task. Where Dask gave it up, its cells are run one by one, and one
        that is given up again becomes a row that says why."""
        from distributed import CancelledError, KilledWorker

        try:
            rows: list[dict[str, Any]] = future.result()
            return rows
        except CancelledError:
            todo.append(chunk)
            return []
        except KilledWorker as err:
            if len(chunk) > 1:
                todo.extend([cell] for cell in chunk)
                return []
            return [failed(chunk[0], " ".join(f"it took its workers down: {err}".split()))]
        except Exception as err:  # not a cell's own error: those are rows already
            why = " ".join(f"{type(err).__name__}: {err}".split())
            raise InputError(
                f"--dask {self.address}: a worker cannot run the sweep ({why})"
            ) from err

    def _threads(self) -> int:
        """Threads of all workers, asked for now and then: clusters grow and shrink."""
        if time.monotonic() > self._asked + 2:
            self._asked = time.monotonic()
            self._known = max(sum(self.client.nthreads().values()), 1)
        return self._known

    def _still_there(self) -> None:
        if self.client.status not in ("running", "connecting"):
            raise InputError(
                f"--dask {self.address}: lost the scheduler; run the same command again to go on"
            )
