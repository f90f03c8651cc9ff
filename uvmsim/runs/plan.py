"""What a mechanism decides: which bytes are copied, in which order, and what waits for what.

A plan knows no nanoseconds of waiting. It is the one language between mechanisms (which write
plans) and engines (which give them a clock): a run is a sequence of *waves*. In a wave the GPU
first does dense work (``pre_ns``), then the copies of the wave are queued, then the GPU waits for
the demand copies and for late prefetches, then it computes (``compute_ns``). An event is one wave,
or several where it needs more experts than the pool has slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from uvmsim.policies.saved import Saved
from uvmsim.workload import Workload

DEMAND, PREFETCH, WRITEBACK = 0, 1, 2


@dataclass
class Counters:
    """What happened, exactly; none of it depends on time."""

    accesses: int = 0
    hits: int = 0
    evictions: int = 0
    prefetch_issued: int = 0
    prefetch_used: int = 0
    prefetch_wasted: int = 0
    layer_hits: np.ndarray = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    """int64 [phase, layer]"""
    layer_accesses: np.ndarray = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    resident_at_end: int = 0
    bypassed: int = 0
    """Accesses of events the policy served beside the pool."""
    bypassed_hits: int = 0
    misses_by: dict[str, int] = field(default_factory=dict)
    """Misses by what became of them (`uvmsim.policies.base.ACTIONS`), where there was a choice."""

    @property
    def misses(self) -> int:
        return self.accesses - self.hits


@dataclass
class Plan:
    """Arrays over W waves, C copies, X waits; all times are durations in ns."""

    wave_event: np.ndarray
    """int32 [W]: event a wave belongs to."""
    wave_hi: np.ndarray
    """int64 [W]: accesses served up to and including this wave."""
    pre_ns: np.ndarray
    """int64 [W]: GPU work before the router's choice is known."""
    cpu_ns: np.ndarray
    """int64 [W]: CPU work the GPU waits for."""
    compute_ns: np.ndarray
    """int64 [W]: GPU work once everything has arrived."""
    wave_copy_hi: np.ndarray
    """int64 [W]: copies queued up to and including this wave."""
    wave_wait_hi: np.ndarray
    """int64 [W]: entries of ``waits`` up to and including this wave."""
    copy_bytes: np.ndarray
    """int64 [C]"""
    copy_kind: np.ndarray
    """int8 [C]: DEMAND, PREFETCH or WRITEBACK."""
    copy_after: np.ndarray
    """int64 [C]: copy that must be done first (same slot), -1 if none."""
    copy_ns: np.ndarray
    """int64 [C]: time on the link, at least 1."""
    waits: np.ndarray
    """int64 [X]: prefetch copies whose expert is used for the first time in the wave."""
    step_wave_hi: np.ndarray
    """int64 [S]: waves of the run up to and including this step."""
    hit: np.ndarray
    """uint8 [A]: 1 where the access found its expert resident or on its way."""
    counters: Counters
    piece_ns: int = 0
    """Time on the link of a full piece of a prefetch: a clock moves PREFETCH copies in pieces of this
    many ns (the last one: what is left), lets demand copies go in between, and lets those that
    somebody waits for go before the rest. 0: a prefetch is one piece, and all keep their order."""
    slots: int = 0
    bytes_zero_copy: int = 0
    """Bytes the kernels read across the link without a copy."""
    zero_copy_step: np.ndarray | None = None
    """int64 [S]: the same a step, where there are any."""
    on_cpu: np.ndarray | None = None
    """bool [A]: misses that the CPU computes; None: none."""
    policy_ns: np.ndarray | None = None
    """int64 [E]: measured host time of the policy's hooks, by event; None: not measured."""
    notes: list[str] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    """What the policy had learned by the end, where the job keeps it."""

    def bytes_of(self, kind: int) -> int:
        """Bytes of all copies of one kind."""
        return int(self.copy_bytes[self.copy_kind == kind].sum())


def finish(plan: Plan, w: Workload, tail: np.ndarray) -> Plan:
    """Charge what follows a step's last MoE layer to its last wave; set `Plan.step_wave_hi`."""
    if w.step_added_ns is not None:
        tail = tail + w.step_added_ns
    step = w.event_step[plan.wave_event]
    plan.step_wave_hi = np.searchsorted(step, np.arange(w.n_steps), side="right").astype(np.int64)
    plan.compute_ns[plan.step_wave_hi - 1] += tail
    return plan
