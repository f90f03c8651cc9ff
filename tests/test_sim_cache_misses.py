"""`uvmsim.cache_misses` and the caching field's policies: references, invariants, bad input."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import naive
import naive_cache
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import cases, plan_of, settings_for

import uvmsim
from traces.errors import InputError
from uvmsim.policies.base import Eviction
from uvmsim.policies.registry import builtin, parse

QUICK = settings(max_examples=30, deadline=None)
FIELD = ["sieve", "s3fifo", "s3fifo-2024", "arc", "2q", "slru", "slru:segments=2", "lru-k", "lfru",
         "w-tinylfu", "lirs"]  # fmt: skip
ANY = sorted(
    name for name, cls in builtin().items()
    if issubclass(cls, Eviction) and cls.needs <= {"next_use"}
)  # fmt: skip
REFERENCES = {
    "lfru": naive_cache.lfru,
    "w-tinylfu": naive_cache.w_tinylfu,
    "lirs": naive_cache.lirs,
}
sequences = st.lists(st.integers(0, 30), max_size=400)
skewed = st.lists(st.integers(0, 5) | st.integers(0, 300), max_size=600)


@pytest.mark.parametrize("policy", sorted(REFERENCES))
@QUICK
@given(ids=sequences | skewed, capacity=st.integers(1, 40))
def test_equals_reference(policy, ids, capacity):
    want = REFERENCES[policy](ids, capacity)
    assert uvmsim.cache_misses(np.array(ids, np.int32), capacity, policy) == want


@pytest.mark.parametrize("policy", [*ANY, "slru:segments=2"])
@QUICK
@given(ids=sequences, capacity=st.integers(1, 40), seed=st.integers(0, 9))
def test_bounds(policy, ids, capacity, seed):
    """Never below MIN, never below the cold misses, all of it again with the same seed."""
    array = np.array(ids, np.uint32)
    misses = uvmsim.cache_misses(array, capacity, policy, seed)
    assert uvmsim.cache_misses(array, capacity, "belady") <= misses <= len(ids)
    assert misses >= len(set(ids))
    if capacity >= len(set(ids)):
        assert misses == len(set(ids))
    assert uvmsim.cache_misses(array, capacity, policy, seed) == misses


@pytest.mark.parametrize("policy", FIELD)
@QUICK
@given(data=st.data())
def test_event_atomic_invariants(policy, data):
    """In the pool of experts, with and without prefetching: the kernel refuses a victim that is in
    use, not resident or of another pool; here the counters must add up."""
    case = data.draw(cases())
    how = data.draw(settings_for(case))
    fetch = "+previous-token"
    plan = plan_of(case, policy + fetch, **how)
    c = plan.counters
    assert c.accesses == c.hits + c.misses == len(plan.hit)
    assert c.misses + c.prefetch_issued - c.evictions >= c.resident_at_end
    if how["reset"] == "never":
        assert c.misses + c.prefetch_issued - c.evictions == c.resident_at_end
    # A pool emptied for a last sequence of unknown rows alone stays empty; any other holds somebody.
    w = case.job(policy + fetch, **how).workload
    first, last = w.segments(how["reset"])[-1]
    served = w.event_lo[last] > w.event_lo[first]
    assert (c.resident_at_end > 0) == served
    assert c.resident_at_end <= plan.slots
    assert c.prefetch_used + c.prefetch_wasted == c.prefetch_issued
    assert plan_of(case, policy + fetch, **how).hit.tolist() == plan.hit.tolist()


@pytest.mark.parametrize(
    "policy", [*FIELD, "lru", "fifo", "clock", "lfu", "lfuda", "belady", "random"]
)
@QUICK
@given(data=st.data())
def test_same_policy_in_both_kernels(policy, data):
    """One access at a time in the pool of experts is the plain replay."""
    case = data.draw(cases())
    slots = data.draw(st.integers(1, len(case.layers) * case.n_experts))
    plan = plan_of(case, policy, unit="access", slots=slots, seed=3)
    ids = case.workload("access").ids
    assert uvmsim.cache_misses(ids, slots, policy, 3) == plan.counters.misses


@pytest.mark.parametrize("policy", ["lru", "mru", "fifo", "lfu", "lfuda", "clock", "belady"])
@QUICK
@given(ids=sequences, capacity=st.integers(1, 40))
def test_old_policies_equal_the_simulators_reference(policy, ids, capacity):
    rows = [naive.Row(0, i, i, 1, 0, [e]) for i, e in enumerate(ids)]
    if not rows:
        return
    want = naive.simulate(rows, policy, n_experts=31, top_k=1, slots=capacity, unit="access")
    assert uvmsim.cache_misses(np.array(ids), capacity, policy) == len(ids) - sum(want.hit)


def test_every_integer_type_and_layout_gives_the_same():
    ids = np.random.default_rng(1).integers(0, 100, 5000)
    want = uvmsim.cache_misses(ids, 20)
    for kind in ("i1", "u1", "<i2", ">i2", "<u2", "<i4", ">i4", "<u4", ">u4", "<i8", "<u8", ">u8"):
        assert uvmsim.cache_misses(ids.astype(kind), 20) == want
    assert uvmsim.cache_misses(np.repeat(ids, 2)[::2], 20) == want
    assert uvmsim.cache_misses(ids.tolist(), 20) == want


@pytest.mark.parametrize("policy", ["lru", "belady"])
def test_sparse_ids_are_renumbered(policy):
    ids = np.random.default_rng(2).integers(0, 100, 5000)
    want = uvmsim.cache_misses(ids, 20, policy)
    scattered = np.random.default_rng(3).integers(2**33, 2**63, 100).astype(np.uint64)
    assert uvmsim.cache_misses(scattered[ids], 20, policy) == want
    assert uvmsim.cache_misses(scattered[ids] * np.uint64(2) + np.uint64(1), 20, policy) == want
    assert uvmsim.cache_misses((ids + 2**31 - 200).astype(np.int32), 20, policy) == want
    assert uvmsim.cache_misses((ids + 2**32 - 200).astype(np.uint32), 20, policy) == want


def test_mapped_file_is_read_in_place(tmp_path):
    ids = np.random.default_rng(4).integers(0, 50, 1000).astype(np.uint32)
    np.save(tmp_path / "ids.npy", ids)
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    from uvmsim.experts.cache_misses import _dense

    assert np.shares_memory(_dense(mapped)[0], mapped)
    assert uvmsim.cache_misses(mapped, 10) == uvmsim.cache_misses(ids, 10)


def test_threads_give_the_same():
    ids = np.random.default_rng(5).integers(0, 500, 200_000)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda c: uvmsim.cache_misses(ids, c, "lru"), [50] * 4 + [100] * 4))
    assert got == [uvmsim.cache_misses(ids, 50)] * 4 + [uvmsim.cache_misses(ids, 100)] * 4


USER = """
from uvmsim.policies.base import Eviction

