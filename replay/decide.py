"""A run's decisions, one forward pass at a time: which slot each expert is copied to and read from.

The expert cache asks the policy through the simulator's own compiled kernel, so its decisions and
counters are the simulator's by construction. The kernel reports the experts that come and go; a
mirror of its slot table here adds the slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from traces.errors import InputError
from uvmsim.core.bind import explain, is_refusal
from uvmsim.experts.bind import NoPrefetch, bind
from uvmsim.experts.pool import (
    BYPASSED,
    BYPASSED_HITS,
    COPIES,
    ERROR,
    EVICTIONS,
    HITS,
    ISSUED,
    USED,
    WAITS,
    WASTED,
    WAVES,
    Out,
    Stream,
    new_pool,
    new_tally,
)
from uvmsim.mechanisms.expert_cache import ExpertCache, context, with_future
from uvmsim.policies.base import EVENT, Eviction
from uvmsim.runs.job import Job, capacities, counters_without_pool
from uvmsim.runs.plan import DEMAND, WRITEBACK, Counters

Move = tuple[int, int]
"""An expert and a slot."""


@dataclass
class Wave:
    """Experts of one event that are resident together; all of it is known before it starts."""

    event: int
    lo: int
    hi: int
    """Accesses lo .. hi - 1."""
    slots: np.ndarray
    """int64 [hi - lo]: slot each access reads."""
    first: bool
    """The event's dense work comes before this wave."""
    leaving: list[Move] = field(default_factory=list)
    """Experts that lose their slot, before the copies below."""
    demand: list[Move] = field(default_factory=list)
    prefetch: list[Move] = field(default_factory=list)
    arriving: list[int] = field(default_factory=list)
    """Slots filled by a prefetch and read for the first time."""
    emptied: bool = False
    """The pool was emptied before this wave."""


class Decisions:
    """Waves of a job, and its counters once all steps were taken."""

    slots: int
    """Slots the waves use."""
    beside: int = 0
    """Slots after those, for experts that are served without getting one."""

    def __init__(self, job: Job):
        self.job = job
        self.notes: list[str] = []

    def steps(self) -> Iterator[list[Wave]]:
        """The waves of each forward pass, in order."""
        raise NotImplementedError

    def counters(self) -> Counters:
        raise NotImplementedError

    def _step_bounds(self) -> np.ndarray:
        """int64 [steps + 1]: first event of each step."""
        w = self.job.workload
        return np.searchsorted(w.event_step, np.arange(w.n_steps + 1)).astype(np.int64)


class AllResident(Decisions):
    """Every expert has a slot of its own, filled before the run. ``hits``: whether that counts."""

    def __init__(self, job: Job, hits: bool = True):
        super().__init__(job)
        self.slots = job.workload.n_layers * job.workload.n_experts
        self.hits = hits

    def steps(self) -> Iterator[list[Wave]]:
        w = self.job.workload
        bounds, lo = self._step_bounds(), w.event_lo.tolist()
        ids = w.ids.astype(np.int64)
        for s in range(w.n_steps):
            yield [
                Wave(i, lo[i], lo[i + 1], ids[lo[i] : lo[i + 1]], True)
                for i in range(bounds[s], bounds[s + 1])
            ]

    def counters(self) -> Counters:
        hit = np.full(len(self.job.workload.ids), self.hits, np.uint8)
        return counters_without_pool(self.job, hit)


