"""Managed memory paged by the NVIDIA driver, with gpu_ext's eBPF hooks."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.clocks import clock as clock_named
from uvmsim.clocks import des_paging
from uvmsim.mechanisms.base import Mechanism
from uvmsim.paging.drive import Setup, run_paging, uvm_of
from uvmsim.paging.hints import ADVICE, PREFETCH, with_prefetch
from uvmsim.paging.kernels import Kernels, Space, context_lengths, kernels_of, space_of
from uvmsim.paging.layout import BLOCK
from uvmsim.paging.trace_out import write_trace
from uvmsim.paging.trail import Paged
from uvmsim.policies.kinds import PAGES, PolicyKind
from uvmsim.policies.pages.phases import PhasedPolicy
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome

COMPUTE_BYTES = 420 << 20
"""llama.cpp's compute buffer for micro-batches of 512: logits of 201,088 words and activations; what
a run touches of it is little (`uvmsim.paging.kernels`)."""
LEAST_CHUNKS = 64


class Uvm(Mechanism):
    """Managed memory: page faults, prefetch and eviction by the driver, policies as eBPF hooks.

    Weights are in host memory at first, with the job's advice: preferred location GPU is what gpu_ext's
    llama.cpp fork sets at the first computation. KV cache and compute buffer are managed too, and share
    the list.
    """

    name: ClassVar[str] = "uvm"
    decides: ClassVar[PolicyKind | None] = PAGES
    records_faults: ClassVar[bool] = True

    def run(self, job: Job, clock: str = "fast", record: bool = False) -> Outcome:
        """The driver keeps the clock itself; ``des`` plays what it did again."""
        clock_named(clock)
        w, hw = job.workload, job.hardware
        uvm_of(hw)
        if job.advice not in ADVICE:
            raise InputError(f"{job.advice}: must be one of {', '.join(ADVICE)}", argument="advice")
        if w.unit != "event":
            raise InputError(
                f"uvm: pages whole layers; leave out `unit` {w.unit}", argument="mechanisms"
            )
        policy = job.policy or PAGES.of(PAGES.plain)
        if not isinstance(policy, PhasedPolicy):
            raise InputError(f"policy {policy.name}: decides about experts, not about pages")
        job = dataclasses.replace(job, policy=policy)
        setup, space = setup_of(job, policy.copies)
        record = record or clock == "des"
        paged = run_paging(setup, hw, policy.prefill or policy.decode, policy.decode, record=record)
        if clock == "des":
            assert paged.program is not None
            paged.ends = des_paging.run(paged.program, len(paged.ends), uvm_of(hw).duplex)
        trail = Paged(paged, setup, space)
        about = {
            "policy": policy.name,
            "mechanism": self.name,
            "model": job.model.name,
            "hardware": hw.name,
            "vram_bytes": hw.vram_bytes,
            "seed": job.seed,
            "threshold": job.threshold,
            **(job.decoding.to_json() if job.decoding is not None else {}),
        }
        return Outcome(job, self.name, trail.step_ns(), trail=trail, notes=paged.notes, about=about)

    def export_faults(self, run: Outcome, path: str, about: dict[str, Any]) -> None:
        """See `uvmsim.paging.trace_out`."""
        assert isinstance(run.trail, Paged)
        write_trace(path, run.trail.run, run.trail.setup, run.job.hardware, about)


def setup_of(job: Job, copies: bool) -> tuple[Setup, Space]:
    """Address space, kernels and memory of one process."""
    if job.decoding is not None and job.decoding.batch > 1:
        raise InputError(
            f"{job.decoding.batch}: uvm pages one sequence's KV cache, not several; give 1",
            argument="batch",
        )
    w, hw, m = job.workload, job.hardware, job.model
    u = uvm_of(hw)
    space = space_of(m, context_of(job), COMPUTE_BYTES)
    kernels = kernels_of(w, m, hw, space, u.sm_count, u.ctas_per_sm, copies)
    vram = hw.free_bytes
    if copies:  # scratch for the experts of a layer
        vram -= max(m.expert_bytes) * m.n_experts
    n_chunks = vram // BLOCK
    if n_chunks < LEAST_CHUNKS:
        raise InputError(
            f": {hw.free_bytes:,} bytes are {n_chunks} chunks of 2 MiB, too few to page with; "
            f"give at least {LEAST_CHUNKS * BLOCK >> 20}MiB",
            argument="vram",
        )
    advice = np.zeros(space.n_blocks, np.uint8)
    advice[: space.kv_block] = ADVICE[job.advice]
    if job.advice == PREFETCH:
        kernels = with_prefetch(kernels, 0, 0, int(space.n_pages[: space.kv_block].sum()))
    populated = np.zeros(space.n_blocks, np.uint8)
    populated[: space.kv_block] = 1
    setup = Setup(
        kernels, space.n_pages, np.zeros(space.n_blocks, np.int8), advice, populated, n_chunks,
        w.step_phase, space.layout.boundaries(m.n_layers), job.threshold, job.seed,
    )  # fmt: skip
    return setup, space


def context_of(job: Job) -> int:
    """Tokens the KV cache has room for: those asked for, else the longest context of the run; at least
    one."""
    if job.ctx is not None:
        return max(job.ctx, 1)
    return max(int(context_lengths(job.workload).max(initial=0)), 1)


def co_locate(setups: list[Setup]) -> Setup:
    """Several processes on one GPU, kernels in turn: process i is tenant i. One memory, the first
    one's, and one list for all."""
    first = setups[0]
    blocks = np.cumsum([0, *(len(s.n_pages) for s in setups)])
    steps = np.cumsum([0, *(len(s.phase) for s in setups)])
    kernels = [
        s.kernels._replace(
            step=s.kernels.step + steps[i],
            tenant=np.full(len(s.kernels.step), i, np.int8),
            first=s.kernels.first + blocks[i] * (BLOCK // 4096),
            last=s.kernels.last + blocks[i] * (BLOCK // 4096),
        )
        for i, s in enumerate(setups)
    ]
    return dataclasses.replace(
        first,
        kernels=in_turn(kernels),
        n_pages=np.concatenate([s.n_pages for s in setups]),
        tenant_of=np.concatenate(
            [np.full(len(s.n_pages), i, np.int8) for i, s in enumerate(setups)]
        ),
        advice=np.concatenate([s.advice for s in setups]),
        populated=np.concatenate([s.populated for s in setups]),
        phase=np.concatenate([s.phase for s in setups]),
    )


def in_turn(parts: list[Kernels]) -> Kernels:
    """The kernels of several processes, one of each in turn."""
    turn = np.concatenate([np.arange(len(k.step)) for k in parts])
    owner = np.repeat(np.arange(len(parts)), [len(k.step) for k in parts])
    order = np.lexsort((owner, turn))
    waves = np.concatenate([np.diff(k.wave_hi, prepend=0) for k in parts])
    touches = np.concatenate([np.diff(k.touch_hi, prepend=0) for k in parts])
    wave_order = _spans(waves, order)
    touch_order = _spans(touches, wave_order)

    def pick(name: str, by: np.ndarray) -> np.ndarray:
        return np.concatenate([getattr(k, name) for k in parts])[by]

    per_kernel = ("step", "compute_ns", "copy_bytes", "tenant", "tail_ns")
    per_wave = ("burst", "fetched", "limit", "looks")
    return parts[0]._replace(
        **{name: pick(name, order) for name in per_kernel},
        **{name: pick(name, wave_order) for name in per_wave},
        **{name: pick(name, touch_order) for name in ("first", "last")},
        wave_hi=np.cumsum(waves[order]),
        touch_hi=np.cumsum(touches[wave_order]),
        action=_actions(parts)[order],
    )


def _actions(parts: list[Kernels]) -> np.ndarray:
    return np.concatenate(
        [k.action if len(k.action) else np.zeros(len(k.step), np.int8) for k in parts]
    )


def _spans(counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Positions of the children of parents taken in ``order``, where parent i has counts[i]."""
    start = np.concatenate(([0], np.cumsum(counts)))[:-1]
    n = counts[order]
    offset = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    return np.repeat(start[order], n) + offset
