"""The runs of a serving study, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.requests.trace import RequestTrace
from uvmsim.core.units import parse_bytes
from uvmsim.runs.job import DoesNotFit, Job, expert_slots, fixed_bytes
from uvmsim.serving.load import Load, check_load, load_of, prefix_tokens
from uvmsim.serving.machine import serve_job
from uvmsim.serving.metrics import bench
from uvmsim.serving.result import Bench
from uvmsim.serving.server import SWA, Server, server_of
from uvmsim.serving.source import Source, source_of
from uvmsim.serving.streamed import Border, serve_streamed, why_not
from uvmsim.studies.choice import policies_for
from uvmsim.studies.compare import sizes_of
from uvmsim.studies.resolve import (
    Resolved,
    jobs,
    label,
    load_trace,
    resolve,
)
from uvmsim.studies.scenario import DEFAULT_HARDWARE, Scenario
from uvmsim.studies.serve.asked import Asked, told_rate
from uvmsim.studies.serve.row import Cost, answered, costs_of_run, costs_of_stream

BORROWED = "lengths are those asked for; routing is borrowed from sequences of the trace"
ROUND_TO = 256
"""llama.cpp pads a context to so many tokens."""


@dataclass(frozen=True)
class Service:
    """One run."""

    job: Job
    mechanism: str
    rate: float | None
    bench: Bench | None
    """None where the model does not fit."""
    costs: dict[str, Cost]
    slots: int
    kv_tokens: int
    does_not_fit: DoesNotFit | None = None
    way: str = "stream"
    record: dict[str, Any] | None = None

    @property
    def how(self) -> str:
        """The mechanism, with what there may be several of."""
        return self.mechanism + (f" {self.job.ncmoe}" if self.mechanism == "cpu-offload" else "")

    @property
    def name(self) -> str:
        """Mechanism and policy."""
        return " ".join(x for x in (self.how, self.job.policy_name) if x)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: the keys of vLLM's result file under ``bench``."""
        head: dict[str, Any] = {
            "mechanism": self.mechanism, "policy": self.job.policy_name,
            "hardware": self.job.hardware.name, "slots": self.slots, "kv_tokens": self.kv_tokens,
            "rate": self.rate if self.rate is None or math.isfinite(self.rate) else "inf",
        }  # fmt: skip
        if self.mechanism == "cpu-offload":
            head["ncmoe"] = self.job.ncmoe
        if self.does_not_fit is not None:
            d = self.does_not_fit
            return head | {"status": "out-of-memory", "needed_bytes": d.needed,
                           "available_bytes": d.available, "what": str(d)}  # fmt: skip
        assert self.bench is not None
        n = self.bench.completed
        costs = list(self.costs.values())
        stalls = [c.stall_ns for c in costs]
        asked = [c.accesses for c in costs]
        moved = sum(c.bytes_h2d + c.bytes_d2h for c in costs)
        hits = None if None in asked else sum(c.hits or 0 for c in costs)
        return head | {
            "status": "ok",
            "way": self.way,
            "bench": self.record,
            "hit_rate": None if hits is None else hits / max(sum(x or 0 for x in asked), 1),
            "bytes_moved_per_request": moved / n,
            "stall_s_per_request": None
            if None in stalls
            else sum(x or 0 for x in stalls) / 1e9 / n,
            "phases": {name: c.to_json() for name, c in self.costs.items()},
        }


@dataclass(frozen=True)
class Items:
    """What is served, and by whom: one run a rate, mechanism, size and policy."""

    scenario: Scenario
    asked: Asked
    resolved: Resolved
    source: Source
    requests: RequestTrace
    server: Server
    load: Load
    """At the first run's arrivals."""
    runs: list[tuple[float | None, np.ndarray, Job, str]]
    """Rate, arrivals, job, mechanism."""

    @property
    def notes(self) -> list[str]:
        return [*self.resolved.notes, *self.source.notes, *self.requests.notes, BORROWED]

    def run(
        self, i: int, told: Callable[[int, int], None] | None = None
    ) -> tuple[Service, list[str]]:
        """The ``i``-th run, and what it has to say. Raises `InputError`."""
        rate, arrival, job, mechanism = self.runs[i]
        load = replace(self.load, arrival=arrival)
        notes: list[str] = []
        made = _one(
            job, mechanism, load, self.server, self.source, self.asked, self.scenario, rate, notes,
            told,
        )  # fmt: skip
        return made, notes

    def named(self, i: int) -> str:
        """What a progress bar says of a run."""
        rate, _, job, mechanism = self.runs[i]
        return label(job, mechanism) + ("" if rate is None else f" at {rate:g}/s")


def items_of(s: Scenario, q: Asked) -> Items:
    """Read what a scenario names; nothing is run yet. Raises `InputError`."""
    s = s.or_else(hardware=DEFAULT_HARDWARE, mechanisms="expert-cache", pool="global")
    _check(s)
    chosen = policies_for(s.mechanisms, s.policies or _default(s))  # type: ignore[arg-type]
    r = resolve(s, several=True)
    source = source_of([r.trace, *(load_trace(t) for t in q.more)])
    requests = q.trace(s.seed)
    server, kv = _server(s, q, r, requests)
    sizes = sizes_of(s, r)
    r = replace(r, base=replace(r.base, ctx=kv))
    if q.kv is not None:
        _check_kv(q.kv, r)
    todo = [x for hw in r.machines for x in jobs(r.on(hw), s.mechanisms, sizes, chosen)]  # type: ignore[arg-type]
    runs = [
        (rate, arrival, job, mechanism)
        for rate, arrival in q.times(requests, s.seed)
        for job, mechanism in todo
    ]
    cached = None
    if len(requests.blocks):
        cached = prefix_tokens(
            requests.blocks, requests.block_lo, requests.block_tokens, server.kv_tokens
        )
    load = load_of(runs[0][1], requests.prompt, requests.output, source, s.seed, cached)
    check_load(load, server, s.ctx)
    return Items(s, q, r, source, requests, server, load, runs)


