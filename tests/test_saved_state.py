"""What policies have learned, saved and given: equal to going on, and refused where it does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import naive
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routing import Case, assert_same, cases, generate, naive_of, settings_for

import uvmsim
from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.experts.decisions import Decisions
from uvmsim.mechanisms import mechanism
from uvmsim.policies import saved
from uvmsim.policies.registry import parse
from uvmsim.policies.saved import Shape, read_state, write_state

POLICIES = (
    "learned:warm=0",
    "learned:warm=30",
    "lru+learned-next:theta=0.3",
    "learned:warm=5+learned-next:theta=0.2:ahead=2:n=3",
)


def shape_of(case: Case) -> Shape:
    return Shape("test-model", len(case.layers), case.n_experts, case.top_k)


def learn(case: Case, policy: str, path: Path, **how):
    """The state of a run in a file, read back."""
    decisions = Decisions(case.job(policy, **how))
    decisions.serve_all()
    write_state(path, shape_of(case), decisions.saved())
    return read_state(path, shape_of(case))


def continued(first: Case, then: Case, policy: str, how: dict, more: dict) -> naive.Outcome:
    """The reference serves one trace, and then the other with what it has learned."""
    made: list = []

    def kept(cls, before=()):
        def make(world):
            policy = cls(world)
            for old in before:
                if type(old) is cls:
                    policy.begin(old)
            made.append(policy)
            return policy

        return make

    names = {"learned": naive.EVICT, "learned-next": naive.FETCH}
    with pytest.MonkeyPatch.context() as patch:
        classes = {name: table[name] for name, table in names.items()}
        for name, table in names.items():
            patch.setitem(table, name, kept(classes[name]))
        naive_of(first, policy, **how)
        last = [[p for p in made if type(p) is cls][-1:] for cls in classes.values()]
        before = [p for found in last for p in found]
        for name, table in names.items():
            patch.setitem(table, name, kept(classes[name], before))
        return naive_of(then, policy, **more)


@pytest.mark.parametrize("policy", POLICIES)
def test_given_is_going_on_without_history(policy, tmp_path):
    @settings(
        max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.data())
    def check(data):
        first = data.draw(cases(max_decode=30))
        then = generate(
            data.draw(st.integers(0, 99)), layers=len(first.layers), experts=first.n_experts,
            top_k=first.top_k, decode=20, prefill=data.draw(st.integers(0, 5)),
            together=data.draw(st.booleans()),
        )  # fmt: skip
        how, more = (data.draw(settings_for(case)) for case in (first, then))
        state = learn(first, policy, tmp_path / "S", **how)
        plan = mechanism("expert-cache").plan(then.job(policy, state=state, **more))
        assert_same(then, plan, continued(first, then, policy, how, more))

    check()


def test_given_is_going_on_on_a_longer_trace(tmp_path):
    first, then = (
        generate(seed, layers=4, experts=16, top_k=3, sequences=3, decode=50, prefill=10)
        for seed in (3, 4)
    )
    policy = "learned+learned-next:theta=0.3"
    state = learn(first, policy, tmp_path / "S", slots=16)
    plan = mechanism("expert-cache").plan(then.job(policy, state=state, slots=16))
    assert_same(then, plan, continued(first, then, policy, {"slots": 16}, {"slots": 16}))
    cold = mechanism("expert-cache").plan(then.job(policy, slots=16))
    assert plan.hit.tolist() != cold.hit.tolist()


def test_holds_every_array_to_the_last_bit(tmp_path):
    case = generate(5, layers=3, experts=9, top_k=2)
    decisions = Decisions(case.job("learned+learned-next", slots=8))
    decisions.serve_all()
    write_state(tmp_path / "S", shape_of(case), decisions.saved())
    found = read_state(tmp_path / "S", shape_of(case)).saved
    assert [s.policy for s in found] == ["learned", "learned-next"]
    for was, now in zip(decisions.saved(), found, strict=True):
        assert was.parameters == now.parameters and was.slots == now.slots == 8
        assert was.arrays.keys() == now.arrays.keys()
        for name, a in was.arrays.items():
            assert a.dtype == now.arrays[name].dtype
            np.testing.assert_array_equal(a, now.arrays[name])


def test_the_nearest_size_is_taken(tmp_path):
    case = generate(5, layers=3, experts=9, top_k=2)
    runs = []
    for slots in (6, 12, 24):
        decisions = Decisions(case.job("learned", slots=slots))
        decisions.serve_all()
        runs += decisions.saved()
    write_state(tmp_path / "S", shape_of(case), runs)
    state = read_state(tmp_path / "S", shape_of(case))
    for slots, nearest in ((7, 0), (14, 1), (27, 2)):
        job = case.job("learned", slots=slots, state=state)
        warm = Decisions(job)
        warm.serve(1)
        w = runs[nearest].arrays["w"]
        moved = warm.saved()[0].arrays["w"]
        assert np.abs(moved - w).max() <= min(
            np.abs(moved - other.arrays["w"]).max() for other in runs
        )


# ---- what is refused --------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    case = generate(5, layers=3, experts=9, top_k=2)
    learn(case, "learned:tau=3", tmp_path / "S", slots=8)
    return case, tmp_path / "S"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (Shape("other", 3, 9, 2), "learned on test-model .* this trace is of other"),
        (Shape("test-model", 4, 9, 2), "3 MoE layers .* this trace is of .*4 MoE layers"),
        (Shape("test-model", 3, 8, 2), "x 9 experts, .* x 8 experts"),
        (Shape("test-model", 3, 9, 3), "top-2.*top-3"),
    ],
)
def test_another_model_is_refused(made, other, says):
    with pytest.raises(InputError, match=says):
        read_state(made[1], other)


def test_other_parameters_are_refused_and_those_of_no_matter_are_not(made):
    case, path = made
    state = read_state(path, shape_of(case))
    with pytest.raises(InputError, match=r"with tau=3\.0, and this is learned with tau=0"):
        mechanism("expert-cache").plan(case.job("learned", slots=8, state=state))
    mechanism("expert-cache").plan(case.job("learned:tau=3:rate=0.1", slots=8, state=state))


def test_another_version_is_refused(made, monkeypatch):
    case, path = made
    state = read_state(path, shape_of(case))
    monkeypatch.setattr(type(parse("learned").eviction), "knowledge_version", 2)
    with pytest.raises(InputError, match="holds version 1 of learned, and this is version 2"):
        mechanism("expert-cache").plan(case.job("learned:tau=3", slots=8, state=state))
    monkeypatch.setattr(saved, "VERSION", 2)
    with pytest.raises(InputError, match="of version 1, this uvmsim reads 2"):
        read_state(path, shape_of(case))


def test_damaged_files_are_one_line(made):
    """Every cut, and a change of every 97th byte: refused, or the same as before."""
    case, path = made
    whole = path.read_bytes()
    was = read_state(path, shape_of(case)).saved
    for at in range(0, len(whole), 97):
        for bad in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            path.write_bytes(bad)
            try:
                now = read_state(path, shape_of(case)).saved
            except InputError as err:
                assert "\n" not in str(err)
                continue
            for one, two in zip(was, now, strict=True):
                for name, a in one.arrays.items():
                    np.testing.assert_array_equal(a, two.arrays[name])


@pytest.mark.parametrize(
    ("array", "value", "says"),
    [
        ("w", np.nan, "w of learned has numbers that are not finite"),
        ("gradient", -1, "that no run ends with"),
        ("turn", -1, "that no run ends with"),
        ("last", 1 << 30, "that no run ends with"),
        ("learned", -1, "fewer than no tokens"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(made, array, value, says, tmp_path):
    case, path = made
    (state,) = read_state(path, shape_of(case)).saved
    state.arrays[array].flat[0] = value
    write_state(tmp_path / "bad", shape_of(case), [state])
    with pytest.raises(InputError, match=says):
        bad = read_state(tmp_path / "bad", shape_of(case))
        Decisions(case.job("learned:tau=3", slots=8, state=bad)).serve(1)


# ---- as users have it -------------------------------------------------------------------------------


@pytest.fixture
def traces(tmp_path) -> tuple[RoutingTrace, RoutingTrace]:
    found = []
    for seed in (3, 4):
        case = generate(seed, layers=4, experts=16, top_k=3, sequences=2, decode=60, prefill=0)
        case.trace.save(tmp_path / f"{seed}.arrow")
        found.append(uvmsim.open_trace(tmp_path / f"{seed}.arrow"))
    return found[0], found[1]


@dataclass
class Ran:
    exit_code: int
    output: str


def run(*arguments: str) -> Ran:
    """The command line in a process of its own."""
    words = [sys.executable, "-c", "from uvmsim.cli import main; main()", *arguments]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    return Ran(done.returncode, done.stdout + done.stderr)


def test_compare_saves_and_gives(traces, tmp_path):
    one, two = (str(t.path) for t in traces)
    state = str(tmp_path / "S")
    common = ("--json", "--slots", "25%,50%", "--policy", "lru,learned")
    assert run("compare", one, *common, "--state-out", state).exit_code == 0
    cold = json.loads(run("compare", two, *common).output)["runs"]
    warm = json.loads(run("compare", two, *common, "--state", state).output)["runs"]
    names = [r["policy"] for r in warm]
    assert names == ["lru", "learned", "learned (warm)"] * 2
    assert [r for r in warm if r["policy"] != "learned (warm)"] == cold
    for before, after in zip(warm[1::3], warm[2::3], strict=True):
        assert after["over_cold"]["hits"] == after["hits"] - before["hits"]
        speed = after["decode_tokens_per_s"] - before["decode_tokens_per_s"]
        assert after["over_cold"]["decode_tokens_per_s"] == pytest.approx(speed)
    shown = run("compare", two, *common[1:], "--state", state).output
    assert "learned (warm)" in shown and "over cold" in shown


def test_saving_what_went_on_is_learning_both(traces, tmp_path):
    """A state that was given, and saved again, is that of the warm run."""
    one, two = traces
    file, again = tmp_path / "S", tmp_path / "S2"
    asked = uvmsim.Scenario(policies="learned", slots=16, expert_size="1MB")
    asked.with_(trace=one, state_out=file).compare()
    asked.with_(trace=two, state=file, state_out=again).compare()
    asked.with_(trace=two, state=file, state_out=file).compare()
    assert file.read_bytes() == again.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_mistakes_are_one_line_and_nothing_is_written(traces, tmp_path):
    one, two = (str(t.path) for t in traces)
    before = Path(two).read_bytes()
    state = str(tmp_path / "S")
    assert (
        run("compare", one, "--policy", "learned", "--state-out", state, "--slots", "16").exit_code
        == 0
    )
    for arguments, says in (
        (("--policy", "lru", "--state-out", state), "nothing to save: lru learns nothing"),
        (("--policy", "lru", "--state", state), "holds learned, and none of the policies is that"),
        (("--policy", "learned", "--state", two), "is no saved state of policies"),
        (("--policy", "learned", "--state-out", two), "is no saved state of policies"),
        (("--policy", "learned", "--state", state + "x"), "no such file"),
        (("--policy", "learned:tau=5", "--state", state), "holds learned with tau=0"),
    ):
        found = run("compare", one, *arguments)
        assert found.exit_code == 2 and says in found.output, found.output
        assert found.output.count("error:") == 1 and "Traceback" not in found.output
    assert Path(two).read_bytes() == before


def test_replay_goes_on_too(traces, tmp_path):
    one, two = traces
    asked = uvmsim.Scenario(policies="learned", slots=16, expert_size="1kB")
    asked.with_(trace=one, state_out=tmp_path / "S").compare()
    warm = asked.with_(trace=two, state=tmp_path / "S")
    found = warm.with_(limit=20, expert_size=None).replay(backend="host")
    assert [r.status for r in found.runs] == ["ok"]
    assert [r.policy for r in found.runs] == ["learned (warm)"]
    simulated = warm.with_(limit=20).compare().runs
    assert found.runs[0].counters.hits == simulated[1].counters.hits


USER = '''
from typing import NamedTuple
import numpy as np
from uvmsim.policies.base import Eviction, in_use

class State(NamedTuple):
    uses: np.ndarray

class Favourites(Eviction):
    """Evict the least used."""
    def state(self, ctx):
        return State(np.zeros(ctx.n_total))
    def knowledge(self, s):
        return {"uses": s.uses}
    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.uses[e] += 1
    @staticmethod
    def victim(s, pool, p):
        best = -1
        for slot in range(pool.lo[p], pool.lo[p + 1]):
            e = pool.expert_in[slot]
            if not in_use(pool, e) and (best < 0 or s.uses[e] < s.uses[best]):
                best = e
        return best
'''


def test_a_policy_of_ones_own_needs_one_method(traces, tmp_path):
    one, two = (str(t.path) for t in traces)
    (tmp_path / "mine.py").write_text(USER)
    policy, state = f"{tmp_path}/mine.py:Favourites", str(tmp_path / "S")
    assert (
        run("compare", one, "--slots", "16", "--policy", policy, "--state-out", state).exit_code
        == 0
    )
    (found,) = pa.ipc.open_file(state).read_all().to_pylist()
    ids, n = uvmsim.open_trace(one), 16
    uses = np.zeros(4 * n)
    for layer, row in zip(ids.layer, ids.experts, strict=True):  # layers are numbered from 0 here
        uses[layer * n + row] += 1
    assert (np.frombuffer(found["data"]) == uses).all() and found["policy"] == "Favourites"
    warm = json.loads(
        run("compare", two, "--slots", "16", "--policy", policy, "--state", state, "--json").output
    )
    assert [r["policy"] for r in warm["runs"]] == [policy, f"{policy} (warm)"]
