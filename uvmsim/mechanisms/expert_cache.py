"""A pool of expert slots in device memory, filled on demand and by prefetch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from numba.core.errors import NumbaError

from traces.errors import InputError
from uvmsim.core.bind import explain, is_refusal
from uvmsim.experts.bind import NoPrefetch, bind
from uvmsim.experts.pool import (
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
from uvmsim.experts.pricing import price
from uvmsim.policies.base import EVENT, Context, Future
from uvmsim.policies.profile import learn
from uvmsim.runs.job import Job, Mechanism, capacities
from uvmsim.runs.plan import Counters, Plan
from uvmsim.workload import Workload, next_uses

BLOCK = 1 << 20
"""Copies a call of the kernel has room for; bounds scratch memory, changes no result."""


class ExpertCache(Mechanism):
    """Slots for experts in VRAM; a miss copies the expert over the link, a policy says who leaves."""

    name: ClassVar[str] = "expert-cache"
    takes_policy: ClassVar[bool] = True

    def plan(self, job: Job) -> Plan:
        w = job.workload
        capacity, pool_of = capacities(job)
        parts, tally, resident = self._decide(job, capacity, pool_of)
        layer = np.concatenate([p.copy_expert for p in parts]) // w.n_experts
        wave_hi = np.concatenate([p.wave_hi for p in parts])
        unpriced = np.zeros(len(wave_hi), np.int64)
        n = tally.n
        plan = Plan(
            wave_event=np.concatenate([p.wave_event for p in parts]),
            wave_hi=wave_hi,
            pre_ns=unpriced,
            cpu_ns=unpriced,
            compute_ns=unpriced,
            wave_copy_hi=np.concatenate([p.wave_copy_hi for p in parts]),
            wave_wait_hi=np.concatenate([p.wave_wait_hi for p in parts]),
            copy_bytes=np.asarray(job.model.expert_bytes, np.int64)[layer],
            copy_kind=np.concatenate([p.copy_kind for p in parts]),
            copy_after=np.concatenate([p.copy_after for p in parts]),
            copy_ns=np.zeros(len(layer), np.int64),
            waits=np.concatenate([p.waits for p in parts]),
            step_wave_hi=np.zeros(0, np.int64),
            hit=parts[0].hit,
            counters=Counters(
                accesses=len(w.ids),
                hits=int(n[HITS]),
                evictions=int(n[EVICTIONS]),
                prefetch_issued=int(n[ISSUED]),
                prefetch_used=int(n[USED]),
                prefetch_wasted=int(n[WASTED] + tally.fresh.sum()),
                layer_hits=tally.layer_hits,
                layer_accesses=tally.layer_accesses,
                resident_at_end=resident,
                bypassed=int(n[BYPASSED]),
                bypassed_hits=int(n[BYPASSED_HITS]),
            ),
            slots=int(capacity.sum()),
            notes=self.notes,
        )
        return price(plan, job)

    def count(self, job: Job, capacity: np.ndarray, pool_of: np.ndarray) -> tuple[int, Tally]:
        """Hits alone, without the times of a plan."""
        _, tally, _ = self._decide(job, capacity, pool_of)
        return int(tally.n[HITS]), tally

    def _decide(
        self, job: Job, capacity: np.ndarray, pool_of: np.ndarray
    ) -> tuple[list[Out], Tally, int]:
        """Run the policy over all events; the parts of the plan, the counters, who is resident."""
        assert job.policy is not None
        try:
            return self._run(job, capacity, pool_of, compiled=True)
        except NumbaError as err:
            if not job.policy.files:
                raise
            if is_refusal(err):
                raise InputError(f"policy {job.policy.name}: {explain(err)}") from err
            self.notes.append(
                f"{job.policy.name} does not compile ({explain(err)}); run as plain Python, slowly"
            )
            return self._run(job, capacity, pool_of, compiled=False)

    def _run(
        self, job: Job, capacity: np.ndarray, pool_of: np.ndarray, compiled: bool
    ) -> tuple[list[Out], Tally, int]:
        w, spec = job.workload, job.policy
        assert spec is not None
        prefetch = spec.prefetch or NoPrefetch()
        ctx = context(job, capacity, pool_of)
        most = prefetch.limit(ctx) if spec.prefetch else 0
        if most < 0:
            raise InputError(
                f"policy {spec.name}: its parameters ask for {most} experts a layer; "
                "give numbers from 0 up"
            )
        stream = Stream(
            w.ids, w.counts, w.event_lo, w.event_layer, w.event_step, w.event_tokens, w.row_lo,
            w.scores, w.step_phase,
        )  # fmt: skip
        tally = new_tally(w.n_layers, w.n_experts)
        hit = np.zeros(len(w.ids), np.uint8)
        size = max(min(BLOCK, 2 * len(w.ids) + 2 * most * w.n_events), 2 * (w.widest + most)) + 2
        parts: list[Out] = []
        resident = 0
        base = np.zeros(3, np.int64)
        for first, last in w.segments(job.reset):
            seg = with_future(ctx, w, first, last) if "next_use" in spec.needs else ctx
            # Of a pair, only the policy that declares the need sees the future.
            try:
                es, ps = (
                    policy.state(seg if "next_use" in policy.needs else ctx)
                    for policy in (spec.eviction, prefetch)
                )
            except Exception as err:
                if not spec.files or isinstance(err, InputError):
                    raise
                raise InputError(
                    f"policy {spec.name}, state(): {type(err).__name__}: {err}"
                ) from err
            kernel = bind(spec, (es, ps), compiled)
            pool = new_pool(w.n_layers, w.n_experts, capacity, pool_of)
            # What was prefetched but unused when the pool is emptied was wasted.
            tally.n[WASTED] += tally.fresh.sum()
            tally.fresh[:] = 0
            at = first
            while at < last:
                # A prefetcher that writes past its limit must not write past the array: room for all.
                out = _room(size, hit, most + ctx.n_total)
                tally.n[[COPIES, WAVES, WAITS]] = 0
                tally.n[BASE] = base[0]
                before = at
                try:
                    at = kernel.run(
                        at, last, stream, pool, tally, es, ps, out, job.write_back, most
                    )
                except NumbaError:
                    raise
                except Exception as err:
                    if not spec.files:
                        raise
                    raise InputError(
                        f"policy {spec.name}, event {int(pool.clock[EVENT])}: "
                        f"{type(err).__name__}: {err}"
                    ) from err
                self._complain(job, tally, at)
                assert at > before, "a block must hold at least one event"
                parts.append(_trim(out, tally, base))
                base += tally.n[[COPIES, WAVES, WAITS]]
            resident = int((pool.slot_of >= 0).sum())
            _check(pool)
        return parts, tally, resident

    def _complain(self, job: Job, tally: Tally, event: int) -> None:
        code, culprit = int(tally.n[ERROR]), int(tally.n[CULPRIT])
        name = job.policy.name if job.policy else ""
        if code == BAD_VICTIM:
            raise InputError(
                f"policy {name}, event {event}: victim() returned expert {culprit}, which is not a "
                "resident, unused expert of that pool; skip experts that are in_use()"
            )
        if code == BAD_PREFETCH:
            raise InputError(
                f"policy {name}, event {event}: prefetch() asked for {culprit}, outside its limit "
                "or the model's experts"
            )
        if code:
            raise InputError(
                f"policy {name}, event {event}: victim() found nobody to evict from a full pool"
            )


def context(job: Job, capacity: np.ndarray, pool_of: np.ndarray) -> Context:
    """What the policies of a job may know at the start."""
    w = job.workload
    counts, transitions = learn(job.profile) if job.profile else (None, None)
    return Context(
        n_total=w.n_layers * w.n_experts,
        n_layers=w.n_layers,
        n_experts=w.n_experts,
        top_k=w.top_k,
        capacity=capacity,
        pool_of=pool_of,
        expert_bytes=np.asarray(job.model.expert_bytes, np.int64),
        seed=job.seed,
        profile_counts=counts,
        profile_transitions=transitions,
    )


def with_future(ctx: Context, w: Workload, first: int, last: int) -> Context:
    """The context of events ``first`` .. ``last - 1`` with their future: for declared oracles only."""
    upcoming = np.empty(len(w.ids), np.int64)
    first_use = np.empty(ctx.n_total, np.int64)
    next_uses(w.ids, ctx.n_total, w.event_lo[first], w.event_lo[last], upcoming, first_use)
    future = Future(
        upcoming, first_use, w.ids,
        lambda: np.repeat(w.event_step, np.diff(w.event_lo)), lambda: w.event_lo[: last + 1],
    )  # fmt: skip
    return dataclasses.replace(ctx, future=future)


def _room(size: int, hit: np.ndarray, most: int) -> Out:
    return Out(
        np.empty(size, np.int32), np.empty(size, np.int64), np.empty(size, np.int64),
        np.empty(size, np.int64), np.empty(size, np.int32), np.empty(size, np.int8),
        np.empty(size, np.int64), np.empty(size, np.int64), hit, np.empty(most + 1, np.int32),
    )  # fmt: skip


def _trim(out: Out, tally: Tally, base: np.ndarray) -> Out:
    """The filled part of a block, its wave bounds counted from the start of the run."""
    copies, waves, waits = (int(tally.n[i]) for i in (COPIES, WAVES, WAITS))
    return Out(
        out.wave_event[:waves], out.wave_hi[:waves],
        out.wave_copy_hi[:waves] + base[0], out.wave_wait_hi[:waves] + base[2],
        out.copy_expert[:copies], out.copy_kind[:copies],
        out.copy_after[:copies], out.waits[:waits], out.hit, out.wanted,
    )  # fmt: skip


def _check(pool) -> None:
    """Invariants of the pool after a real run, not only in tests."""
    resident = np.flatnonzero(pool.slot_of >= 0)
    if not np.array_equal(np.sort(pool.slot_of[resident]), np.flatnonzero(pool.expert_in >= 0)):
        raise AssertionError("two experts share a slot, or a slot lost its expert")
    if (pool.expert_in[pool.slot_of[resident]] != resident).any():
        raise AssertionError("slot table and expert table disagree")
