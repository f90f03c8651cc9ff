"""The replay engine on several devices: pretended ones on the host, in any order that streams and
events allow. Outputs and counters as everywhere; a hop that is forgotten shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import generate

from replay.backend.base import COMPUTE
from replay.backend.host import HostBackend
from replay.results import verified
from replay.session import How, Session
from replay.study import COMPARED
from traces.errors import InputError
from uvmsim.runs.splits import EXPERTS, LAYERS, POOL, POPULARITY
from uvmsim.studies.simulate import simulate

FAST = How(dtype="fp32")


def job_of(seed: int, policy: str = "lru", **more):
    case = generate(seed, layers=4, experts=8, top_k=2, missing=0.1 * (seed % 2))
    return case.job(policy, profile=case.workload(), **({"slots": 5, "gpus": 2} | more))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from(("lru", "lfu", "learned", "lru+next-layer", "belady")),
    st.sampled_from((LAYERS, EXPERTS, POPULARITY)),
    st.integers(2, 3),
    st.one_of(st.none(), st.integers(0, 1000)),
    st.booleans(),
    st.sampled_from(("never", "sequence")),
    st.booleans(),
)
def test_counts_and_computes_as_simulated(
    seed, policy, split, gpus, shuffle, write_back, reset, detail
):
    job = job_of(seed, policy, split=split, gpus=gpus, write_back=write_back, reset=reset)
    with Session(HostBackend(shuffle=shuffle), How(dtype="fp32", detail=detail)) as session:
        run = session.run(job)
        assert verified(run), run.problems
        got, want = run.to_json(), simulate(job).to_json()
        for key in COMPARED:
            assert got[key] == want[key], key
        for key in ("issued", "wasted"):
            assert got["prefetch"][key] == want["prefetch"][key]
        assert got["options"]["hop_bytes"] == want["bytes_peer"]
        for mine, theirs in zip(got["options"]["devices"], want["gpus"], strict=True):
            assert (mine["slots"], mine["bytes_h2d"]) == (theirs["slots"], theirs["bytes_h2d"])
        assert len(run.step_ns) == job.workload.n_steps
        live = session.backend.live_bytes
        session.run(job)
        assert session.backend.live_bytes == live  # nothing is left behind


class Told(HostBackend):
    """Writes down in which order kernels and hops of all devices run."""

    def __init__(self, shuffle=None):
        super().__init__(shuffle)
        self.log: list = []

    def several(self, n):
        made = super().several(n)
        for i, b in enumerate(made):
            b.log, b.number = self.log, i
        return made

    def experts(self, layout, tasks, n, first_access, most=0):
        super().experts(layout, tasks, n, first_access, most)
        number = getattr(self, "number", 0)
        self._queue(COMPUTE, lambda: self.log.append(("experts", number)))

    def hop(self, dst, src, nbytes, stream, source):
        super().hop(dst, src, nbytes, stream, source)
        self._queue(stream, lambda: self.log.append(("hop", source.number, self.number)))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from(("lru", "learned", "lru+next-layer", "belady")),
    st.integers(2, 3),
    st.sampled_from((3, 5, 9)),
    st.one_of(st.none(), st.integers(0, 1000)),
    st.booleans(),
)
def test_a_pool_with_a_tier_behind_it(seed, policy, gpus, slots, shuffle, detail):
    job = job_of(seed, policy, split=POOL, gpus=gpus, slots=slots)
    with Session(HostBackend(shuffle=shuffle), How(dtype="fp32", detail=detail)) as session:
        run = session.run(job)
    assert verified(run), run.problems
    got, want = run.to_json(), simulate(job).to_json()
    for key in COMPARED:
        assert got[key] == want[key], key
    assert got["options"]["hop_bytes"] == want["bytes_peer"]


@pytest.mark.parametrize("shuffle", (1, 2, 3))
def test_layers_wait_for_one_another(shuffle):
    """Whatever the order of streams, a device's experts run between the hops to it and from it."""
    job = job_of(2, split=LAYERS)
    backend = Told(shuffle)
    with Session(backend, FAST) as session:
        assert verified(session.run(job))
    hops = [x for x in backend.log if x[0] == "hop"]
    assert hops == [("hop", 0, 1), ("hop", 1, 0)] * job.workload.n_steps
    at = 0
    first = backend.log.index(hops[0])
    for what in backend.log[first:]:
        if what[0] == "hop":
            at = what[2]
        else:
            assert what[1] == at


@pytest.mark.parametrize("shuffle", (1, 2, 3))
def test_experts_come_together_after_each_layer(shuffle):
    job = job_of(4, split=EXPERTS)
    backend = Told(shuffle)
    with Session(backend, FAST) as session:
        assert verified(session.run(job))
    out = [x for x in backend.log if x == ("hop", 0, 1)]
    assert len(out) == job.workload.n_events
    open_hops = 0
    for what in backend.log[backend.log.index(("hop", 0, 1)) :]:
        if what == ("hop", 0, 1):
            open_hops += 1
        elif what == ("experts", 1):
            assert open_hops > 0


def test_what_is_refused():
    with Session(HostBackend(), FAST) as session, pytest.raises(InputError, match="one GPU"):
        session.run(job_of(1), "hybrid")


def test_a_wrong_byte_voids_the_run():
    from replay.backend.host import Faults

    job = job_of(1, split=EXPERTS)
    with Session(HostBackend(faults=Faults(copy_corrupts=40)), FAST) as session:
        run = session.run(job)
    assert run.problems and run.status == "void"


def test_what_a_user_types():
    import uvmsim

    (run,) = uvmsim.replay(backend="host", slots="25%", gpus=2, split="experts", limit=24)
    assert verified(run)
    assert np.isfinite(run.to_json()["decode_tokens_per_s"] or 0)
