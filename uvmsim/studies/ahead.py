"""A second process that compiles the kernels of later runs while this one makes the earlier ones.

It leaves them in Numba's cache on disk, from where this process loads them; what is decided, and by
whom, stays as it is. Where anything goes wrong over there, the kernel is compiled here as ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from uvmsim.experts.decisions import Decisions
from uvmsim.policies.registry import PolicySpec
from uvmsim.runs.job import Job
from uvmsim.studies.scenario import Scenario

TOKENS = 16
"""Of the trace, for runs whose only purpose is that their kernel is compiled."""

Runs = Sequence[tuple[Job, str]]
"""Jobs and their mechanisms."""


class Ahead:
    """Compiles from the end of the list what is not asked for yet. Close it when done."""

    def __init__(self, scenario: Scenario, runs: Runs, make: Callable[[Scenario], Runs]):
        """``make``: a function of a module that gives the same list of runs for a part of the trace."""
        self._left = deque(i for i, run in enumerate(runs) if i and _compiles(*run))
        self._done = {i: threading.Event() for i in self._left}
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        short = scenario.with_(limit=min(scenario.limit or TOKENS, TOKENS))
        self._process = context.Process(target=_work, args=(theirs, short, make), daemon=True)
        self._process.start()
        theirs.close()
        threading.Thread(target=self._feed, daemon=True).start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.clear()
        self._process.kill()
        self._process.join()

    def ready(self, i: int) -> None:
        """Run ``i`` is next here: if the other process is at its kernel, wait for it."""
        try:
            self._left.remove(i)
        except ValueError:
            if i in self._done:
                self._done[i].wait()

    def _feed(self) -> None:
        """The last that is left, one at a time, until there is none or nobody answers."""
        i = None
        try:
            while self._left:
                i = self._left.pop()
                self._pipe.send(i)
                self._pipe.recv()
                self._done[i].set()
        except (EOFError, OSError, IndexError):
            pass
        self._left.clear()
        self._pipe.close()
        if i is not None:
            self._done[i].set()


def _compiles(job: Job, mechanism: str) -> bool:
    """Whether a run has a kernel of its own that is the same in every process."""
    return (
        mechanism == "expert-cache" and isinstance(job.policy, PolicySpec) and not job.policy.files
    )


def _work(pipe: Connection, scenario: Scenario, make: Callable[[Scenario], Runs]) -> None:
    """The other process: numbers of runs in, the same numbers out when their kernels are compiled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    runs: Any = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            i = pipe.recv()
            with contextlib.suppress(Exception):
                runs = runs or make(scenario)
                Decisions(runs[i][0]).serve(1)
            pipe.send(i)
