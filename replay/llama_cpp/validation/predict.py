"""What a calibration says a cell will do, from the routing of the very tokens it will run."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from replay.llama_cpp.validation.cells import Cell
from traces.routing import open_routing
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp.plan import memory
from uvmsim.machine.llamacpp.timing import managed
from uvmsim.mechanisms.base import Planned
from uvmsim.mechanisms.event_plan import event_plan
from uvmsim.policies.kinds import EXPERTS
from uvmsim.runs.job import Job
from uvmsim.runs.llama_times import detailed
from uvmsim.runs.outcome import Outcome
from uvmsim.runs.plan import Plan
from uvmsim.studies.simulate import simulate
from uvmsim.workload import Workload, build_workload

ROOM = 1 << 50
"""VRAM for predictions: what fits is the memory plan's to say, not the mechanisms'."""


class Managed(Planned):
    """Everything resident in managed memory that fits."""

    name: ClassVar[str] = "managed"

    def plan(self, job: Job) -> Plan:
        return event_plan(job, times=detailed(job, variant=managed))


@dataclasses.dataclass(frozen=True)
class Routed:
    """The routing of a context's tests: ``marks`` as `replay.llama_cpp.routing.record` gives them."""

    workload: Workload
    marks: list[list[int]]

    @classmethod
    def read(cls, path: str, marks: list[list[int]]) -> Routed:
        return cls(build_workload(open_routing(path)), marks)


def predict(cell: Cell, hardware: Hardware, routed: dict[int, Routed]) -> dict[str, Any]:
    """``tests``: for each the predicted ns of every repetition and tokens/s of the median one;
    ``vram_bytes``: what llama.cpp will report, by micro-batch; ``hits``, ``misses`` of a cache.

    ``routed``: by micro-batch. Raises `InputError` where the profile lacks a constant.
    """
    out: dict[str, Any] = {"tests": {}, "vram_bytes": {}, "moe_cache": {}}
    terms = hardware.engine.terms
    assert terms is not None
    names = {t.ubatch: [x for x in cell.tests if x.ubatch == t.ubatch] for t in cell.tests}
    for ubatch, context in cell.contexts(1).items():
        run = routed[ubatch]
        outcome = _simulated(cell, hardware, run.workload)
        ns = outcome.step_ns
        for i, test in enumerate(names[ubatch]):
            each = [
                int(ns[first : first + n].sum())
                for at, rep, first, n in run.marks
                if at == i and rep >= 0
            ]
            out["tests"][test.name] = speed(test.n, each)
        if cell.cache_mib and outcome.counters is not None:
            c = outcome.counters
            counted = {"hits": c.hits - c.bypassed_hits}
            counted["misses"] = c.accesses - c.bypassed - counted["hits"]
            out["moe_cache"][str(ubatch)] = counted
        config = cell.config(context, gpu=terms.gpu, flash=terms.flash_attention)
        out["vram_bytes"][str(ubatch)] = memory(cell.subject.llama, config).vram_bytes
    return out


def speed(tokens: int, ns: list[int]) -> dict[str, Any]:
    """Repetitions and tokens/s of the median one."""
    return {"ns": ns, "tokens_per_s": tokens / (float(np.median(ns)) / 1e9)}


def _simulated(cell: Cell, hardware: Hardware, w: Workload) -> Outcome:
    hw = replace(hardware, vram_bytes=ROOM)
    job = Job(w, cell.subject.model, hw, pinned=cell.no_mmap)
    if cell.mode == "resident":
        return simulate(job, "resident")
    if cell.mode == "ncmoe":
        return simulate(replace(job, ncmoe=cell.ncmoe), "cpu-offload")
    if cell.mode == "managed":
        return Managed().run(job)
    if cell.mode == "preferred-host":
        return simulate(job, "zero-copy")
    policy = EXPERTS.of("llama-cpp-lru")
    return simulate(replace(job, policy=policy, slots=cell.slots), "expert-cache")