class FirstSlot(Eviction):
    @staticmethod
    def victim(s, pool, p):
        return pool.expert_in[pool.lo[p]]

class Wrong(Eviction):
    @staticmethod
    def victim(s, pool, p):
        return 10**6

class Sloppy(Eviction):
    @staticmethod
    def victim(s, pool, p):
        return no_such_name
"""


def test_users_own_policy(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER)
    ids = np.array([0, 1, 2, 1, 0, 3, 1, 3])
    assert uvmsim.cache_misses(ids, 2, f"{file}:FirstSlot") == 5
    with pytest.raises(InputError, match=r"access 2: victim\(\) returned 1000000"):
        uvmsim.cache_misses(ids, 2, f"{file}:Wrong")
    with pytest.raises(InputError, match="does not compile"):
        uvmsim.cache_misses(ids, 2, f"{file}:Sloppy")


@pytest.mark.parametrize(
    ("ids", "capacity", "policy", "says"),
    [
        ([1, -2], 1, "lru", r"ids\[1\] is -2"),
        (np.array([1, -2], np.int32), 1, "lru", r"ids\[1\] is -2"),
        ([[1, 2]], 1, "lru", "one dimension"),
        ([1.5], 1, "lru", "integers"),
        ([1], 0, "lru", "at least 1"),
        ([1], -3, "lru", "at least 1"),
        ([1], 1.5, "lru", "whole number"),
        ([1], "many", "lru", "whole number"),
        ([1], 1, "sive", "sieve"),
        ([1], 1, "lru+next-layer", "no prefetch"),
        ([1], 1, "static-pin", "profile"),
    ],
)
def test_bad_input_is_one_line(ids, capacity, policy, says):
    with pytest.raises(InputError, match=says) as caught:
        uvmsim.cache_misses(ids, capacity, policy)
    assert "\n" not in str(caught.value)


def test_nothing_to_serve():
    assert uvmsim.cache_misses(np.zeros(0, np.uint32), 3) == 0
    assert uvmsim.cache_misses([], 3, "belady") == 0


def test_importing_the_package_stays_light():
    code = "import uvmsim, sys; assert 'numba' not in sys.modules; uvmsim.cache_misses"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not hasattr(uvmsim, "nothing_of_that_name")
    assert parse("slru:segments=2").eviction.segments == 2
