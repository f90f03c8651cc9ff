"""The time model against the engine itself, on a device that keeps exact time.

The engine issues its real copies, events and kernels to a backend whose streams have clocks and whose
operations take what a `Hardware` says. Whatever the two then disagree on is a wait or a launch that
one of them has and the other has not.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from routing import generate

from replay.backend.base import COMPUTE
from replay.backend.host import HostBackend
from replay.calibrate import engine_fit
from replay.calibrate.profile import Measurements
from replay.calibrate.stats import row
from replay.calibrate.synthetic import job as synthetic_job
from replay.results import verified
from replay.session import How, Session
from replay.validate.grid import as_replayed
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.studies.simulate import simulate
from uvmsim.workload import build_workload

DTYPE = "fp32"
HW = Hardware.load("h100")


LOOK = 10
"""ns that the host takes to look whether an event has been reached."""


class VirtualBackend(HostBackend):
    """Work is done at once, time is kept by stream; one H2D copy at a time, in order of issue. The
    host takes no time but to wait for events."""

    def __init__(self, hw: Hardware):
        super().__init__()
        self.hw, self.clock, self.link, self.now = hw, [0] * 4, [0, 0], 0

    def _move(self, nbytes: int, stream: int, direction: str) -> None:
        engine = direction == "d2h"
        begin = max(self.clock[stream], self.link[engine], self.now)
        self.clock[stream] = self.link[engine] = begin + self.hw.copy_ns(nbytes, direction)

    def copy_in(self, dst, src, nbytes, stream):
        super().copy_in(dst, src, nbytes, stream)
        self._move(nbytes, stream, "h2d")

    def copy_out(self, dst, src, nbytes, stream):
        super().copy_out(dst, src, nbytes, stream)
        self._move(nbytes, stream, "d2h")

    def record(self, event, stream):
        super().record(event, stream)
        self._times[event] = self.clock[stream]

    def wait(self, stream, event):
        super().wait(stream, event)
        self.clock[stream] = max(self.clock[stream], self._times[event])

    def reached(self, event):
        if self._times[event] <= self.now or not self._noted[event]:
            return True
        self.now += LOOK
        return False

    def read(self, memory, at, nbytes):
        self.clock[COMPUTE] = max(self.clock[COMPUTE], self.now)
        self.clock[COMPUTE] += self.hw.read_ns(nbytes) + self.hw.engine.dense_launch_ns

    def experts(self, layout, tasks, n, first_access, *more):
        super().experts(layout, tasks, n, first_access, *more)
        flops = 2 * 3 * layout.weights * int(tasks.tokens[:n].sum())
        reach = self.hw.reach
        self.clock[COMPUTE] = max(self.clock[COMPUTE], self.now)
        ns = max(n * layout.nbytes / reach.expert_bytes_per_s, flops / reach.compute_flops)
        self.clock[COMPUTE] += round(ns * 1e9) + self.hw.engine.expert_launch_ns


def make(policy: str | None, slots: int | None = None) -> Job:
    trace = generate(3, layers=4, experts=8, top_k=2, sequences=2, decode=20, prefill=5).trace
    model = as_replayed(Model.from_info(trace.meta.model).scaled(6000), DTYPE)
    w = build_workload(trace)
    return Job(w, model, HW, policy=parse(policy) if policy else None, slots=slots, profile=w)


def deciding(ns: int) -> Hardware:
    """The machine with a program whose decisions take ``ns``."""
    return replace(HW, engine=replace(HW.engine, decision_ns=ns))


def both(job: Job, mode: str, decision_ns: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Duration of each step: predicted, and on the virtual device."""
    job = replace(job, hardware=deciding(decision_ns))
    with Session(VirtualBackend(HW), How(dtype=DTYPE)) as session:
        done = session.run(job, mode)
    assert verified(done), done.problems
    predicted = simulate(job, mode)
    return np.diff(predicted.step_end, prepend=0), done.step_ns


@pytest.mark.parametrize(
    ("mode", "policy", "slots"),
    [
        ("resident", None, None),
        ("stream", None, None),
        ("expert-cache", "lru", 8),
        ("expert-cache", "mru", 16),
        ("expert-cache", "belady", 8),
        ("expert-cache", "static-pin", 12),
        ("expert-cache", "lru", 2),
    ],
)
def test_engine_takes_the_time_the_model_says(mode, policy, slots):
    predicted, measured = both(make(policy, slots), mode)
    # Durations are rounded to whole ns one by one: a few ns a layer.
    assert np.abs(predicted - measured).max() <= 40


def test_prefetches_overlap_as_the_model_says():
    predicted, measured = both(make("lru+next-layer", 12), "expert-cache")
    assert predicted.sum() == pytest.approx(measured.sum(), rel=0.05)


@pytest.mark.parametrize("pieces", [600, 2000, 10**6])
@pytest.mark.parametrize("policy", ["lru+next-layer", "lru+previous-token", "mru+next-layer:n=5"])
def test_prefetches_in_pieces_take_the_time_that_the_model_says(policy, pieces, monkeypatch):
    """One piece under way, as in the model; what is left is the host's looks at events."""
    monkeypatch.setattr("replay.feed.DEEP", 1)
    job = replace(make(policy, 12), prefetch_pieces=pieces)
    predicted, measured = both(job, "expert-cache")
    assert predicted.sum() == pytest.approx(measured.sum(), rel=0.01)
    assert np.abs(predicted - measured).max() <= 0.02 * predicted.max()


def test_calibration_finds_the_virtual_devices_constants():
    """From the engine's runs on a device whose constants are known back to those constants."""
    rows = []
    with Session(VirtualBackend(HW)) as session:
        for shape in engine_fit.shapes(quick=True):
            done = session.run(synthetic_job(shape, HW), shape.mode, How(dtype=shape.dtype))
            about = {k: getattr(shape, k) for k in shape.__dataclass_fields__}
            steps = done.step_ns[engine_fit.COLD :]
            rows.append({**about, "verified": verified(done), "issue_ns": 0.0, **row(steps)})
    found = engine_fit.fit(rows, Measurements("cuda", {}, "2026-01-01"))
    assert found["decision_ns"][0] <= 5  # the engine decides on the host, ahead of the device
    for key in ("dense_launch_ns", "expert_launch_ns", "copy_latency_ns", "h2d_bytes_per_s"):
        owner = HW.engine if hasattr(HW.engine, key) else HW
        assert found[key][0] == pytest.approx(getattr(owner, key), rel=0.05), key
