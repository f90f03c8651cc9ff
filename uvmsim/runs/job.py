"""What is run: one job, and what its memory holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.peer import Peer
from uvmsim.machine.tier import Tier
from uvmsim.policies.kinds import Spec
from uvmsim.policies.registry import PolicySpec, chooses
from uvmsim.policies.saved import State
from uvmsim.runs.decoding import Decoding
from uvmsim.runs.plan import Counters
from uvmsim.runs.splits import LAYERS
from uvmsim.workload import Workload


@dataclass(frozen=True)
class Tenants:
    """Models that run side by side on one GPU."""

    names: tuple[str, ...]
    workloads: tuple[Workload, ...]
    models: tuple[Model, ...]
    budget: tuple[float, ...] | None = None
    """Share of the slots of each; None: one pool for all."""


@dataclass(frozen=True)
class Job:
    """One run: everything that decides its outcome."""

    workload: Workload
    model: Model
    hardware: Hardware
    policy: Spec | None = None
    """Of the kind that the mechanism takes; None: its plain one, or nothing to decide."""
    slots: int | None = None
    """Expert slots; None = as many as fit in VRAM beside the rest of the model."""
    pool: str = "global"
    reset: str = "never"
    write_back: bool = False
    """Copy evicted experts back to the host, as if their weights had changed."""
    write_back_alloc: bool = False
    """Every write-back allocates and pins its host memory anew instead of keeping a place for it.
    Such an allocation stops the device, so the two directions of the link never run together."""
    pinned: bool = True
    """Host memory is page-locked."""
    ncmoe: int = 0
    """`cpu-offload`: layers, from the first, whose experts stay with the CPU."""
    seed: int = 0
    profile: Workload | None = None
    """What policies that need a profile learn from."""
    ctx: int | None = None
    """Tokens that the KV cache has room for; None: what the trace needs."""
    threshold: int = 51
    """`uvm`: share of a region that must be accessed, in % (uvm_perf_prefetch_threshold)."""
    advice: str = "prefer-gpu"
    """`uvm`: what the program says of its weights, one of `uvmsim.paging.hints.ADVICE`."""
    prefetch_pieces: int = 0
    """`expert-cache`: most bytes of a prefetch that move before a demand copy may; 0: a prefetch is
    one copy, and prefetches keep their order even while one of them is waited for."""
    scratch: int | None = None
    """Expert places beside the pool that all layers share, for policies that choose what becomes of a
    miss; None: as many as a token uses in a layer. Policies that always insert have none."""
    behind: bool = False
    """`hybrid`: what the CPU computes is copied in behind where the link would rest."""
    tier: Tier | None = None
    """`expert-cache`: a disk below host memory; None: host memory holds every expert."""
    tier_policy: PolicySpec | None = None
    """Who leaves host memory; None: LRU."""
    policy_time: bool = False
    """`expert-cache`: measure what the policy's hooks take on this machine and add it to each layer's
    decision (`uvmsim.experts.hook_time`), instead of what the machine's description says of it. Speeds
    are then no function of the input alone."""
    decoding: Decoding | None = None
    """How the workload's tokens came into their steps, where somebody asked for batches or drafts."""
    state: State | None = None
    """What the policy begins with, where it has something of it (`uvmsim.policies.saved`)."""
    keeps_state: bool = False
    """Keep what the policy has learned by the end (`Plan.saved`)."""
    gpus: int = 1
    """Cards of this kind; ``slots`` and the machine's memory are of each."""
    split: str = LAYERS
    """One of `uvmsim.runs.splits.SPLITS`."""
    peer: Peer | None = None
    """The way between two cards; None: through the host's link."""
    shared_link: bool = False
    """All cards copy from the host through one link, turn by turn."""
    tenants: Tenants | None = None
    """Whose ``workload`` and ``model`` are merged here (`uvmsim.experts.tenants`); None: one model."""

    @property
    def warm(self) -> bool:
        """Whether the policy begins with what it has learned before."""
        spec = self.policy
        return self.state is not None and isinstance(spec, PolicySpec) and self.state.knows(spec)

    @property
    def policy_name(self) -> str | None:
        """The policy's name, and whether it is warm."""
        if self.policy is None:
            return None
        return f"{self.policy.name}{' (warm)' if self.warm else ''}"


