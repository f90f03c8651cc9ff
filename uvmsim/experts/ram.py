"""Host memory above a disk: which copies find their expert there, and what must be read for the others.

`Ram` and `PageCache` are asked for a stretch of copies at a time, in the plan's order, as `Decisions`
is asked for events; the simulator asks for all, the replay for a forward pass. docs/tiers.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.core.units import format_bytes
from uvmsim.experts.bind import bind_ram
from uvmsim.experts.page_cache import new_pages, touch
from uvmsim.experts.ram_kernel import CULPRIT, reads_of
from uvmsim.machine.tier import MMAP, PAGE, WARM
from uvmsim.policies.base import Context, Future, Pool
from uvmsim.policies.registry import PolicySpec, chooses, parse
from uvmsim.runs.job import Job
from uvmsim.runs.plan import PREFETCH, WRITEBACK
from uvmsim.runs.reads import Reads
from uvmsim.workload import next_uses


@dataclass(frozen=True)
class Fetched:
    """What a stretch of C copies to the device led to: R reads. Numbers count from the run's start."""

    first: int
    """Number of the first read."""
    of_copy: np.ndarray
    """int64 [C]: see `uvmsim.runs.reads.Reads`, as all below."""
    copy: np.ndarray
    after: np.ndarray
    bytes: np.ndarray
    slot: np.ndarray
    """int32 [R]: RAM slot that a read fills."""
    copy_slot: np.ndarray
    """int32 [C]: RAM slot that a copy moves; -1 where there are none."""


def ram_slots(job: Job) -> int:
    """Experts that host memory holds, of the largest size; no more than there are. `InputError` where
    that is none."""
    assert job.tier is not None
    most = max(job.model.expert_bytes)
    slots = job.tier.ram_bytes // most
    if slots < 1:
        raise InputError(
            f"{format_bytes(job.tier.ram_bytes)}: does not hold one expert of {format_bytes(most)}",
            argument="ram",
        )
    return min(slots, job.workload.n_layers * job.workload.n_experts)


def check_tier(job: Job) -> None:
    """`InputError` for what does not go with a disk."""
    if job.write_back:
        raise InputError(
            ": experts that come from a disk are never written back; leave it out",
            argument="write_back",
        )
    if job.prefetch_pieces:
        raise InputError(
            f"{job.prefetch_pieces}: prefetches from a disk move whole; leave it out",
            argument="prefetch_pieces",
        )


def policy_of(job: Job) -> PolicySpec:
    """Host memory's policy. `InputError` where it cannot decide about a plain sequence of experts."""
    spec = job.tier_policy or parse("lru")
    wrong = ""
    if spec.prefetch:
        wrong = "host memory has no prefetcher of its own; name the first part only"
    elif chooses(spec):
        wrong = "it chooses what becomes of a miss, and what is read always enters host memory"
    elif more := spec.eviction.needs - {"next_use"}:
        wrong = f"it needs {', '.join(sorted(more))}, which copies do not have"
    if wrong:
        raise InputError(f"{spec.name}: {wrong}", argument="tier_policy")
    return spec


