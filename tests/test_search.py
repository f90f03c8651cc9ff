"""Searches: traces split, candidates tried, a winner chosen, explained, written; killed and gone on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import uvmsim
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from traces.synth.whole import from_numbers
from uvmsim.commands.compare import compare as compare_command
from uvmsim.commands.search import search as command
from uvmsim.policies.base import Eviction
from uvmsim.policies.kinds import EXPERTS
from uvmsim.policies.registry import builtin, parse
from uvmsim.studies.search.explain import ablation, single, trimmed
from uvmsim.studies.search.proposals import Drawn, leads
from uvmsim.studies.search.space import Candidate, Part, Range, ranges_of, space_of
from uvmsim.studies.search.split import split
from uvmsim.studies.search.study import search
from uvmsim.studies.sweep.config import load
from uvmsim.studies.sweep.execute import sweep
from uvmsim.studies.sweep.store import read

ROOT = Path(__file__).resolve().parents[1]
BUSY = ROOT / "docs" / "examples" / "busy.py"
FEW = ["lru", "lfu", "lrfu", "layer-lru", "next-layer"]
MODEL = ModelInfo("toy", 4, (0, 1, 2, 3), 16, 2)


def toy(seed: int = 0, tokens: int = 1200, sequence: int = 100) -> RoutingTrace:
    return from_numbers(
        MODEL, seed, zipf=0.6, stickiness=0.5, topic=0.35, tokens=tokens, sequence=sequence
    )


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("search") / "toy.arrow"
    toy().save(path)
    return path


def asked(trace: Path, **fields) -> uvmsim.Scenario:
    return uvmsim.Scenario(
        trace, **({"slots": 0.25, "expert_size": "1MB", "policies": FEW} | fields)
    )


# ---- splitting ------------------------------------------------------------------------------------


def tokens_of(parts) -> list[tuple[int, int, int]]:
    return [
        tuple(x) for p in parts for x in zip(p.dense.seq.tolist(), p.dense.pos.tolist(),
                                             p.dense.step.tolist(), strict=True)
    ]  # fmt: skip


@given(st.integers(0, 50), st.integers(200, 900), st.integers(20, 900))
@settings(max_examples=15, deadline=None)
def test_parts_hold_every_token_once_and_no_sequence_twice(seed, tokens, sequence):
    t = toy(seed, tokens, sequence)
    cut = split(t)
    assert tokens_of(cut.parts) == tokens_of([t])
    seqs = [set(p.dense.seq.tolist()) for p in cut.parts]
    steps = [set(p.dense.step.tolist()) for p in cut.parts]
    assert not steps[0] & steps[1] | steps[1] & steps[2]
    if cut.by == "sequence":
        assert not seqs[0] & seqs[1] | seqs[1] & seqs[2] | seqs[0] & seqs[2]
    shares = np.array([p.n_tokens for p in cut.parts]) / tokens
    assert (shares >= [0.25, 0.125, 0.125]).all()


def test_how_a_trace_was_split_is_said():
    assert split(toy(0, 1200, 100)).by == "sequence"
    assert "split by sequence (6 train, 3 validation, 3 test)" in split(toy()).note
    assert "one sequence, so it is split by token" in split(toy(0, 600, 600)).note
    assert "too few or too uneven" in split(toy(0, 600, 500)).note
    with pytest.raises(uvmsim.InputError, match="too few to split in three"):
        split(toy(0, 100, 10))


def test_sequences_that_run_together_are_split_by_forward_pass():
    """Two users side by side: whole passes, or batches would be halved."""
    t = toy(0, 400, 200)
    columns = dict(t.columns)
    token = t.token_index
    columns["step"] = (columns["pos"]).astype(np.int32)
    order = np.lexsort((columns["seq"], columns["layer"], columns["step"]))
    together = RoutingTrace({k: v[order] for k, v in columns.items()}, t.meta)
    assert together.n_steps == 200 and len(token) == len(order)
    cut = split(together)
    assert cut.by == "token" and "run together" in cut.note
    assert all((np.bincount(p.dense.step)[p.dense.step] == 2).all() for p in cut.parts)


# ---- the space ------------------------------------------------------------------------------------


def test_the_space_is_all_that_ships_but_what_knows_the_future():
    space = space_of(None, frozenset())
    heads = {p.head for p in (*space.evictions, *space.prefetches)}
    assert heads == {n for n, c in builtin().items() if not c.needs}
    assert "belady" not in heads and "learned" in heads and "static-pin" not in heads
    more = space_of(None, {"profile", "router_scores"})
    assert {"static-pin", "score-rank"} <= {p.head for p in (*more.evictions, *more.prefetches)}
    tried = [c.text for c in leads(space)]
    assert tried[0] == "learned" and set(EXPERTS.defaults) - {"belady"} <= set(tried)


@pytest.mark.parametrize("name", sorted(builtin()))
def test_every_declared_range_holds_values_that_the_policy_takes(name):
    """Both ends of every range, alone, make a state."""
    cls = builtin()[name]
    ctx = uvmsim.Scenario(toy(0, 60, 60), slots=0.5, expert_size="1MB", policies="lru")
    from uvmsim.experts.decisions import Decisions
    from uvmsim.studies.resolve import resolve

    job = resolve(ctx).base
    for key, span in ranges_of(cls).items():
        for u in (0.0, 0.5, 1.0):
            value = span.at(u)
            text = f"{name}:{key}={value}"
            spec = parse(text if issubclass(cls, Eviction) else f"lru+{text}")
            part = spec.eviction if issubclass(cls, Eviction) else spec.prefetch
            assert getattr(part, key) == value
            if not spec.needs:
                Decisions(replace(job, policy=spec, slots=16))


@given(st.floats(1e-3, 1e6), st.floats(1.01, 1e6), st.booleans(), st.booleans(), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_range_gives_what_lies_in_it(low, ratio, log, whole, u):
    if whole:
        low, high = max(1, round(low)), max(1, round(low)) + max(1, round(ratio))
    else:
        high = low * ratio
    span = Range(low, high, log, whole)
    value = span.at(u)
    assert low <= value <= high and isinstance(value, int if whole else float)
    assert 0 <= span.share(value) <= 1
    assert span.share(low) == 0 and span.share(high) == pytest.approx(1)
    if not whole:
        assert abs(span.share(value) - u) < 0.02 * max(1, 1 / np.log(ratio))


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_what_is_drawn_is_a_policy_and_its_name_says_all_of_it(seed, moves):
    space = space_of(None, {"profile", "router_scores"})
    rng = np.random.Generator(np.random.PCG64(seed))
    c = space.drawn(rng)
    for _ in range(moves):
        c = space.near(c, rng)
    spec = parse(c.text)
    for part, made in zip(c.parts, (spec.eviction, spec.prefetch), strict=False):
        want = {k: getattr(part.piece.cls, k) for k in part.piece.ranges} | dict(part.values)
        assert {k: getattr(made, k) for k in want} == want


def test_values_that_are_named_stay(tmp_path):
    space = space_of(["lrfu:half_life=7100000", f"{BUSY}:Busy", "lru+next-layer:n=3"], frozenset())
    assert [p.head for p in space.evictions] == ["lrfu", f"{BUSY}:Busy", "lru"]
    assert [c.text for c in space.given] == [
        "lrfu:half_life=7.1e6", f"{BUSY}:Busy", "lru+next-layer:n=3",
    ]  # fmt: skip
    assert parse(space.given[0].text).eviction.half_life == 7100000
    assert space.evictions[1].ranges == {"half_life": Range(2.0, 128.0, True)}
    assert not space.evictions[0].ranges and set(space.prefetches[0].ranges) == {"online"}


def test_a_declaration_that_means_nothing_is_refused():
    class Odd(Eviction):
        """For the test."""

        name = ""
        depth: int = 3

    for told in ({"deep": (1, 2)}, {"depth": (2, 1)}, {"depth": (0, 4, "log")}, {"depth": 4}):
        Odd.search = told
        with pytest.raises(uvmsim.InputError, match=r"Odd\.search"):
            ranges_of(Odd)
    Odd.search = {"depth": [1, 5, 9]}
    assert ranges_of(Odd)["depth"].choices == (1, 5, 9)


def test_questions_follow_from_answers_alone_and_none_comes_twice():
    def asked_by(seed: int) -> list[str]:
        proposer, texts = Drawn(space_of(None, frozenset()), seed), []
        for _ in range(40):
            found = proposer.ask(20)
            texts += [c.text for c in found]
            proposer.tell({c: (0, float(len(c.text) % 7)) for c in found})
        return texts

    once = asked_by(3)
    assert once == asked_by(3) != asked_by(4)
    assert len(once) == len(set(once)) == 800
    singles = {c.text for c in space_of(None, frozenset()).defaults()}
    assert singles <= set(once)


def test_no_time_at_all_still_judges_what_is_shown(trace, tmp_path):
    found = search(asked(trace), minutes=1e-9, folder=tmp_path / "s")
    rated = {x.policy: x.scores["validation"].value for x in found.lines if not x.bound}
    assert found.trials == 0 and found.best in EXPERTS.defaults
    mine = set(EXPERTS.defaults) - {"learned"}  # which is shown, and not in this space
    assert rated[found.best] == max(rated[p] for p in mine if p in rated)
    with pytest.raises(uvmsim.InputError, match="no candidate was done in time"):
        search(asked(trace, policies=[f"{BUSY}:Busy"]), minutes=1e-9, folder=tmp_path / "t")


def test_a_small_space_comes_to_its_end(trace, tmp_path):
    found = search(asked(trace, policies=["lru", "lfu", "mru"]), trials=50, folder=tmp_path)
    assert found.trials == 3 and any("after 3 trials" in n for n in found.notes)


# ---- taking apart ---------------------------------------------------------------------------------


def winner() -> Candidate:
    space = space_of(["learned", "learned-next"], frozenset())
    learned, fetch = Part(space.evictions[0]), Part(space.prefetches[0])
    return Candidate(learned.with_("tau", 6.0).with_("warm", 32), fetch.with_("theta", 0.6))


def test_an_ablation_takes_out_one_thing_at_a_time():
    assert winner().text == "learned:tau=6:warm=32+learned-next:theta=0.6"
    assert [w.candidate.text for w in ablation(winner())] == [
        "learned:warm=32+learned-next:theta=0.6", "learned:tau=6+learned-next:theta=0.6",
        "learned:tau=6:warm=32+learned-next", "learned:tau=6:warm=32", "learned+learned-next",
        "lru+learned-next:theta=0.6",
    ]  # fmt: skip
    assert [w.candidate.text for w in ablation(Candidate(Part(winner().eviction.piece)))] == ["lru"]


def test_what_does_not_pay_is_put_back():
    worth = {"learned:tau=6:warm=32+learned-next:theta=0.6": 5.0, "learned:tau=6:warm=32": 5.0,
             "learned:tau=6": 5.5, "learned:warm=32": 4.0, "learned": 5.4}  # fmt: skip

    def value(candidates):
        return {c.text: worth.get(c.text, 1.0) for c in candidates}

    assert trimmed(winner(), 5.0, value).text == "learned"
    assert trimmed(winner(), 5.45, value).text == winner().text
    assert all(w.candidate.text != winner().text for w in single(winner()))


# ---- whole searches -------------------------------------------------------------------------------


def test_a_search_is_what_compare_says_of_its_parts(trace, tmp_path):
    """Scores are those of `compare` on the parts; the winner is the best on validation of all that were
    judged there, and no score of a test part chose it."""
    s = asked(trace)
    found = search(s, trials=30, folder=tmp_path, jobs=1)
    parts = split(uvmsim.open_trace(trace)).parts
    for line in found.lines:
        for name, part in zip(("train", "validation", "test"), parts, strict=True):
            run = uvmsim.compare(s.with_(trace=part, policies=line.policy)).to_json()["runs"][0]
            score = line.scores[name]
            assert score.hits == run["hit_rate"] and score.speed == pytest.approx(
                run["decode_tokens_per_s"], rel=1e-12
            )
    rated = {x.policy: x.scores["validation"].value for x in found.lines if not x.bound}
    assert rated[found.best] >= max(v for p, v in rated.items() if p in EXPERTS.defaults)
    assert found.trials == 30 and {x.policy for x in found.lines if x.bound} == {"belady"}
    for effect in found.effects:
        run = uvmsim.compare(s.with_(trace=parts[2], policies=effect.policy)).to_json()["runs"][0]
        assert effect.score.hits == run["hit_rate"]


def test_the_same_trials_give_the_same_bytes_whatever_runs_them(trace, tmp_path):
    s = asked(trace, slots=["25%", "50%"])
    one = search(s, trials=25, folder=tmp_path / "one", jobs=1)
    two = search(s, trials=25, folder=tmp_path / "two", jobs=2)
    told = [json.dumps(x.to_json(), sort_keys=True) for x in (one, two)]
    assert told[0] == told[1]
    again = search(s, trials=25, folder=tmp_path / "one", jobs=2)
    assert again.ran == 0 and json.dumps(again.to_json(), sort_keys=True) == told[0]
    more = search(s, trials=40, folder=tmp_path / "one", jobs=1)
    assert more.ran > 0 and more.trials == 40
    other = search(s.with_(seed=1), trials=25, folder=tmp_path / "one", jobs=1)
    assert other.to_json()["policies"] != one.to_json()["policies"] or other.best != one.best or (
        other.ran > 0
    )  # fmt: skip


def test_a_dask_cluster_finds_the_same(trace, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the dask extra")
    s = asked(trace)
    with pytest.raises(uvmsim.InputError, match="workers must see"):
        search(s, trials=4, dask="tcp://127.0.0.1:9")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        found = search(s, trials=25, folder=tmp_path / "dask", dask=cluster.scheduler_address)
    alone = search(s, trials=25, folder=tmp_path / "alone")
    assert found.to_json() == alone.to_json()


def test_hits_as_the_objective(trace, tmp_path):
    found = search(asked(trace), trials=12, objective="hits", folder=tmp_path)
    mine = {*EXPERTS.defaults, found.best} - {"learned"}  # which is shown, and not in this space
    hits = {x.policy: x.scores["validation"].hits for x in found.lines if x.policy in mine}
    del hits["belady"]
    assert hits[found.best] >= 0.999 * max(hits.values())
    assert found.lines[0].scores["validation"].value == hits[found.best]


def test_several_traces_count_the_same(trace, tmp_path):
    other = tmp_path / "other.arrow"
    toy(7, 900, 90).save(other)
    found = search(asked(trace), traces=[trace, other], trials=10, folder=tmp_path / "s")
    assert [c.name for c in found.cases] == ["toy", "other"]
    line, both = found.lines[0], []
    for path in (trace, other):
        part = split(uvmsim.open_trace(path)).parts[2]
        run = uvmsim.compare(asked(part, policies=line.policy)).to_json()["runs"][0]
        both.append(run["decode_tokens_per_s"])
    assert line.scores["test"].speed == pytest.approx(np.sqrt(both[0] * both[1]), rel=1e-9)


def test_another_trace_is_only_shown(trace, tmp_path):
    other = tmp_path / "other.arrow"
    from_numbers(
        ModelInfo("wide", 3, (0, 1, 2), 24, 3), 1, zipf=0.6, stickiness=0.5, topic=0.4, tokens=300,
        sequence=60,
    ).save(other)  # fmt: skip
    plain = search(asked(trace), trials=10, folder=tmp_path / "a")
    found = search(asked(trace), trials=10, folder=tmp_path / "b", transfer=[other])
    assert found.best == plain.best
    (case, lines), = found.transfers  # fmt: skip
    assert case.shares == found.cases[0].shares == ("25%",)
    run = uvmsim.compare(asked(other, policies=found.best)).to_json()["runs"][0]
    assert lines[0].scores["transfer"].hits == run["hit_rate"] and run["slots"] == 18


def test_a_users_own_policy_and_its_parameters(trace, tmp_path):
    found = search(asked(trace, policies=[f"{BUSY}:Busy"]), trials=8, folder=tmp_path)
    tried = set(read(tmp_path / "rows")["policy"].to_pylist())
    assert sum(p.startswith(f"{BUSY}:Busy:half_life=") for p in tried) >= 6
    assert "busy.py" in found.best or found.best in EXPERTS.defaults


def test_what_cannot_be_run_is_said_and_left_out(trace, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from uvmsim.policies.lru import LRU\n"
        "from traces.errors import InputError\n\n"
        "class Picky(LRU):\n"
        '    """LRU that takes small depths only."""\n'
        "    name = 'picky'\n"
        "    depth: int = 8\n\n"
        "    def state(self, ctx):\n"
        "        if self.depth > 8:\n"
        "            raise InputError(f'depth={self.depth} is too deep')\n"
        "        return super().state(ctx)\n"
    )
    found = search(asked(trace, policies=[f"{mine}:Picky"]), trials=30, folder=tmp_path / "s")
    assert any("could not be run" in n and "too deep" in n for n in found.notes)
    assert parse(found.best).eviction.depth <= 8


# ---- the command ----------------------------------------------------------------------------------


def run(*words: object) -> str:
    done = CliRunner().invoke(command, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_winner_runs_as_pasted_and_as_a_file(trace, tmp_path):
    out = tmp_path / "found"
    words = [trace, "--slots", "25%", "--expert-size", "1MB", "--policy", ",".join(FEW)]
    shown = run(*words, "--trials", 12, "--out", out)
    told = json.loads(run(*words, "--trials", 12, "--out", out, "--json"))
    line = next(x for x in shown.splitlines() if x.startswith("uvmsim compare"))
    assert [line] == told["commands"]
    assert f"> {told['best']} (found)" in shown or told["best"] in shown
    pasted = CliRunner().invoke(compare_command, [*shlex.split(line)[2:], "--json"])
    assert pasted.exit_code == 0, pasted.output
    whole = json.loads(pasted.stdout)["runs"][0]
    assert whole["policy"] == told["best"] and whole["slots"] == 16
    config = load(out / "best.toml", (str(trace),))
    assert config.policy == [told["best"]] and tomllib.loads((out / "best.toml").read_text())
    done = sweep(config, tmp_path / "rows")
    row = read(tmp_path / "rows").to_pylist()[0]
    assert done.ok == 1 and row["decode_tokens_per_s"] == whole["decode_tokens_per_s"]


def test_mistakes_are_one_line(trace, tmp_path):
    for words, told in (
        (["--objective", "speed"], "--objective speed: must be tokens or hits"),
        (["--policy", "belady"], "--policy belady: knows the future"),
        (["--policy", "next-layer"], "only prefetch"),
        (["--policy", "lfru2"], "not known"),
        (["--minutes", "0"], "--minutes 0: give minutes above 0"),
        (["--trials", "0"], "--trials 0: give 1 or more"),
        (["--slots", "1"], "smaller than the 2 experts"),
        (["--hardware", "rtx4090,rtx5090", "--slots", "25%"], "give one"),
        (["--limit", "50"], "too few to split"),
    ):
        full = [str(trace), "--expert-size", "1MB", "--out", str(tmp_path / "x"), *words]
        done = CliRunner().invoke(command, full)
        assert isinstance(done.exception, uvmsim.InputError), (words, done.output)
        assert told in str(done.exception) and "\n" not in str(done.exception)


def test_no_gpu_is_one_line(trace, tmp_path):
    found = search(asked(trace), trials=4, folder=tmp_path)
    proof = found.prove()
    if proof.replays is None:
        assert proof.to_json()["status"] == "not run" and "\n" not in proof.why_not
    small = search(asked(trace, expert_size="1KB"), trials=4, folder=tmp_path)
    proof = small.prove("host")
    assert proof.replays is not None and not proof.replays.problems
    assert proof.replays[0].policy == small.best


KILLED = """
import sys, uvmsim
s = uvmsim.Scenario(sys.argv[1], slots=0.25, expert_size="1MB", policies={few!r})
if __name__ == "__main__":
    uvmsim.search(s, trials=60, folder=sys.argv[2], jobs=1)
"""


def test_a_killed_search_goes_on(trace, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(few=FEW))
    folder = tmp_path / "s"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(trace), str(folder)], env=environment
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and len(list((folder / "rows").glob("rows-*.parquet"))) < 5:
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read(folder / "rows").num_rows
    assert kept >= 5
    on = search(asked(trace), trials=60, folder=folder)
    fresh = search(asked(trace), trials=60, folder=tmp_path / "fresh")
    assert on.ran == fresh.ran - kept
    assert on.to_json() == fresh.to_json()


def test_on_the_bundled_trace_it_beats_what_compare_shows(tmp_path):
    found = search(trials=20, folder=tmp_path, jobs=2)
    rated = {x.policy: x.scores["test"].value for x in found.lines if not x.bound}
    shown = max(rated[p] for p in EXPERTS.defaults if p in rated)
    assert rated[found.best] >= shown
