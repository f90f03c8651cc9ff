"""Cells on the cores of this machine: a few processes, each fed one chunk at a time.

Rows come back one by one, so that a cell is on disk soon after it is done whatever its chunk still
holds. A process that dies takes one cell with it, the one it was on: that one is tried once more,
then it gets a row that says so.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import re
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from uvmsim.studies.sweep.cells import Cell, chunks
from uvmsim.studies.sweep.runner import Runner, failed

TRIES = 2
"""Processes a cell may take down before it is given up."""
SETTINGS = re.compile(r":\w+=[^:+]*")
"""Parameters in a policy's name."""
Kernel = tuple[str, str | None]

POLL = 0.2
"""Seconds after which the caller gets control back, with or without a row."""


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(cells: list[Cell], jobs: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of all cells as they finish, in batches (maybe empty), in no particular order."""
    with Pool(min(jobs, len(cells))) as pool:
        yield from pool.run(cells)


class _Worker:
    """A process and the cells it has been given and has not answered yet."""

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.todo: deque[Cell] = deque()

    def give(self, chunk: list[Cell]) -> None:
        self.todo.extend(chunk)
        # A process that has died is noticed where its answers are read.
        with contextlib.suppress(OSError):
            self.pipe.send(chunk)


class Pool:
    """Processes that outlive a run, so that the next one finds traces open and kernels loaded; with
    one job, this process itself. Close it when done."""

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.here = Runner() if jobs == 1 else None
        self.workers: list[_Worker] = []
        self.compiled: set[Kernel] = set()
        self.deaths: Counter[str] = Counter()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, cells: list[Cell]) -> Iterator[list[dict[str, Any]]]:
        """Rows of all cells as they finish, in batches (maybe empty), in no particular order. Left
        before the end, it drops what is not done."""
        if self.here:
            for row in self.here.rows(cells):
                yield [row]
            return
        while len(self.workers) < min(self.jobs, len(cells)):
            self.workers.append(_Worker())
        self._enqueue(cells)
        try:
            yield from self._rows(len(cells))
        finally:
            self._drop([w for w in self.workers if w.todo])

    def _enqueue(self, cells: list[Cell]) -> None:
        """One cell of each kernel goes first: whoever runs it compiles it, and all others then load it
        from Numba's cache on disk."""
        self.queue: deque[list[Cell]] = deque()
        self.pilots: deque[list[Cell]] = deque()
        self.compiling: set[Kernel] = set()
        for chunk in chunks(cells):
            kernel = _kernel(chunk[0])
            if kernel not in self.compiling | self.compiled:
                self.compiling.add(kernel)
                self.pilots.append([chunk.pop(0)])
            if chunk:
                self.queue.append(chunk)

    def _rows(self, left: int) -> Iterator[list[dict[str, Any]]]:
        while left:
            for worker in self.workers:
                if not worker.todo:
                    chunk = self._next()
                    if chunk:
                        worker.give(chunk)
            batch: list[dict[str, Any]] = []
            ready = wait([w.pipe for w in self.workers], timeout=POLL)
            for i, worker in enumerate(self.workers):
                if worker.pipe in ready:
                    batch += self._answers(i, worker)
            left -= len(batch)
            yield batch

    def _next(self) -> list[Cell] | None:
        """The next chunk whose kernel is compiled."""
        if self.pilots:
            return self.pilots.popleft()
        for i, chunk in enumerate(self.queue):
            if _kernel(chunk[0]) not in self.compiling:
                del self.queue[i]
                return chunk
        return None

    def _answers(self, i: int, worker: _Worker) -> list[dict[str, Any]]:
        rows = []
        try:
            while worker.pipe.poll():
                row = worker.pipe.recv()
                self._is_compiled(worker.todo.popleft())
                rows.append(row)
        except (EOFError, OSError):
            rows += self._bury(worker)
            self.workers[i] = _Worker()
        return rows

    def _is_compiled(self, cell: Cell) -> None:
        self.compiling.discard(_kernel(cell))
        self.compiled.add(_kernel(cell))

    def _bury(self, worker: _Worker) -> list[dict[str, Any]]:
        """Take back what a dead process had; the row of its cell where that was once too often."""
        worker.pipe.close()
        worker.process.join()
        rest = list(worker.todo)
        if not rest:
            return []
        culprit = rest[0]
        self.deaths[culprit.key] += 1
        if self.deaths[culprit.key] < TRIES:
            self.queue.appendleft(rest)
            self.compiling.discard(_kernel(culprit))
            return []
        self.compiling.discard(_kernel(culprit))
        if rest[1:]:
            self.queue.appendleft(rest[1:])
        return [failed(culprit, f"the process running it died ({_how(worker.process.exitcode)})")]

    def close(self) -> None:
        """End all processes."""
        self._drop(list(self.workers))

    def _drop(self, workers: list[_Worker]) -> None:
        for worker in workers:
            self.workers.remove(worker)
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _kernel(cell: Cell) -> Kernel:
    """What is compiled once: parameters are data."""
    return cell.mechanism, cell.policy and SETTINGS.sub("", cell.policy)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _work(pipe: Connection) -> None:
    """A worker's life: chunks in, rows out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    parent = mp.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    runner = Runner()
    with contextlib.suppress(EOFError, OSError):
        while True:
            send(pipe, runner.rows(pipe.recv()))


def send(pipe: Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Each row as soon as there is one."""
    for row in rows:
        pipe.send(row)


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
