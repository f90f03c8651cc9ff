"""Cold runs of the replay engine on managed memory: predicted, timed, and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from replay.calibrate.uvm_mode import Plain, job
from replay.paging.counts import page_of
from replay.paging.device import Seen
from replay.paging.engine_kernels import engine_kernels, pages_of
from replay.paging.touches import PAGES
from replay.paging.validation.config import EngineRun
from replay.paging.validation.events import Events
from replay.paging.validation.predict import described
from replay.session import layouts_of
from uvmsim.machine.hardware import Hardware
from uvmsim.paging.drive import Setup, run_paging
from uvmsim.policies.kinds import PAGES as PAGE_POLICIES
from uvmsim.policies.pages.phases import PhasedPolicy
from uvmsim.runs.job import Job


def job_of(run: EngineRun, hw: Hardware) -> Job:
    """Random routing with room for every expert."""
    plain = Plain(
        "random", 0, run.n_experts, run.expert_bytes, run.layers, run.n_experts, run.steps,
        run.dtype, run.dense_bytes,
    )  # fmt: skip
    return job(plain, hw)


def predict(run: EngineRun, hw: Hardware) -> dict[str, Any]:
    """What the page model says of the run: see `replay.paging.validation.predict.described`."""
    made = job_of(run, hw)
    layouts = layouts_of(made.model, run.dtype)
    assert hw.uvm is not None
    kernels = engine_kernels(made, layouts, hw, hw.uvm.sm_count)
    pages = pages_of(layouts, run.n_experts)
    blocks = -(-pages // PAGES)
    n_pages = np.full(blocks, PAGES, np.int32)
    n_pages[-1] = pages - (blocks - 1) * PAGES
    setup = Setup(
        kernels, n_pages, np.zeros(blocks, np.int8), np.zeros(blocks, np.uint8),
        np.ones(blocks, np.uint8), max(blocks, 64), made.workload.step_phase,
        np.array([0, blocks], np.int64),
    )  # fmt: skip
    policy = PAGE_POLICIES.of(PAGE_POLICIES.plain)
    assert isinstance(policy, PhasedPolicy)
    paged = run_paging(setup, hw, policy.prefill or policy.decode, policy.decode)
    end = np.zeros(len(setup.phase), np.int64)
    np.maximum.at(end, kernels.step, paged.ends)
    step_ns = np.diff(np.maximum.accumulate(end), prepend=0)
    return described(paged.counts, step_ns)


def measure(run: EngineRun, repetitions: int) -> dict[str, Any]:
    """``step_ns`` [runs][steps] without the driver's events, and one run's events with its steps."""
    from replay.backend import backend
    from replay.session import How, Session

    made = job_of(run, Hardware.load("h100"))  # what the engine does is no business of it
    how = How(dtype=run.dtype)
    with Session(backend("cuda")) as session:
        timed = [session.run(made, "managed", how) for _ in range(repetitions)]
        events = Events()
        try:

            @contextmanager
            def noted() -> Iterator[None]:
                events.start()
                yield
                session.backend.synchronise()
                events.stop()

            session.around = noted
            recorded = session.run(made, "managed", how)
        finally:
            session.around = nullcontext  # the run below is not noted: the queue is closed
            events.close()
        memory = next(iter(session._banks.values())).memory
        seen = Seen.of(events.entries(), memory.ptr, events.lost)
        warm = session.run(replace(made), "resident", how)
    problems = [p for r in (*timed, recorded) for p in r.problems]
    return {
        "step_ns": [r.step_ns.tolist() for r in timed],
        "recorded_step_ns": recorded.step_ns.tolist(),
        "warm_step_ns": warm.step_ns.tolist(),
        "problems": problems,
        "seen": seen,
        "base_page": int(page_of(np.array([memory.ptr], np.uint64))[0]),
        "pages": -(-memory.nbytes // 4096),
    }