class Ram:
    """Slots for experts in host memory, filled by reads of whole experts."""

    def __init__(self, job: Job, stream: np.ndarray | None = None):
        """``stream``: all experts that will be copied, for a policy that sees the future; what is asked
        of `serve` must be that. Raises `InputError`."""
        assert job.tier is not None
        w, tier = job.workload, job.tier
        self.spec, self.slots = policy_of(job), ram_slots(job)
        n = w.n_layers * w.n_experts
        self.sizes = np.repeat(np.asarray(job.model.expert_bytes, np.int64), w.n_experts)
        self._pool = _pool(n, self.slots, w.n_experts, w.n_layers)
        ctx = Context(
            n_total=n, n_layers=w.n_layers, n_experts=w.n_experts, top_k=1,
            capacity=np.array([self.slots], np.int64), pool_of=np.zeros(n, np.int32),
            expert_bytes=np.asarray(job.model.expert_bytes, np.int64), seed=job.seed,
            prefetches=False,
            cost_ns=tier.latency_ns + tier.read_ns(np.asarray(job.model.expert_bytes)),
        )  # fmt: skip
        self.held = np.arange(self.slots if tier.start == WARM else 0, dtype=np.int32)
        """Experts that host memory holds before the first token: expert i in slot i."""
        if "next_use" in self.spec.needs:
            if stream is None:
                raise InputError(
                    f"{self.spec.name}: sees the future, which is not known here", "tier_policy"
                )
            ctx = _with_future(ctx, np.concatenate((self.held, stream)).astype(np.int32))
        self._state = self.spec.eviction.state(ctx)
        self._brought = np.full(n, -1, np.int64)
        self._last = np.full((self.slots, 2), -1, np.int64)
        self._accesses = self._reads = 0
        self.lookups = self.hits = 0
        self._kernel: Any = None
        if len(self.held):
            self._ask(self.held)

    def serve(self, copy: np.ndarray, ids: np.ndarray, prefetch: np.ndarray) -> Fetched:
        """The next copies to the device: their numbers (int64), experts, and which are prefetches."""
        ids = np.ascontiguousarray(ids, np.int32)
        hit, slot = self._ask(ids)
        n = len(ids)
        of_copy, asked, after = (
            np.empty(n, np.int64),
            np.empty(n, np.int64),
            np.empty((n, 2), np.int64),
        )
        reads = reads_of(
            np.ascontiguousarray(copy, np.int64), ids, np.ascontiguousarray(prefetch, np.uint8), hit,
            slot, self._brought, self._last, of_copy, asked, after, self._reads,
        )  # fmt: skip
        first, missed = self._reads, hit == 0
        self._reads += reads
        self.lookups += n
        self.hits += int(hit.sum())
        return Fetched(
            first,
            of_copy,
            asked[:reads],
            after[:reads],
            self.sizes[ids[missed]],
            slot[missed],
            slot,
        )

    def _ask(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hit, slot = np.zeros(len(ids), np.uint8), np.full(len(ids), -1, np.int32)
        out = np.zeros(1, np.int64)
        if self._kernel is None:
            self._kernel = bind_ram(type(self.spec.eviction), (self._state,))
        served = self._kernel.run(
            ids, self._accesses, self._pool, self._state, np.ones(1, np.int32),
            np.zeros((0, 0), np.float32), np.zeros((0, 0, 0), np.int16),
            np.zeros((0, 0, 0), np.float32), np.zeros((1, 1), np.int32), np.zeros(1, np.int32),
            hit, slot, out,
        )  # fmt: skip
        if served < len(ids):
            raise InputError(
                f"{self.spec.name}: victim() returned {out[CULPRIT]}, which is not in host memory",
                argument="tier_policy",
            )
        self._accesses += len(ids)
        return hit, slot


class PageCache:
    """The page cache above a mapped file: no slots, and the kernel decides."""

    slots = 0

    def __init__(self, job: Job):
        """Raises `InputError`."""
        assert job.tier is not None
        if job.tier_policy is not None:
            raise InputError(
                f"{job.tier_policy.name}: the kernel's page cache decides where a file is mapped; "
                "leave it out, or say mode=direct",
                argument="tier_policy",
            )
        ram_slots(job)
        w, tier = job.workload, job.tier
        nbytes = np.repeat(np.asarray(job.model.expert_bytes, np.int64), w.n_experts)
        self.pages = -(-nbytes // PAGE)
        total = tier.ram_bytes // PAGE
        if total < self.pages.max():
            raise InputError(f"{tier.ram_bytes:,} bytes: hold no expert in whole pages", "ram")
        self.cache = new_pages(len(nbytes), min(total, int(self.pages.sum())))
        self._brought = np.full(len(nbytes), -1, np.int64)
        self._reads = 0
        self.lookups = self.hits = 0
        if tier.start == WARM:
            fits = int(np.searchsorted(np.cumsum(self.pages), self.cache.n[0], side="right"))
            self._touch(np.arange(fits, dtype=np.int32))

    def serve(self, copy: np.ndarray, ids: np.ndarray, prefetch: np.ndarray) -> Fetched:
        """As `Ram.serve`; a read brings the pages that are missing."""
        missing = self._touch(np.ascontiguousarray(ids, np.int32))
        missed = missing > 0
        reads = int(missed.sum())
        of_copy = np.empty(len(ids), np.int64)
        for j, e in enumerate(ids.tolist()):
            if missed[j]:
                self._brought[e] = self._reads
                self._reads += 1
            of_copy[j] = self._brought[e]
        self.lookups += len(ids)
        self.hits += len(ids) - reads
        none = np.full(reads, -1, np.int32)
        return Fetched(
            self._reads - reads, of_copy, np.asarray(copy, np.int64)[missed],
            np.full((reads, 2), -1, np.int64), missing[missed] * PAGE, none,
            np.full(len(ids), -1, np.int32),
        )  # fmt: skip

    def _touch(self, ids: np.ndarray) -> np.ndarray:
        missing = np.zeros(len(ids), np.int64)
        touch(ids, self.pages, self.cache, missing)
        return missing


def read_plan(job: Job, expert: np.ndarray, kind: np.ndarray) -> Reads:
    """The reads of a whole plan, whose copies are of ``expert`` int [C] and ``kind`` int8 [C]."""
    tier = job.tier
    assert tier is not None
    check_tier(job)
    down = np.flatnonzero(kind != WRITEBACK)
    ram: Ram | PageCache
    ram = PageCache(job) if tier.mode == MMAP else Ram(job, expert[down])
    f = ram.serve(down, expert[down], kind[down] == PREFETCH)
    of_copy = np.full(len(kind), -1, np.int64)
    of_copy[down] = f.of_copy
    return Reads(
        of_copy, f.copy, f.bytes, tier.read_ns(f.bytes), f.after, f.slot, tier.latency_ns,
        tier.side_by_side, ram.lookups, ram.hits, ram.slots,
        "page cache" if tier.mode == MMAP else policy_of(job).name, tier.to_json(),
    )  # fmt: skip


def _pool(n: int, slots: int, n_experts: int, n_layers: int) -> Pool:
    return Pool(
        np.full(n, -1, np.int32), np.full(slots, -1, np.int32), np.zeros(n, np.int64),
        np.ones(1, np.int64), np.zeros(4, np.int64), np.array([0, slots], np.int64),
        np.zeros(1, np.int64), np.zeros(n, np.int32),
        np.repeat(np.arange(n_layers, dtype=np.int32), n_experts), n_layers, n_experts,
    )  # fmt: skip


def _with_future(ctx: Context, ids: np.ndarray) -> Context:
    """Every copy is an access and a forward pass of its own."""
    upcoming, first_use = np.empty(len(ids), np.int64), np.empty(ctx.n_total, np.int64)
    next_uses(ids, ctx.n_total, 0, len(ids), upcoming, first_use)
    future = Future(
        upcoming, first_use, ids,
        lambda: np.arange(len(ids), dtype=np.int32), lambda: np.arange(len(ids) + 1),
    )  # fmt: skip
    return dataclasses.replace(ctx, future=future)
