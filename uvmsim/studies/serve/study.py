"""Requests on a server, by mechanism, policy, size of the pool and rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from traces.requests.trace import RequestTrace
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.serving.server import Server
from uvmsim.studies.answer import Answer, flat
from uvmsim.studies.resolve import (
    Resolved,
    hardware_json,
    model_json,
    trace_json,
)
from uvmsim.studies.scenario import Progress, Scenario, plain, scenario_of
from uvmsim.studies.serve.asked import Asked
from uvmsim.studies.serve.items import Service, items_of
from uvmsim.studies.serve.spread import spread
from uvmsim.version import __version__


@dataclass(frozen=True, repr=False)
class Serving(Answer):
    """All runs, and what they share."""

    printer: ClassVar[str] = "uvmsim.report.serve_table:print_serving"

    scenario: Scenario
    asked: Asked
    trace: RoutingTrace
    requests: RequestTrace
    server: Server
    model: Model
    hardware: Hardware
    runs: list[Service]
    notes: list[str]
    resolved: Resolved

    @property
    def outcomes(self) -> Sequence[Service]:
        """One a mechanism, size, policy and rate."""
        return self.runs

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a run; vLLM's keys begin with ``bench_``."""
        return [flat(run.to_json()) for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        """One object of plain JSON types; the same input gives the same bytes."""
        r = self.requests
        return {
            "uvmsim": __version__,
            "trace": trace_json(self.trace, self.resolved.workload),
            "model": model_json(self.model),
            "hardware": hardware_json(self.resolved.machines or (self.hardware,)),
            "requests": {
                "source": r.source, "format": r.format, "n": len(r),
                "prompt_tokens": int(r.prompt.sum(dtype=np.int64)),
                "output_tokens": int(r.output.sum(dtype=np.int64)),
            },
            "server": {k: plain(v) for k, v in vars(self.server).items()},
            "options": self.scenario.to_json(),
            "notes": self.notes,
            "runs": [run.to_json() for run in self.runs],
        }  # fmt: skip


def serve(
    scenario: Scenario | Any = None, asked: Asked | None = None, *,
    processes: int = 1, dask: str | None = None, progress: Progress | None = None, **options: Any,
) -> Serving:  # fmt: skip
    """Serve requests with every mechanism and policy of a scenario, at every size of the pool and rate.

    ``scenario`` as in `uvmsim.compare`; of its fields ``limit``, ``write_back``, ``reset`` and
    ``state`` have no meaning here. ``options``: the fields of `Asked`, in its place. ``processes``:
    how many runs at a time (a script then needs an ``if __name__ == "__main__"``); ``dask``: a
    scheduler to run them instead. ``progress`` is called with (runs done, runs in all, what runs
    next). Raises `InputError`.
    """
    items = items_of(scenario_of(scenario), asked or Asked(**options))
    notes, runs, total = items.notes, [], len(items.runs)
    for service, more in spread(items, processes, dask, progress):
        runs.append(service)
        notes += [n for n in more if n not in notes]
    if progress:
        progress(total, total, "")
    r = items.resolved
    return Serving(
        items.scenario, items.asked, r.trace, items.requests, items.server, r.model, r.hardware,
        runs, notes, r,
    )  # fmt: skip
