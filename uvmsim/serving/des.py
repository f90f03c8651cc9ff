"""The server as SimPy processes: a client a request, the server, the GPU and its copy engines.

This is the readable model, and it decides nothing beforehand: a pass is made up when the server gets to
it, its experts are then served by the same decisions as anywhere (`uvmsim.experts.decisions`), and its
waves are played by the same machine (`uvmsim.clocks.des`). `uvmsim.serving.schedule` is the same in
compiled form; both agree to the nanosecond.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field, replace

import numpy as np
import simpy
from simpy.events import Event

from traces.routing import RoutingTrace
from uvmsim.clocks.copies import at_last
from uvmsim.clocks.des import Machine
from uvmsim.experts.decisions import Decisions, Served
from uvmsim.experts.pricing import price
from uvmsim.runs.job import Job
from uvmsim.runs.plan import Counters, Plan
from uvmsim.serving.load import Load
from uvmsim.serving.open_workload import OpenWorkload
from uvmsim.serving.passes import Schedule, trace_of
from uvmsim.serving.schedule import OUTPUT, PROMPT, new_queue
from uvmsim.serving.server import Server
from uvmsim.serving.source import Source
from uvmsim.serving.streamed import Border
from uvmsim.workload import Workload, build_workload


@dataclass
class Request:
    """One request, and how far it is."""

    number: int
    prompt: int
    output: int
    fed: int
    """Tokens of the prompt that are in the KV cache."""
    done: Event
    sent: int = -1
    admitted: int = -1
    tokens: list[int] = field(default_factory=list)
    """When each came out."""


Part = tuple[Request, int, int, int]
"""A request's tokens in a pass: kind, first, how many."""