class DoesNotFit(Exception):
    """The run needs more device memory than there is: a result, not a mistake."""

    def __init__(self, needed: int, available: int, what: str):
        super().__init__(what)
        self.needed, self.available = needed, available


def fixed_bytes(job: Job) -> int:
    """Device bytes that are not routed experts: dense weights, output layer, KV cache, and what the
    machine keeps for something else."""
    m = job.model
    others = sum(m.dense_bytes) + m.output_bytes + (job.hardware.reserve_bytes or 0)
    if job.ctx is not None:
        return others + job.ctx * m.kv_bytes_per_token
    kv = int(job.workload.step_kv.max(initial=0)) if job.workload.n_steps else 0
    longest = int(np.ceil(kv / max(int(job.workload.step_tokens.max(initial=1)), 1)))
    return others + longest * m.kv_bytes_per_token


def expert_slots(job: Job) -> int:
    """Slots of the pool: the number asked for, or what VRAM holds beside the rest of the model."""
    total = job.workload.n_layers * job.workload.n_experts
    if job.slots is not None:
        return min(job.slots, total)
    slot, scratch = max(job.model.expert_bytes), scratch_places(job)
    fixed = fixed_bytes(job) + scratch * slot
    free = job.hardware.vram_bytes - fixed
    if free < slot:
        more = f", {scratch} scratch places" if scratch else ""
        raise DoesNotFit(
            fixed + slot, job.hardware.vram_bytes, f"dense weights{more} and one expert"
        )
    return min(free // slot, total)


def scratch_places(job: Job) -> int:
    """Places beside the pool for experts that are read without being resident. Raises `InputError`."""
    policy = job.policy
    if not isinstance(policy, PolicySpec) or not chooses(policy):
        return 0
    scratch = job.workload.top_k if job.scratch is None else job.scratch
    if policy.eviction.bypass and scratch < 1:
        raise InputError(
            f"{scratch}: policy {policy.name} copies misses to scratch places; give 1 or more",
            argument="scratch",
        )
    if scratch and job.write_back:
        raise InputError(
            f": policy {policy.name} leaves experts no slot to be written back from; leave it out",
            argument="write_back",
        )
    return scratch


def capacities(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """int64 [pools] slots of each pool, int32 [experts] the pool of each expert."""
    w = job.workload
    slots = expert_slots(job)
    if job.pool == "global":
        capacity = np.array([slots], np.int64)
        pool_of = np.zeros(w.n_layers * w.n_experts, np.int32)
    elif job.pool == "per-layer":
        capacity = np.full(w.n_layers, min(slots // w.n_layers, w.n_experts), np.int64)
        pool_of = np.repeat(np.arange(w.n_layers, dtype=np.int32), w.n_experts)
    else:
        raise InputError(f"{job.pool}: must be global or per-layer", argument="pool")
    least = w.top_k if w.unit == "event" else 1
    if capacity.min() < least:
        a_layer = " a layer" if job.pool == "per-layer" else ""
        raise InputError(
            f"a pool of {capacity.min()} slots{a_layer} is smaller than the {least} experts a token "
            f"uses in a layer; give at least {least * len(capacity)} slots"
        )
    return capacity, pool_of


def counters_without_pool(job: Job, hit: np.ndarray) -> Counters:
    """Counters of a mechanism whose residency is fixed; ``hit`` uint8 [accesses]."""
    w = job.workload
    event_of = w.access_event
    layer = w.event_layer[event_of]
    phase = w.step_phase[w.event_step[event_of]]
    key = phase.astype(np.int64) * w.n_layers + layer
    size = 2 * w.n_layers
    return Counters(
        accesses=len(w.ids),
        hits=int(hit.sum()),
        layer_hits=np.bincount(key[hit > 0], minlength=size).reshape(2, -1),
        layer_accesses=np.bincount(key, minlength=size).reshape(2, -1),
    )