def _check(s: Scenario) -> None:
    for name in ("write_back", "limit", "state", "state_out", "behind"):
        if getattr(s, name):
            raise InputError("has no meaning for a server; leave it out", argument=name)
    if s.reset != "never" or s.unit != "event":
        name = "reset" if s.reset != "never" else "unit"
        raise InputError(
            f"{getattr(s, name)}: a server keeps its pool; leave it out", argument=name
        )


def _default(s: Scenario) -> tuple[str, ...] | None:
    """Policies that know no future: a server has none to look at."""
    from uvmsim.policies.kinds import EXPERTS

    if s.mechanisms and set(s.mechanisms) <= {"expert-cache", "hybrid"}:
        return tuple(p for p in EXPERTS.defaults if "belady" not in p)
    return None


def _server(s: Scenario, q: Asked, r: Resolved, requests: RequestTrace) -> tuple[Server, int]:
    """The server, and how many tokens its KV cache holds: what was asked for, else what its requests
    can need at most."""
    kv = s.ctx
    if q.kv is not None:
        if s.ctx is not None:
            raise InputError(f"{q.kv}: give bytes or `ctx`, not both", argument="kv")
        try:
            size = parse_bytes(q.kv)
        except InputError as err:
            raise InputError(str(err), argument="kv") from None
        kv = size // max(r.model.kv_bytes_per_token, 1)
        if kv < 1:
            raise InputError(f"{q.kv}: less than one token's KV cache", argument="kv")
    server = server_of(
        q.server, q.parallel, q.batch, q.ubatch, kv_tokens=kv or 0,
        max_concurrency=q.max_concurrency or 0, warmup=q.warmup, breaks=q.breaks,
        swa=r.model.architecture in SWA,
    )  # fmt: skip
    if kv is None:
        longest = int((requests.prompt.astype(np.int64) + requests.output).max())
        at_once = min(server.slots, q.max_concurrency or server.slots, len(requests))
        kv = at_once * -(-longest // ROUND_TO) * ROUND_TO
    return server, kv


def _check_kv(kv: str | int | float, r: Resolved) -> None:
    """Raise `InputError` where a KV cache leaves no expert slot on any of the machines."""
    for hw in r.machines:
        needed = fixed_bytes(replace(r.base, hardware=hw)) + max(r.model.expert_bytes)
        if needed > hw.vram_bytes:
            raise InputError(
                f"{kv}: leaves no expert slot: with dense weights and one expert {needed:,} of "
                f"{hw.name}'s {hw.vram_bytes:,} bytes; give less",
                argument="kv",
            )


def _one(
    job: Job, mechanism: str, load: Load, server: Server, source: Source, q: Asked, s: Scenario,
    rate: float | None, notes: list[str], told: Callable[[int, int], None] | None,
) -> Service:  # fmt: skip
    why = why_not(job, mechanism) or ("the SimPy clock" if s.engine != "fast" else None)
    if q.border == "elastic" and (why or q.way == "whole" or job.pool != "global"):
        told_why = why or ("one simulator of all passes" if q.way == "whole" else "a pool a layer")
        raise InputError(f"elastic: not for {told_why}; leave it out", argument="border")
    if q.way == "stream" and why:
        raise InputError(f"stream: not for {why}; leave it out", argument="way")
    kv = job.ctx or 0
    if "next_use" in (job.policy.needs if job.policy else ()):
        raise InputError(f"policy {job.policy_name} needs the future, which a server has not")
    if why is None and q.way != "whole":
        try:
            slots = expert_slots(job)
            border = Border(slots, kv) if q.border == "elastic" else None
            done = serve_streamed(
                replace(job, slots=slots), load, server, source, told, border=border
            )
        except DoesNotFit as err:
            return Service(job, mechanism, rate, None, {}, 0, kv, err)
        queue, costs, way = done.queue, costs_of_stream(done), "stream"
        more = done.notes
    else:
        run = serve_job(job, mechanism, load, server, source, s.engine)
        if run.outcome.does_not_fit is not None:
            return Service(job, mechanism, rate, None, {}, 0, kv, run.outcome.does_not_fit)
        queue, costs, way = run.schedule.queue, costs_of_run(run), "whole"
        slots, more = run.outcome.slots, run.outcome.notes
    notes += [n for n in more if n not in notes]
    seen = answered(queue, server.warmup)
    made = bench(
        seen, rate=told_rate(rate), burstiness=q.burstiness, max_concurrency=q.max_concurrency,
        percentiles=q.percentiles, metrics=q.metrics, goodput=q.goodput or None,
    )  # fmt: skip
    record = made.record(model_id=job.model.name, ramp=q.ramp)
    return Service(job, mechanism, rate, made, costs, slots, kv, None, way, record)