class Gpu(Machine):
    """A machine that is told one pass after the other."""

    def __init__(
        self, job: Job, source: Source, load: Load, env: simpy.Environment, border: Border | None
    ):
        if border is not None:
            job = replace(job, slots=border.most_slots(job))
        self.job, self.source, self.load, self.border = job, source, load, border
        like = build_workload(source.trace)
        tokens = int(load.prompt.sum() + load.output.sum())
        self.open = OpenWorkload(like, tokens)
        self.decisions = Decisions(replace(job, workload=self.open.whole))
        super().__init__(self._plan(like, [], 0), env)
        self.pass_ns: list[int] = []

    def keep(self, kv_tokens: int) -> None:
        """From now on requests have ``kv_tokens`` tokens in the KV cache; where the border moves,
        experts have what that leaves."""
        if self.border is not None:
            total, slot, token = self.border.array(self.job).tolist()
            self.decisions.limit(max((total - kv_tokens * token) // slot, 1))

    def run(self, parts: list[Part]) -> Generator[Event, None, None]:
        """One forward pass."""
        part = build_workload(self._trace(parts))
        before = self.open.events
        self.open.append(part)
        served = []
        while self.decisions.at < self.open.events:
            served.append(self.decisions.serve(self.open.events))
        plan = price(self._plan(part, served, before), replace(self.job, workload=part))
        base, copies = served[0].copies_before, len(plan.copy_ns)
        for mine, more in (
            (self.kind, plan.copy_kind), (self.ns, plan.copy_ns), (self.after, plan.copy_after),
            (self.copy_start, np.zeros(copies, int)), (self.copy_done, np.zeros(copies, int)),
        ):  # fmt: skip
            mine.extend(more.tolist())
        start = int(self.env.now)
        queued = waited = 0
        for w in range(len(plan.pre_ns)):
            copy_hi, wait_hi = int(plan.wave_copy_hi[w]), int(plan.wave_wait_hi[w])
            yield from self.wave(
                int(plan.pre_ns[w]), int(plan.cpu_ns[w]), int(plan.compute_ns[w]),
                range(base + queued, base + copy_hi), plan.waits[waited:wait_hi].tolist(),
            )  # fmt: skip
            queued, waited = copy_hi, wait_hi
        self.pass_ns.append(int(self.env.now) - start)

    def counters(self) -> Counters:
        """Of all passes so far."""
        made = self.decisions.counters()
        made.accesses = self.open.accesses
        return made

    def _trace(self, parts: list[Part]) -> RoutingTrace:
        request, kind, first, count = (
            np.array(x) for x in zip(*((p[0].number, *p[1:]) for p in parts), strict=True)
        )
        made = Schedule(
            self.load, np.array([0, len(parts)]), request, kind, first, count,
            np.zeros(1, np.int64), new_queue(self.load, Server()),
        )  # fmt: skip
        return trace_of(made, self.source)

    def _plan(self, part: Workload, served: list[Served], events: int) -> Plan:
        """What was served for one pass; copies, waits and waves count from the pass's start, but
        numbers of copies are the run's."""

        def joined(name: str, like: type = np.int64) -> np.ndarray:
            return np.concatenate([np.zeros(0, like), *(getattr(x, name) for x in served)])

        copies, waits = (served[0].copies_before, served[0].waits_before) if served else (0, 0)
        wave_hi = joined("wave_hi") - (self.open.accesses - len(part.ids) if served else 0)
        expert = joined("copy_expert")
        unpriced = np.zeros(len(wave_hi), np.int64)
        return Plan(
            (joined("wave_event") - events).astype(np.int32), wave_hi, unpriced, unpriced, unpriced,
            joined("wave_copy_hi") - copies, joined("wave_wait_hi") - waits,
            np.asarray(self.job.model.expert_bytes, np.int64)[expert // part.n_experts],
            joined("copy_kind", np.int8), joined("copy_after"), np.zeros(len(expert), np.int64),
            joined("waits"), np.zeros(0, np.int64), np.zeros(0, np.uint8), Counters(),
            slots=self.decisions.slots,
        )  # fmt: skip


class World:
    """Clients, a server and its GPU."""

    def __init__(
        self, job: Job, load: Load, server: Server, source: Source, border: Border | None = None
    ):
        self.load = load.warmed() if server.warmup else load
        self.server, self.env = server, simpy.Environment()
        self.gpu = Gpu(job, source, self.load, self.env, border)
        self.clients = simpy.Resource(self.env, server.max_concurrency or len(self.load))
        self.inbox: deque[Request] = deque()
        self.slots: list[Request | None] = [None] * server.slots
        self.running: list[Request] = []
        """Those in slots, in the order in which they got them."""
        self.call = Event(self.env)
        self.requests = [
            Request(i, int(p), int(o), int(c), Event(self.env))
            for i, (p, o, c) in enumerate(
                zip(self.load.prompt, self.load.output, self.load.cached, strict=True)
            )
        ]
        self.zero = 0

    def play(self) -> list[Request]:
        """All requests, served."""
        self.env.process(self.serve())
        self.env.process(self.arrive())
        self.env.run(self.env.all_of([r.done for r in self.requests]))
        return self.requests

    def arrive(self) -> Generator[Event, None, None]:
        """Requests come to the client; the first one alone and before the others, if it is to warm
        up."""
        rest = self.requests
        if self.server.warmup:
            self.env.process(self.client(rest[0]))
            yield rest[0].done
            self.zero, rest = int(self.env.now), rest[1:]
        for r in rest:
            at = self.zero + int(self.load.arrival[r.number])
            if at > self.env.now:
                yield self.env.timeout(at - int(self.env.now))
            self.env.process(self.client(r))

    def client(self, r: Request) -> Generator[Event, None, None]:
        """Send a request when the client may, and wait for its last token."""
        with self.clients.request() as turn:
            yield turn
            r.sent = int(self.env.now)
            self.inbox.append(r)
            if not self.call.triggered:
                self.call.succeed()
            yield r.done

    def serve(self) -> Generator[Event, None, None]:
        """One iteration after the other, as long as there is anything to do."""
        while True:
            yield self.settled()
            self.admit()
            if not self.running:
                self.call = Event(self.env)
                yield self.call
                continue
            parts = self.compose()
            self.gpu.keep(self.taken())
            for one in self.passes(parts):
                yield from self.gpu.run(one)
            for request, kind, _, count in parts:
                if kind == PROMPT:
                    request.fed += count
                if request.fed == request.prompt:
                    self.emit(request)

    def settled(self) -> Event:
        """Happens now, after everything else that does."""
        event = Event(self.env)
        at_last(self.env, event)
        return event

    def admit(self) -> None:
        """Requests get slots in the order in which they were sent."""
        most = self.server.kv_tokens
        while self.inbox and None in self.slots:
            r = self.inbox[0]
            if most and self.taken() + r.prompt + r.output > most:
                return
            self.inbox.popleft()
            self.slots[self.slots.index(None)] = r
            self.running.append(r)
            r.admitted = int(self.env.now)

    def taken(self) -> int:
        """Tokens of the KV cache that requests have."""
        return sum(x.prompt + x.output for x in self.running)

    def compose(self) -> list[Part]:
        """A token for each that generates, then prompts as far as the iteration goes."""
        in_slots = [r for r in self.slots if r is not None]
        order = in_slots if self.server.kind == "llama-server" else self.running
        parts = [(r, OUTPUT, len(r.tokens) - 1, 1) for r in order if r.tokens]
        left = self.server.batch - len(parts)
        for r in order:
            rest = r.prompt - r.fed
            before = [rest - b for b in self.server.breaks if b < rest]
            count = min([rest, left, *before])
            if not r.tokens and count:
                parts.append((r, PROMPT, r.fed, count))
                left -= count
        return parts

    def passes(self, parts: list[Part]) -> list[list[Part]]:
        """The iteration's tokens in passes of ``ubatch``."""
        tokens = [(r, kind, first + j) for r, kind, first, n in parts for j in range(n)]
        size = self.server.ubatch
        found = []
        for lo in range(0, len(tokens), size):
            one: list[Part] = []
            for r, kind, at in tokens[lo : lo + size]:
                if one and one[-1][:2] == (r, kind):
                    one[-1] = (*one[-1][:3], one[-1][3] + 1)
                else:
                    one.append((r, kind, at, 1))
            found.append(one)
        return found

    def emit(self, r: Request) -> None:
        """A token of ``r`` comes out, the last one frees its slot."""
        r.tokens.append(int(self.env.now))
        if len(r.tokens) == r.output:
            self.slots[self.slots.index(r)] = None
            self.running.remove(r)
            r.done.succeed()
