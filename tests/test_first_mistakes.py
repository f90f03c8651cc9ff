"""Mistakes a new user makes in the first hour: each is one line, none gives a wrong number."""

import numpy as np
import pytest
from routing import generate, plan_of

import uvmsim
from traces.errors import InputError
from uvmsim.studies.compare import compare
from uvmsim.studies.microbench.table import Options as Microbench
from uvmsim.studies.microbench.table import run as microbench
from uvmsim.studies.scenario import Scenario

POLICY = """
from typing import NamedTuple
import numpy as np
from uvmsim.policies.base import Eviction, in_use

class State(NamedTuple):
    last: np.ndarray

class Mine(Eviction):
    name = "mine"
    def state(self, ctx):
        return State(np.zeros(ctx.n_total, np.int64))
    @staticmethod
    def {hook}(s, pool, e, i, hit):
        s.last[e + {beyond}] = i
    @staticmethod
    def victim(s, pool, p):
        best = -1
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if not in_use(pool, e) and (best < 0 or s.last[e] < s.last[best]):
                best = e
        return best
"""


def policy(tmp_path, hook="on_access", beyond=0):
    path = tmp_path / "mine.py"
    path.write_text(POLICY.format(hook=hook, beyond=beyond))
    return f"{path}:Mine"


def run(spec):
    return compare(Scenario(policies=(spec,), slots=("25%",), limit=900))


def test_the_same_policy_without_a_mistake_is_lru(tmp_path):
    mine = run(policy(tmp_path)).runs[0].trail.plan
    lru = run("lru").runs[0].trail.plan
    assert np.array_equal(mine.hit, lru.hit)


@pytest.mark.parametrize("beyond", [1_000, 100_000_000])
def test_an_index_outside_a_state_array_is_an_error(tmp_path, beyond):
    spec = policy(tmp_path, beyond=beyond)
    with pytest.raises(InputError, match="event 0: IndexError"):
        run(spec)
    with pytest.raises(InputError, match="out of bounds"):
        uvmsim.cache_misses(np.arange(50, dtype=np.uint32), 10, spec)


def test_a_misspelt_hook_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"on_acces is no hook; did you mean 'on_access'\?"):
        run(policy(tmp_path, hook="on_acces"))


def test_a_pool_that_holds_everything_says_that_policies_do_not_differ():
    result = compare(Scenario(policies=("lru", "fifo"), slots=("100%",), limit=900))
    assert any("policies do not differ" in note for note in result.notes)


def test_a_file_that_is_no_trace_is_not_written_over(tmp_path):
    from traces import RoutingWriter, open_routing
    from traces.samples import BUNDLED

    meta = open_routing(BUNDLED).meta
    mine = tmp_path / "mine.py"
    mine.write_text("print('precious')\n")
    with pytest.raises(InputError, match="exists and is no trace"), RoutingWriter(mine, meta):
        pass
    assert mine.read_text() == "print('precious')\n"
    assert list(tmp_path.iterdir()) == [mine]


def test_statistics_of_a_damaged_trace_are_refused(tmp_path):
    from click.testing import CliRunner

    from traces.commands.trace import trace
    from traces.samples import BUNDLED

    data = bytearray(BUNDLED.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20] = bytes(range(20))
    damaged = tmp_path / "damaged.arrow"
    damaged.write_bytes(data)
    result = CliRunner().invoke(trace, ["stats", str(damaged)])
    assert isinstance(result.exception, InputError)
    assert "damaged" in str(result.exception)


WRITES = {
    "ev.experts": ("on_event(s, pool, ev)", "ev.experts[0] = 1_000_000"),
    "ev.counts": ("on_event(s, pool, ev)", "ev.counts[0] = 7"),
    "pool.expert_in": ("on_insert(s, pool, e, i)", "pool.expert_in[0] = 1_000_000"),
    "pool.pool_of": ("on_insert(s, pool, e, i)", "pool.pool_of[e] = 1_000_000"),
    "pool.used": ("on_insert(s, pool, e, i)", "pool.used[0] = -1_000_000"),
    "pool.clock": ("on_insert(s, pool, e, i)", "pool.clock[0] = 0"),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_hooks_may_only_read_they_cannot_write(tmp_path, what):
    """Refused by the compiler, with the line; and where hooks run as plain Python too."""
    file = tmp_path / "writes.py"
    hook, line = WRITES[what]
    method = f"    @staticmethod\n    def {hook}:\n        {line}\n"
    file.write_text("from uvmsim.policies.lru import LRU\n\n\nclass P(LRU):\n" + method)
    with pytest.raises(InputError, match=r"line 7 of writes\.py writes to an array that hooks may"):
        plan_of(generate(1), f"{file}:P", slots=6)
    state = "    def state(self, ctx):\n        return {}\n"  # what Numba cannot compile
    file.write_text(
        "from uvmsim.policies.base import Eviction\n\n\nclass P(Eviction):\n" + method + state
    )
    with pytest.raises(InputError, match="read"):
        plan_of(generate(1), f"{file}:P", slots=6)


def test_what_page_hooks_may_only_read_they_cannot_write(tmp_path):
    file = tmp_path / "writes.py"
    file.write_text(
        "from uvmsim.policies.pages.base import DEFAULT, PagePolicy\n\n\n"
        "class P(PagePolicy):\n    @staticmethod\n    def block_access(s, d, chunk):\n"
        "        d.block_of[chunk] = 1_000_000_000\n        return DEFAULT\n"
    )
    with pytest.raises(InputError, match=r"line 7 of writes\.py writes to an array that hooks may"):
        microbench(Microbench(vram="128MiB", ratios=(1.05,), passes=1, policies=(f"{file}:P",)))


def test_an_index_outside_an_array_in_a_helper_is_an_error_too(tmp_path):
    """Bounds are checked in all of a user's code, not in hooks alone."""
    (tmp_path / "helper.py").write_text(
        "from numba import njit\n\n\n@njit\ndef oldest(a, i):\n    return a[i]\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(
        "from helper import oldest\nfrom uvmsim.policies.lru import LRU\n\n\nclass P(LRU):\n"
        "    @staticmethod\n    def on_insert(s, pool, e, i):\n"
        "        oldest(pool.slot_of, 1_000_000)\n"
    )
    with pytest.raises(InputError, match=r"outside|out of bounds"):
        plan_of(generate(1), f"{file}:P", slots=6)
