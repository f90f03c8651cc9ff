"""Kernels read the weights across the link every time; nothing is kept."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from uvmsim.machine.llamacpp.timing import remote
from uvmsim.machine.model_spec import TYPES, role_of
from uvmsim.machine.timing import to_ns
from uvmsim.mechanisms.base import Planned
from uvmsim.mechanisms.event_plan import event_plan
from uvmsim.paging.kernels import MMVQ_TOKENS, TILE_TOKENS
from uvmsim.runs.job import Job
from uvmsim.runs.llama_times import detailed
from uvmsim.runs.plan import Plan

LINE = 128
"""Bytes a read across the link is made of: a line of the GPU's L2."""
STRIP = 256
"""Weights of a row a matrix kernel loads at a time (MMQ_ITER_K)."""


class ZeroCopy(Planned):
    """All weights stay in host memory and are read over the link on each use.

    What managed memory with preferred location CPU does: the driver maps the pages remotely and
    migrates none (uvm_va_block.c, block_select_residency). The KV cache is in VRAM.

    A decode kernel reads whole rows. A prefill kernel loads strips of 256 weights from each of a
    tile's rows, and remote reads are not kept from one strip to the next: a strip costs the whole
    lines it touches, and each tile of 128 tokens reads a dense matrix anew.
    """

    name: ClassVar[str] = "zero-copy"

    def plan(self, job: Job) -> Plan:
        w, m, hw = job.workload, job.model, job.hardware
        times = detailed(job, variant=remote)
        plan = event_plan(job, bytes_per_s=hw.zero_copy_bytes_per_s, times=times)
        plan.hit[:] = 0
        plan.counters.hits = 0
        plan.counters.layer_hits[:] = 0
        wide = w.step_tokens[w.event_step] > MMVQ_TOKENS
        event = w.access_event
        each = np.asarray(m.expert_bytes, np.float64)[w.ids // w.n_experts]
        experts = np.bincount(event, weights=each, minlength=w.n_events)
        dense = np.asarray(m.dense_bytes, np.float64)[list(m.moe_layers)][w.event_layer]
        dense = np.where(w.event_first, dense, 0)
        more_experts = np.where(wide, line_share(job, expert=True) - 1, 0) * experts
        tiles = -(-w.step_tokens[w.event_step] // TILE_TOKENS)
        more_dense = np.where(wide, tiles * line_share(job, expert=False) - 1, 0) * dense
        rate = hw.zero_copy_bytes_per_s
        if times is None:
            plan.compute_ns += to_ns(more_experts / rate)
            plan.pre_ns += to_ns(more_dense / rate)
        by_event = experts + dense + more_experts + more_dense
        by_step = np.bincount(w.event_step, weights=by_event, minlength=w.n_steps)
        rest = m.resident_bytes - sum(m.dense_bytes[b] for b in m.moe_layers)
        plan.zero_copy_step = (by_step + rest).astype(np.int64)
        plan.bytes_zero_copy = int(plan.zero_copy_step.sum())
        return plan


def line_share(job: Job, expert: bool) -> float:
    """Bytes of whole lines over bytes wanted, for strips at random places; 1 where types are
    unknown."""
    wanted = got = 0.0
    for name, kind, nbytes in job.model.tensors:
        role, block = role_of(name)
        weights, size = TYPES.get(kind.upper(), (1, 1))
        if block < 0 or (role == "expert") != expert or weights == 1:
            continue
        strip = STRIP // weights * size
        wanted += nbytes
        got += nbytes * (1 + (strip - 1) / LINE) * LINE / strip
    return got / wanted if wanted else 1.0
