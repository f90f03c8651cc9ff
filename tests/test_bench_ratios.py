"""Speed, as ratios within one run: far enough from what is measured that noise does not matter."""

import time
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest

import uvmsim
from uvmsim.clocks import des, fast
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms.expert_cache import ExpertCache
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.studies.resolve import load_trace, resolve_model
from uvmsim.studies.scenario import Scenario
from uvmsim.workload import build_workload


def best_of(n, call):
    times = []
    for _ in range(n):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def dictionary_lru(ids, capacity):
    cache, misses = OrderedDict(), 0
    for x in ids:
        if x in cache:
            cache.move_to_end(x)
        else:
            misses += 1
            if len(cache) == capacity:
                cache.popitem(last=False)
            cache[x] = None
    return misses


@pytest.mark.parametrize(("policy", "least"), [("lru", 5), ("lfu", 3), ("belady", 2)])
def test_plain_replay_beats_a_python_dictionary(policy, least):
    """Measured: lru about 15 to 25 times an OrderedDict's LRU."""
    rng = np.random.default_rng(1)
    ids = (4608 * rng.random(400_000) ** 3).astype(np.uint32)
    listed = ids.tolist()
    uvmsim.cache_misses(ids, 2304, policy)
    ours, misses = best_of(3, lambda: uvmsim.cache_misses(ids, 2304, policy))
    theirs, expected = best_of(2, lambda: dictionary_lru(listed, 2304))
    if policy == "lru":
        assert misses == expected
    assert theirs / ours > least


def test_the_compiled_clock_beats_simpy():
    """Measured: 200 to 400 times."""
    trace = load_trace(None, None)
    model = resolve_model(Scenario(), trace, [])
    job = Job(build_workload(trace), model, Hardware.load("rtx5090"))
    plan = ExpertCache().plan(replace(job, policy=parse("lru"), slots=128))
    fast.run(plan)
    ours, times = best_of(3, lambda: fast.run(plan))
    theirs, same = best_of(1, lambda: des.run(plan))
    assert times.equals(same)
    assert theirs / ours > 40