class OneByOne(Decisions):
    """Naive offload: each expert is copied in for its call; one slot, so nothing overlaps."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.slots = 1

    def steps(self) -> Iterator[list[Wave]]:
        w = self.job.workload
        bounds, lo, ids = self._step_bounds(), w.event_lo.tolist(), w.ids.tolist()
        slot = np.zeros(1, np.int64)
        last = -1
        for s in range(w.n_steps):
            waves = []
            for i in range(bounds[s], bounds[s + 1]):
                if lo[i] == lo[i + 1]:
                    waves.append(Wave(i, lo[i], lo[i], slot[:0], True))
                for a in range(lo[i], lo[i + 1]):
                    leaving = [(last, 0)] if last >= 0 else []
                    waves.append(Wave(i, a, a + 1, slot, a == lo[i], leaving, [(ids[a], 0)]))
                    last = ids[a]
            yield waves
        if last >= 0:
            # The last expert leaves too; there is no wave after it to say so.
            yield [Wave(w.n_events - 1, len(ids), len(ids), slot[:0], False, [(last, 0)])]

    def counters(self) -> Counters:
        return counters_without_pool(self.job, np.zeros(len(self.job.workload.ids), np.uint8))


class CachePolicy(Decisions):
    """The expert cache of `uvmsim.mechanisms.expert_cache`, stepwise."""

    def __init__(self, job: Job):
        super().__init__(job)
        if job.policy is None:
            raise InputError("the expert cache needs a policy; give --policy")
        self.capacity, self.pool_of = capacities(job)
        self.slots = int(self.capacity.sum())
        w = job.workload
        self.tally = new_tally(w.n_layers, w.n_experts)
        self.hit = np.zeros(len(w.ids), np.uint8)
        self.by_event = type(job.policy.eviction).bypasses is not Eviction.bypasses
        """Whether events may go beside the pool; then the kernel is asked event by event."""
        self.beside = w.widest if self.by_event else 0
        self.resident = 0
        self._simulator = ExpertCache()
        ctx = context(job, self.capacity, self.pool_of)
        prefetch = job.policy.prefetch
        self._most = prefetch.limit(ctx) if prefetch else 0
        if self._most < 0:
            raise InputError(
                f"policy {job.policy.name}: its parameters ask for {self._most} experts a layer; "
                "give numbers from 0 up"
            )
        self._ctx, self._compiled = ctx, True

    def steps(self) -> Iterator[list[Wave]]:
        w, spec = self.job.workload, self.job.policy
        assert spec is not None
        bounds = self._step_bounds().tolist()
        segments = w.segments(self.job.reset)
        stream = Stream(
            w.ids, w.counts, w.event_lo, w.event_layer, w.event_step, w.event_tokens, w.row_lo,
            w.scores, w.step_phase,
        )  # fmt: skip
        kernel = self._kernel(stream, segments[0])
        at = 0
        for first, last in segments:
            es, ps = self._states(first, last)
            pool = new_pool(w.n_layers, w.n_experts, self.capacity, self.pool_of)
            mirror = _Mirror(self.capacity, self.pool_of, w.n_layers * w.n_experts)
            self.tally.n[WASTED] += self.tally.fresh.sum()
            self.tally.fresh[:] = 0
            fresh_pool = first > segments[0][0]
            while at < last:
                step = int(w.event_step[at])
                end = min(bounds[step + 1], last)
                waves: list[Wave] = []
                while at < end:
                    upto = at + 1 if self.by_event else end
                    at = self._ask(kernel, at, upto, stream, pool, es, ps, mirror, waves)
                self.resident = int((pool.slot_of >= 0).sum())
                waves[0].emptied = fresh_pool
                fresh_pool = False
                yield waves

    def counters(self) -> Counters:
        n = self.tally.n
        return Counters(
            accesses=len(self.job.workload.ids),
            hits=int(n[HITS]),
            evictions=int(n[EVICTIONS]),
            prefetch_issued=int(n[ISSUED]),
            prefetch_used=int(n[USED]),
            prefetch_wasted=int(n[WASTED] + self.tally.fresh.sum()),
            layer_hits=self.tally.layer_hits,
            layer_accesses=self.tally.layer_accesses,
            resident_at_end=self.resident,
            bypassed=int(n[BYPASSED]),
            bypassed_hits=int(n[BYPASSED_HITS]),
        )

    # ---- the kernel -----------------------------------------------------------------------------

    def _kernel(self, stream: Stream, segment: tuple[int, int]) -> Any:
        """The policy's kernel, compiled if it compiles: tried on no events at all."""
        spec = self.job.policy
        assert spec is not None
        w = self.job.workload
        es, ps = self._states(*segment)
        kernel = bind(spec, (es, ps)).run
        pool = new_pool(w.n_layers, w.n_experts, self.capacity, self.pool_of)
        try:
            kernel(0, 0, stream, pool, new_tally(w.n_layers, w.n_experts), es, ps,
                   self._room(1), True, self._most)  # fmt: skip
        except NumbaError as err:
            if not spec.files:
                raise
            if is_refusal(err):
                raise InputError(f"policy {spec.name}: {explain(err)}") from err
            self.notes.append(
                f"{spec.name} does not compile ({explain(err)}); run as plain Python, slowly"
            )
            return bind(spec, (es, ps), False).run
        return kernel

    def _states(self, first: int, last: int) -> tuple[Any, Any]:
        spec = self.job.policy
        assert spec is not None
        ctx, future = self._ctx, self._ctx
        if "next_use" in spec.needs:
            future = with_future(ctx, self.job.workload, first, last)
        try:
            es, ps = (
                policy.state(future if "next_use" in policy.needs else ctx)
                for policy in (spec.eviction, spec.prefetch or NoPrefetch())
            )
        except Exception as err:
            if not spec.files or isinstance(err, InputError):
                raise
            raise InputError(f"policy {spec.name}, state(): {type(err).__name__}: {err}") from err
        return es, ps

    def _room(self, events: int) -> Out:
        w, most = self.job.workload, self._most
        size = 2 * events * (w.widest + most) + events + 2
        return Out(
            np.empty(size, np.int32), np.empty(size, np.int64), np.empty(size, np.int64),
            np.empty(size, np.int64), np.empty(size, np.int32), np.empty(size, np.int8),
            np.empty(size, np.int64), np.empty(size, np.int64), self.hit,
            np.empty(most + self._ctx.n_total + 1, np.int32),
        )  # fmt: skip

    def _ask(
        self, kernel: Any, first: int, last: int, stream: Stream, pool: Any, es: Any, ps: Any,
        mirror: _Mirror, waves: list[Wave],
    ) -> int:  # fmt: skip
        """Serve events from ``first`` up to ``last``; appends their waves, returns how far it got."""
        spec, n = self.job.policy, self.tally.n
        assert spec is not None
        out = self._room(last - first)
        n[[COPIES, WAVES, WAITS]] = 0
        bypassed = int(n[BYPASSED])
        try:
            # With write-backs on, whatever the job says: they name the experts that leave.
            at = int(kernel(first, last, stream, pool, self.tally, es, ps, out, True, self._most))
        except NumbaError:
            raise
        except Exception as err:
            if not spec.files:
                raise
            raise InputError(
                f"policy {spec.name}, event {int(pool.clock[EVENT])}: {type(err).__name__}: {err}"
            ) from err
        if n[ERROR]:
            self._simulator._complain(self.job, self.tally, at)
        assert at > first, "there must be room for at least one event"
        mirror.follow(
            self.job.workload, out, int(n[WAVES]), waves, beside=int(n[BYPASSED]) > bypassed
        )
        return at


