"""Mistakes a new user makes in the first hour: each is one line, none gives a wrong number."""

import numpy as np
import pytest

import uvmsim
from traces.errors import InputError
from uvmsim.compare import Options, compare

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
    return compare(Options(policies=(spec,), slots=("25%",), limit=900))


def test_the_same_policy_without_a_mistake_is_lru(tmp_path):
    mine = run(policy(tmp_path)).runs[0].plan
    lru = run("lru").runs[0].plan
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
    result = compare(Options(policies=("lru", "fifo"), slots=("100%",), limit=900))
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
