"""The decisions of an expert pool: one object that serves forward passes, whoever asks.

The simulator asks for all of them at once and puts a clock to them; the replay engine asks for one pass
at a time and carries it out; a live engine would ask for a layer. All drive the same compiled kernel
over the same state, so what they do and count is the same by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba.core.errors import NumbaError

from traces.errors import InputError
from uvmsim.core.bind import Bound, explain, is_refusal
from uvmsim.experts.bind import NoPrefetch, bind
from uvmsim.experts.knowledge import context, with_future
from uvmsim.experts.misses import Misses, Split, clear, new_misses, no_split
from uvmsim.experts.pool import (
    AHEAD,
    BAD_ACTION,
    BAD_PREFETCH,
    BAD_VICTIM,
    BASE,
    BYPASSED,
    BYPASSED_HITS,
    COPIES,
    CULPRIT,
    ERROR,
    EVICTIONS,
    HITS,
    ISSUED,
    LIMIT,
    NO_SCRATCH,
    USED,
    WAITS,
    WASTED,
    WAVES,
    Out,
    Stream,
    Tally,
    new_pool,
    new_tally,
)
from uvmsim.policies.base import (
    ACTIONS,
    CPU,
    CPU_BEHIND,
    EVENT,
    INSERT,
    OFFER,
    Eviction,
    Pool,
)
from uvmsim.policies.registry import PolicySpec, chooses
from uvmsim.policies.saved import Saved, learning, saved_by
from uvmsim.policies.window import state_of
from uvmsim.runs.job import Job, capacities, scratch_places
from uvmsim.runs.plan import Counters

ROOM = 1 << 20
"""Copies one call of the kernel has room for; bounds scratch memory, changes no result."""


@dataclass(frozen=True)
class Served:
    """What a stretch of events led to: W waves, C copies, X waits. Numbers of copies and accesses count
    from the start of the run, bounds of waves (``*_hi``) too."""

    first: int
    last: int
    """Events first .. last - 1."""
    emptied: bool
    """The pool was emptied before them."""
    copies_before: int
    waits_before: int
    wave_event: np.ndarray
    """int32 [W]"""
    wave_hi: np.ndarray
    """int64 [W]: accesses served up to and including a wave."""
    wave_copy_hi: np.ndarray
    wave_wait_hi: np.ndarray
    copy_expert: np.ndarray
    """int32 [C]"""
    copy_kind: np.ndarray
    """int8 [C]: DEMAND, PREFETCH or WRITEBACK."""
    copy_after: np.ndarray
    """int64 [C]: copy that must be done first, -1 if none."""
    copy_slot: np.ndarray
    """int32 [C]: slot that is filled, or emptied by a write-back."""
    copy_victim: np.ndarray
    """int32 [C]: expert that lost the slot for it, -1 if none."""
    waits: np.ndarray
    """int64 [X]: prefetch copies read for the first time."""
    wait_slot: np.ndarray
    """int32 [X]: the slots they fill."""


class Opened(NamedTuple):
    """What `uvmsim.experts.pool.plan_events` is called with, beside the events."""

    kernel: Bound
    stream: Stream
    pool: Pool
    tally: Tally
    states: tuple[Any, Any]
    out: Out
    most: int
    misses: Misses


class Decisions:
    """A job's policy at work. `serve` goes on from where it stopped; `counters` says what happened so
    far.

    ``slot`` int32 [A], ``hit`` uint8 [A] and ``action`` uint8 [A] (`uvmsim.policies.base.ACTIONS`) are
    filled as accesses are served. A slot is here a place in device memory: ``slots`` of them for who is
    resident, ``beside`` more (where there are scratch places, any may be one); -1 where an access reads
    none, since the CPU computes it.
    """

    def __init__(self, job: Job, split: Split | None = None):
        """``split``: the CPU takes its share of the misses. Raises `InputError` where the policy cannot
        be asked, or the pool is too small."""
        if not isinstance(job.policy, PolicySpec):
            raise InputError("the expert cache needs a policy that decides about experts")
        capacity, pool_of = capacities(job)
        self.job, self.spec = job, job.policy
        self.capacity, self.pool_of = capacity, pool_of
        self.slots = int(capacity.sum())
        w = job.workload
        self.hit = np.zeros(len(w.ids), np.uint8)
        self.slot = np.full(len(w.ids), -1, np.int32)
        self.scratch = scratch_places(job)
        """Places in which experts are read that are not resident."""
        self._spare, self._splits = int(self.scratch > 0), split is not None
        bypasses = type(self.spec.eviction).bypasses is not Eviction.bypasses
        self.beside = self.scratch + (w.widest if bypasses else 0)
        """Places beyond ``slots`` that a run may need."""
        self._misses = new_misses(
            len(w.ids) if chooses(self.spec) or self._splits else 0,
            int((capacity + self._spare).sum()), self.slots + self.scratch, self.scratch,
            split or no_split(),
        )  # fmt: skip
        self.action = self._misses.action
        self.notes: list[str] = []
        self.at = 0
        """The next event."""
        self._context = context(job, capacity + self._spare, pool_of, self._spare)
        prefetch = self.spec.prefetch
        self._most = prefetch.limit(self._context) if prefetch else 0
        if self._most < 0:
            raise InputError(
                f"policy {self.spec.name}: its parameters ask for {self._most} experts a layer; "
                "give numbers from 0 up"
            )
        self._stream = Stream(
            w.ids, w.counts, w.event_lo, w.event_layer, w.event_step, w.event_tokens, w.row_lo,
            w.scores, w.row_experts, w.row_seq, w.row_pos, w.step_phase, w.row_guesses,
            w.row_guess_scores,
        )  # fmt: skip
        self._tally = new_tally(w.n_layers, w.n_experts)
        self._segments = iter(w.segments(job.reset))
        self._end = 0
        """Where the pool is emptied next."""
        self._copies = self._waits = 0
        self._resident_before = 0
        """Experts that were resident when the pool was emptied, all times together."""
        self._kernel: Bound | None = None
        self._pool: Pool
        self._states: tuple[Any, Any]

    # ---- serving --------------------------------------------------------------------------------

    def serve(self, upto: int | None = None) -> Served:
        """Serve the next events, up to event ``upto`` (None: all) or to where the pool is emptied, as
        many as `ROOM` copies allow but at least one. Raises `InputError` where the policy is at
        fault."""
        w, n = self.job.workload, self._tally.n
        first, emptied = self.at, False
        if first >= self._end:
            emptied = first > 0
            self._begin(*next(self._segments))
        last = self._end if upto is None else min(upto, self._end)
        out = self._room(first, last)
        n[[COPIES, WAVES, WAITS]] = 0
        n[BASE] = self._copies
        at = self._ask(first, last, out)
        if at <= first:
            raise AssertionError("there must be room for at least one event")
        self.at = at
        copies, waves, waits = (int(n[i]) for i in (COPIES, WAVES, WAITS))
        served = Served(
            first, at, emptied, self._copies, self._waits, out.wave_event[:waves],
            out.wave_hi[:waves], out.wave_copy_hi[:waves] + self._copies,
            out.wave_wait_hi[:waves] + self._waits, out.copy_expert[:copies],
            out.copy_kind[:copies], out.copy_after[:copies], out.copy_slot[:copies],
            out.copy_victim[:copies], out.waits[:waits], out.wait_slot[:waits],
        )  # fmt: skip
        self._copies, self._waits = self._copies + copies, self._waits + waits
        if at == self._end or at == w.n_events:
            self._check()
        return served

    def opened(self, accesses: int) -> Opened:
        """The kernel and what it works on, for a loop that calls it itself: event by event of the job's
        workload, whose arrays that loop fills. ``accesses``: at most, of one call for all events."""
        events = self.job.workload.n_events
        self._begin(0, events)
        out = self._out(2 * accesses + 2 * self._most * events + 2)
        assert self._kernel is not None
        return Opened(
            self._kernel, self._stream, self._pool, self._tally, self._states, out, self._most,
            self._misses,
        )  # fmt: skip

    def serve_all(self) -> list[Served]:
        """Everything that is left."""
        served = []
        while self.at < self.job.workload.n_events:
            served.append(self.serve())
        return served

    def limit(self, slots: int) -> None:
        """From the next event on a single pool uses no more than ``slots``; 0: all it has."""
        self._tally.n[LIMIT] = slots

    def counters(self) -> Counters:
        """Of the events served so far; all accesses of the run count as asked for."""
        n = self._tally.n
        return Counters(
            accesses=len(self.job.workload.ids),
            hits=int(n[HITS]),
            evictions=int(n[EVICTIONS]),
            prefetch_issued=int(n[ISSUED]),
            prefetch_used=int(n[USED]),
            prefetch_wasted=int(n[WASTED] + (self._tally.fresh == AHEAD).sum()),
            layer_hits=self._tally.layer_hits,
            layer_accesses=self._tally.layer_accesses,
            resident_at_end=self._resident() if self.at else 0,
            bypassed=int(n[BYPASSED]),
            bypassed_hits=int(n[BYPASSED_HITS]),
            misses_by=self._misses_by(),
        )

    def saved(self) -> list[Saved]:
        """What the policy has learned so far: copies, one a part of it that learns."""
        parts = [*zip((self.spec.eviction, self.spec.prefetch), self._states, strict=True)]
        learns = learning(self.spec)
        return [saved_by(p, s, self.slots) for p, s in parts if p is not None and p in learns]

    def on_cpu(self) -> np.ndarray | None:
        """bool [A]: misses that the CPU computes; None where there are none."""
        mine = self.action >= CPU
        return mine if mine.any() else None

    def _misses_by(self) -> dict[str, int]:
        """Misses by action, where there is a choice."""
        if not len(self.action):
            return {}
        return dict(zip(ACTIONS, self._misses.by.tolist(), strict=True))

    # ---- the kernel -----------------------------------------------------------------------------

    def _begin(self, first: int, last: int) -> None:
        """An empty pool and new states for events ``first`` .. ``last - 1``."""
        w, tally = self.job.workload, self._tally
        if self.at:
            self._resident_before += self._resident()
        # What was prefetched but unused when the pool is emptied was wasted.
        tally.n[WASTED] += (tally.fresh == AHEAD).sum()
        tally.fresh[:] = 0
        clear(self._misses)
        self._end = last
        self._states = self._new_states(first, last)
        self._pool = new_pool(w.n_layers, w.n_experts, self.capacity + self._spare, self.pool_of)
        if self._kernel is None:
            self._kernel = self._compiled()

    def _compiled(self) -> Bound:
        """The policy's kernel, in plain Python if it does not compile: tried on no events at all."""
        how = {"spare": bool(self._spare), "splits": self._splits}
        kernel = bind(self.spec, self._states, **how)
        try:
            self._call(kernel, 0, 0, self._room(0, 0))
        except NumbaError as err:
            if not self.spec.files:
                raise
            if is_refusal(err):
                raise InputError(f"policy {self.spec.name}: {explain(err)}") from err
            self.notes.append(
                f"{self.spec.name} does not compile ({explain(err)}); run as plain Python, slowly"
            )
            return bind(self.spec, self._states, compiled=False, **how)
        if kernel.note:
            self.notes.append(f"{self.spec.name} is {kernel.note}")
        return kernel

    def _call(self, kernel: Bound, first: int, last: int, out: Out) -> int:
        es, ps = self._states
        return int(
            kernel.run(
                first, last, self._stream, self._pool, self._tally, es, ps, out,
                self.job.write_back, self._most, self._misses,
            )
        )  # fmt: skip

    def _ask(self, first: int, last: int, out: Out) -> int:
        assert self._kernel is not None
        try:
            at = self._call(self._kernel, first, last, out)
        except NumbaError:
            raise
        except Exception as err:
            if not self.spec.files:
                raise
            raise InputError(
                f"policy {self.spec.name}, event {int(self._pool.clock[EVENT])}: "
                f"{type(err).__name__}: {err}"
            ) from err
        self.complain(at)
        return at

    def _new_states(self, first: int, last: int) -> tuple[Any, Any]:
        """Of eviction and prefetch; of the two, only one that declares the need sees the future."""
        ctx, seen = self._context, self._context
        if "next_use" in self.spec.needs:
            seen = with_future(ctx, self.job.workload, first, last)
        try:
            evicts, fetches = self.spec.eviction, self.spec.prefetch or NoPrefetch()
            es = evicts.state(seen if "next_use" in evicts.needs else ctx)
            ps = state_of(fetches, seen if "next_use" in fetches.needs else ctx)
        except Exception as err:
            if not self.spec.files or isinstance(err, InputError):
                raise
            raise InputError(
                f"policy {self.spec.name}, state(): {type(err).__name__}: {err}"
            ) from err
        if self.job.state:
            for policy, state in ((self.spec.eviction, es), (self.spec.prefetch, ps)):
                if policy:
                    self.job.state.give(policy, state, self.slots)
        return es, ps

    def _room(self, first: int, last: int) -> Out:
        w = self.job.workload
        accesses, widest = int(w.event_lo[last] - w.event_lo[first]), w.widest
        needed = 2 * accesses + 2 * self._most * (last - first)
        return self._out(max(min(ROOM, needed), 2 * (widest + self._most)) + 2)

    def _out(self, size: int) -> Out:
        most = self._most
        i32, i64 = np.int32, np.int64
        # A prefetcher that writes past its limit must not write past the array: room for all.
        wanted = np.empty(most + self._context.n_total + 1, i32)
        return Out(
            np.empty(size, i32), np.empty(size, i64), np.empty(size, i64), np.empty(size, i64),
            np.empty(size, i32), np.empty(size, np.int8), np.empty(size, i64),
            np.empty(size, i32), np.empty(size, i32), np.empty(size, i64), np.empty(size, i32),
            self.hit, self.slot, wanted,
        )  # fmt: skip

    # ---- checks ---------------------------------------------------------------------------------

    def complain(self, event: int) -> None:
        """Raise `InputError` where the kernel found the policy at fault."""
        code, culprit = (int(self._tally.n[i]) for i in (ERROR, CULPRIT))
        if not code:
            return
        what = {
            BAD_VICTIM: f"victim() returned expert {culprit}, which is not a resident, unused expert "
            "of that pool; skip experts that are in_use()",
            BAD_ACTION: f"on_miss() returned {culprit}; give one of INSERT, OFFER, SCRATCH, CPU, "
            "CPU_BEHIND of uvmsim.policies.base",
            NO_SCRATCH: "on_miss() asks for a scratch place, of which there is none; give `scratch` 1",
            BAD_PREFETCH: f"prefetch() asked for {culprit}, outside its limit or the model's experts",
        }.get(code, "victim() found nobody to evict from a full pool")
        raise InputError(f"policy {self.spec.name}, event {event}: {what}")

    def _resident(self) -> int:
        return int((self._pool.slot_of >= 0).sum())

    def _check(self) -> None:
        """Invariants of the pool (INVARIANTS.md 1 and 2) after real runs, not only in tests."""
        pool, n = self._pool, self._tally.n
        resident = np.flatnonzero(pool.slot_of >= 0)
        if not np.array_equal(np.sort(pool.slot_of[resident]), np.flatnonzero(pool.expert_in >= 0)):
            raise AssertionError("two experts share a slot, or a slot lost its expert")
        if (pool.expert_in[pool.slot_of[resident]] != resident).any():
            raise AssertionError("slot table and expert table disagree")
        misses = int(self.job.workload.event_lo[self.at] - n[HITS])
        beside = int(n[BYPASSED] - n[BYPASSED_HITS])
        by = self._misses.by
        if len(self.action):
            kept = [INSERT, OFFER, CPU_BEHIND]
            if by.sum() != misses - beside:
                raise AssertionError("misses by action are not the misses")
            beside += int(by.sum() - by[kept].sum())
        if (pool.used > self.capacity).any():
            raise AssertionError("a pool holds more than it may")
        came = misses - beside + int(n[ISSUED])
        if came - int(n[EVICTIONS]) != self._resident_before + len(resident):
            raise AssertionError("copies in less evictions are not the experts resident")