class _Mirror:
    """The kernel's slot table, rebuilt from what it reports."""

    def __init__(self, capacity: np.ndarray, pool_of: np.ndarray, total: int):
        self.next = np.concatenate(([0], np.cumsum(capacity)[:-1])).tolist()
        self.slots = int(capacity.sum())
        self.pool_of = pool_of.tolist()
        self.slot_of = np.full(total, -1, np.int64)
        self.fresh: set[int] = set()
        """Experts prefetched and not read yet."""

    def follow(self, w: Any, out: Out, n_waves: int, waves: list[Wave], beside: bool) -> None:
        events, his = out.wave_event[:n_waves].tolist(), out.wave_hi[:n_waves].tolist()
        copy_hi = out.wave_copy_hi[:n_waves].tolist()
        n_copies = copy_hi[-1] if copy_hi else 0
        experts, kinds = out.copy_expert[:n_copies].tolist(), out.copy_kind[:n_copies].tolist()
        done, before = 0, -1
        for event, hi, upto in zip(events, his, copy_hi, strict=True):
            lo = waves[-1].hi if event == before else int(w.event_lo[event])
            ids = w.ids[lo:hi]
            wave = Wave(event, lo, hi, ids, event != before)
            before = event
            free = -1
            side = self.slots
            for c in range(done, upto):
                e = experts[c]
                if kinds[c] == WRITEBACK:
                    free = int(self.slot_of[e])
                    self.slot_of[e] = -1
                    self.fresh.discard(e)
                    wave.leaving.append((e, free))
                elif beside:
                    wave.demand.append((e, side))
                    side += 1
                else:
                    if free < 0:
                        free = self.next[self.pool_of[e]]
                        self.next[self.pool_of[e]] = free + 1
                    (wave.demand if kinds[c] == DEMAND else wave.prefetch).append((e, free))
                    free = -1
            done = upto
            if self.fresh:
                for e in ids.tolist():
                    if e in self.fresh:
                        self.fresh.remove(e)
                        wave.arriving.append(int(self.slot_of[e]))
            for e, slot in wave.demand:
                if not beside:
                    self.slot_of[e] = slot
            slots = self.slot_of[ids]
            if beside:
                where = dict(wave.demand)
                pairs = zip(ids.tolist(), slots.tolist(), strict=True)
                slots = np.array([where.get(e, s) for e, s in pairs], np.int64)
            wave.slots = slots
            for e, slot in wave.prefetch:
                self.slot_of[e] = slot
                self.fresh.add(e)
            waves.append(wave)
