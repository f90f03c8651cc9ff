"""`traces.routing.batches` and `drafts` against lists, and what `compare` and `mrc` make of them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import naive_decoding
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import generate

import uvmsim
from traces.errors import InputError
from traces.export.routing import export_routing
from traces.files.schema import DECODE, REJECTED
from traces.routing import RoutingTrace, open_routing
from traces.routing.batches import batched
from traces.routing.check import check
from traces.routing.drafts import Draft, drafted
from traces.routing.step_counts import step_counts
from uvmsim.commands.compare import compare as compare_command
from uvmsim.commands.mrc import mrc as mrc_command
from uvmsim.workload import build_workload

Token = tuple[int, int]
SIZE = {"expert_size": "1MB", "slots": "50%"}


def uneven(seed: int, lengths: list[tuple[int, int]], **more) -> RoutingTrace:
    """Sequences one after the other, of so many prompt and decoded tokens each."""
    longest = generate(
        seed, sequences=len(lengths), prefill=max(p for p, _ in lengths),
        decode=max(d for _, d in lengths), **more,
    ).trace  # fmt: skip
    keep = np.zeros(longest.n_rows, bool)
    for s, (prompt, answer) in enumerate(lengths):
        mine = longest.seq == s
        first = longest.phase == 0
        keep |= mine & first & (longest.pos < prompt)
        start = max(p for p, _ in lengths)
        keep |= mine & ~first & (longest.pos < start + answer)
    t = longest.take(np.flatnonzero(keep))
    # Positions without the gap that a shorter prompt leaves.
    for s, (prompt, _) in enumerate(lengths):
        late = (t.seq == s) & (t.phase == DECODE)
        t.pos[late] -= max(p for p, _ in lengths) - prompt
    return t


def as_lists(t: RoutingTrace) -> list[list[tuple[int, list[Token]]]]:
    """By sequence: (phase, tokens) of each step."""
    first = t.layer == t.layers[0]
    rows = zip(*(c[first].tolist() for c in (t.seq, t.step, t.phase, t.pos)), strict=True)
    found: dict[int, dict[int, tuple[int, list[Token]]]] = {}
    for seq, step, phase, pos in rows:
        found.setdefault(seq, {}).setdefault(step, (phase, []))[1].append((seq, pos))
    return [list(steps.values()) for steps in found.values()]


def passes(t: RoutingTrace, layer: int | None = None) -> list[list[Token]]:
    """Tokens of each step, as a layer's rows have them."""
    mine = t.layer == (t.layers[0] if layer is None else layer)
    rows = zip(*(c[mine].tolist() for c in (t.step, t.seq, t.pos)), strict=True)
    return [[(s, p) for _, s, p in group] for _, group in groupby(rows, key=lambda r: r[0])]


def routing_of(t: RoutingTrace) -> dict[tuple[int, int, int], list[int]]:
    rows = zip(*(c.tolist() for c in (t.seq, t.pos, t.layer, t.experts)), strict=True)
    return {(s, p, layer): ids for s, p, layer, ids in rows}


lengths = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=2, max_size=6).filter(
    lambda x: all(p + d for p, d in x) and any(d for _, d in x)
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), lengths, st.integers(2, 7), st.booleans())
def test_batches_are_the_lists(seed, lengths, batch, missing) -> None:
    t = uneven(seed, lengths, missing=0.2 if missing else 0.0)
    made, notes = batched(t, batch)
    want = naive_decoding.batches(as_lists(t), batch)
    for layer in t.layers:
        assert passes(made, layer) == want
    assert routing_of(made) == routing_of(t) and made.n_rows == t.n_rows
    assert bool(notes) == (len(lengths) < batch)
    assert not [f for f in check(made) if f.severity == "error" and f.code != "dummy-rows"]
    # What the simulator serves is the union of the tokens' sets.
    own = routing_of(t)
    w = build_workload(made)
    layers = len(t.layers)
    for e in range(w.n_events):
        tokens = want[w.event_step[e]]
        union = set()
        for s, p in tokens:
            union |= set(own[s, p, t.layers[w.event_layer[e]]]) - {-1}
        ids = w.ids[w.event_lo[e] : w.event_lo[e + 1]] - w.event_layer[e] * w.n_experts
        assert sorted(ids.tolist()) == sorted(union)
    assert w.n_events == len(want) * layers


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 99), lengths, st.integers(1, 4), st.sampled_from([0.0, 0.4, 0.8, 1.0]),
    st.sampled_from(["true", "random"]), st.integers(1, 3),
)  # fmt: skip
def test_drafts_are_the_lists(seed, lengths, k, rate, reject, batch) -> None:
    t = uneven(seed, lengths)
    made = drafted(t, Draft(k, rate), seed=seed, reject=reject)
    assert made.draft is not None
    kept = np.random.default_rng(seed).random(t.n_tokens) < rate
    _, first = np.unique(t.token_index, return_index=True)
    names = zip(t.seq[first].tolist(), t.pos[first].tolist(), strict=True)
    accepted = dict(zip(names, kept.tolist(), strict=True))
    sequences = [naive_decoding.drafts(s, k, accepted) for s in as_lists(t)]
    want = [step for s in sequences for _, step in s]
    assert passes(made) == [[token for token, _ in step] for step in want]
    top = made.layer == made.layers[0]
    assert made.draft[top].tolist() == [mark for step in want for _, mark in step]
    # Every token is kept once, with its own routing.
    true = made.take(np.flatnonzero(made.draft != REJECTED))
    assert true.n_rows == t.n_rows and routing_of(true) == routing_of(t)
    lost = made.take(np.flatnonzero(made.draft == REJECTED))
    own = routing_of(t)
    if reject == "true":
        assert all(own[key] == ids for key, ids in routing_of(lost).items())
    else:  # a whole decoded token's
        decoded = t.dense.ids[t.dense.phase == DECODE].tolist()
        assert all(ids in decoded for ids in lost.dense.ids.tolist())
    assert not [f for f in check(made) if f.severity == "error" and f.code != "dummy-rows"]
    # Side by side they go on as before.
    both = batched(made, batch)[0]
    steps = [[(phase, list(step)) for phase, step in s] for s in sequences]
    together = naive_decoding.batches(steps, batch)
    assert passes(both) == [[token for token, _ in one] for one in together]
    counts = step_counts(both)
    assert counts.emitted.tolist() == [sum(m != 2 for _, m in one) for one in together]
    assert counts.sequences.tolist() == [len({s for (s, _), _ in one}) for one in together]
    assert counts.drafts.tolist() == [
        max(sum(m > 0 for (s, _), m in one if s == q) for (q, _), _ in one) for one in together
    ]
    assert counts.held.tolist() == [
        sum(1 + max(p for (s, p), _ in one if s == q) for q in {s for (s, _), _ in one})
        for one in together
    ]


def test_a_higher_rate_keeps_what_a_lower_one_kept_and_means_come_out() -> None:
    t = generate(3, sequences=1, prefill=1, decode=15000, layers=1).trace
    before = 0
    for rate in (0.6, 0.8, 0.9):
        draft = Draft(3, rate)
        made = drafted(t, draft, seed=5)
        steps = build_workload(made).n_steps - 1
        assert steps < before or not before
        before = steps
        assert 15000 / steps == pytest.approx(draft.expected, rel=0.02)
        assert draft.expected == pytest.approx((1 - rate**4) / (1 - rate))
    again = drafted(t, Draft(3, 0.9), seed=5)
    assert again.sha256 == made.sha256 != drafted(t, Draft(3, 0.9), seed=6).sha256


def test_batch_one_without_drafts_is_the_trace() -> None:
    t = uneven(1, [(3, 5), (2, 4)])
    assert batched(t, 1)[0] is t
    plain = uvmsim.Scenario(t, policies=["lru", "learned"], **SIZE).compare()
    same = uvmsim.Scenario(t, policies=["lru", "learned"], batch=1, draft="0", **SIZE).compare()
    for a, b in zip(plain, same, strict=True):
        a, b = a.to_json(), b.to_json()
        assert {k: b[k] for k in a} == a
        assert b["batch"] == 1 and b["draft"] == "0" and b["tokens_per_step"] == 1.0
        assert b["sequence_tokens_per_s"] == b["decode_tokens_per_s"]


def test_recorded_batches_are_taken_apart() -> None:
    mixed = generate(4, sequences=3, prefill=2, decode=5, together=True).trace
    assert "mixed-steps" in {f.code for f in check(mixed)}
    apart, notes = batched(mixed, 1)
    assert "mixed-steps" not in {f.code for f in check(apart)} and "taken apart" in notes[0]
    assert routing_of(apart) == routing_of(mixed)
    assert max(len({s for s, _ in one}) for one in passes(apart)) == 1
    assert drafted(mixed, Draft(1, 1.0)).n_rows == mixed.n_rows


def test_drafts_survive_files(tmp_path: Path) -> None:
    t = batched(drafted(uneven(2, [(2, 6), (0, 5), (1, 4)]), Draft(2, 0.5), seed=1), 2)[0]
    path = tmp_path / "d.arrow"
    t.save(path)
    back = open_routing(path)
    assert back.sha256 == t.sha256 == back.recorded_sha256 and back.draft is not None
    export_routing(back, tmp_path / "d.parquet")
    assert open_routing(tmp_path / "d.parquet").sha256 == t.sha256
    assert "draft" in export_routing(back, tmp_path / "d.csv")["notes"][0]
    bad = RoutingTrace(t.columns | {"draft": np.full(t.n_rows, 3, np.uint8)}, t.meta)
    with pytest.raises(InputError, match="draft 3 is not 0"):
        build_workload(bad)
    # A file that says which tokens were rejected is counted right without any option.
    got = uvmsim.Scenario(str(path), policies="lru", **SIZE).compare()[0].to_json()
    assert got["decode_tokens"] == 15


def test_only_accepted_tokens_are_counted_and_drafters_take_their_time() -> None:
    t = uneven(7, [(2, 30), (2, 20), (2, 25)], experts=16)
    s = uvmsim.Scenario(t, policies="lru", draft="3:0.5", batch=[1, 2], **SIZE)
    free = [run.to_json() for run in s.compare()]
    dear = [run.to_json() for run in s.with_(draft_cost="2ms").compare()]
    share = [run.to_json() for run in s.with_(draft_cost=0.5).compare()]
    for k, batch in enumerate((1, 2)):
        a, b, c = free[k], dear[k], share[k]
        assert a["decode_tokens"] == b["decode_tokens"] == 75 and a["rejected_tokens"] > 0
        assert a["decode_tokens_per_s"] == pytest.approx(75 / (75 / a["decode_tokens_per_s"]))
        made = batched(drafted(t, Draft(3, 0.5)), batch)[0]
        counts = step_counts(made)
        assert a["decode_steps"] == int((build_workload(made).step_phase == DECODE).sum())
        assert b["time_s"] - a["time_s"] == pytest.approx(int(counts.drafts.sum()) * 2e-3)
        assert a["time_s"] < c["time_s"] and a["hits"] == b["hits"] == c["hits"]
        assert a["tokens_per_step"] == pytest.approx(75 / a["decode_steps"])
    assert free[0]["sequence_tokens_per_s"] == pytest.approx(free[0]["decode_tokens_per_s"])
    assert free[1]["sequence_tokens_per_s"] < free[1]["decode_tokens_per_s"]
    both = s.with_(draft_cost="2ms", batch=2)
    clocks = [both.with_(engine=e).compare()[0].to_json() for e in ("fast", "des")]
    assert clocks[0] == clocks[1]


def test_a_kv_cache_for_every_sequence() -> None:
    t = uneven(8, [(2, 9), (3, 8), (1, 7)])
    base = uvmsim.Scenario(t, policies="lru", batch=3, **SIZE)
    job = base.compare()[0].job
    held = batched(t, 3)[0]
    assert (
        job.ctx == int(step_counts(held).held.max()) == 27
    )  # the longest, where all three are done
    assert base.with_(ctx=99).compare()[0].job.ctx == 99


def test_replay_runs_what_is_simulated() -> None:
    t = uneven(9, [(2, 6), (2, 5), (1, 6)])
    s = uvmsim.Scenario(t, policies="lru", batch=2, draft="2:0.6", expert_size="4KB", slots="50%")
    run = s.replay(backend="host")[0]
    want = s.compare()[0].to_json()
    got = run.to_json()
    assert run.status == "ok"
    keys = ("hits", "misses", "bytes_h2d", "decode_tokens", "tokens_per_step", "rejected_tokens")
    assert {k: got[k] for k in keys} == {k: want[k] for k in keys}
    with pytest.raises(InputError, match="draft_cost: a replay runs no drafter"):
        s.with_(draft_cost="1ms").replay(backend="host")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("decoding")
    several, one = folder / "several.arrow", folder / "one.arrow"
    t = uneven(5, [(2, 12), (2, 9), (1, 11)])
    t.save(several)
    t.take(np.flatnonzero(t.seq == 0)).save(one)
    return str(several), str(one)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "0"], "--batch 0: give a number of sequences, 1 or more"),
        (["--batch", "two"], "--batch two: give whole numbers"),
        (["--draft", "3"], "--draft 3: give drafts a step and their acceptance, as in 3:0.8; 0: none"),
        (["--draft", "3:1.2"], "--draft 3:1.2: acceptance is a share, 0 to 1"),
        (["--draft", "3:-0.1"], "--draft 3:-0.1: acceptance is a share, 0 to 1"),
        (["--draft", "3:nan"], "--draft 3:nan: acceptance is a share, 0 to 1"),
        (["--draft", "-1:0.5"], "--draft -1:0.5: give drafts a step"),
        (["--draft", "65:0.5"], "--draft 65:0.5: at most 64 drafts a step"),
        (["--draft", "2:0.5", "--draft-reject", "no"], "--draft-reject no: must be true or random"),
        (["--draft", "2:0.5", "--draft-cost", "-1"], "--draft-cost -1: give 0 or more"),
        (["--draft", "2:0.5", "--draft-cost", "x"], "--draft-cost x: give a share"),
        (["--draft", "0", "--draft-cost", "1ms"], "--draft-cost: there are no drafts; give --draft"),
        (["--batch", "2", "--reset", "sequence"], "--reset sequence: sequences of a --batch"),
        (["--batch", "2", "--mechanism", "uvm"], "--batch 2: uvm pages one sequence's KV cache"),
    ],
)  # fmt: skip
def test_refusals(files: tuple[str, str], arguments: list[str], says: str) -> None:
    given = [files[0], "--expert-size", "1MB", *arguments]
    if "uvm" not in arguments:
        given += ["--slots", "50%"]
    found = CliRunner().invoke(compare_command, given)
    assert isinstance(found.exception, InputError)
    assert says in str(found.exception)


def test_what_a_batch_needs(files: tuple[str, str]) -> None:
    several, one = files
    found = CliRunner().invoke(compare_command, [one, "--expert-size", "1MB", "--batch", "2"])
    assert "has one sequence, and a batch takes the next token of several" in str(found.exception)
    prompt = ["--expert-size", "1MB", "--slots", "50%", "--draft", "1:0.5", "--limit", "2"]
    found = CliRunner().invoke(compare_command, [one, *prompt])
    assert "no decoded tokens for --draft; use more of it (--limit)" in str(found.exception)
    twice = drafted(open_routing(several), Draft(1, 0.5))
    with pytest.raises(InputError, match="was recorded with drafts"):
        drafted(twice, Draft(1, 0.5))
    found = CliRunner().invoke(mrc_command, [several, "--batch", "2,3"])
    assert "--batch 2,3: give one" in str(found.exception)
    for study in (lambda s: s.sweep({"vram": ["1GiB"]}), uvmsim.search):
        with pytest.raises(InputError, match="takes none; compare, mrc and replay do"):
            study(uvmsim.Scenario(several, batch=2))


def test_what_the_commands_print(files: tuple[str, str]) -> None:
    several, _ = files
    run = CliRunner().invoke
    size = ["--expert-size", "1MB", "--slots", "50%", "--policy", "lru"]
    told = run(compare_command, [several, *size, "--batch", "1,2,9", "--draft", "0,2:0.7"]).output
    for part in ("batch", "draft", "each t/s", "tokens/step", "experts/layer", "2:0.7",
                 "batch 9: the trace has 3 sequences, so at most 3 run side by side",
                 "it is routed as the true token", "drafting costs nothing here"):  # fmt: skip
        assert part in told, part
    one = run(
        compare_command, [several, *size, "--batch", "2", "--draft", "1:0.5", "--draft-cost", "0.1"]
    )
    assert (
        "decoding 2 sequences side by side, 1 drafts a step, each accepted with 0.5" in one.output
    )
    assert "costs 0.1 of a forward pass" in one.output
    rows = json.loads(run(compare_command, [several, *size, "--batch", "1,2", "--json"]).output)
    assert [(r["batch"], r["draft"]) for r in rows["runs"]] == [(1, "0"), (2, "0")]
    assert rows["options"]["batch"] == [1, 2]
    curves = json.loads(run(mrc_command, [several, "--batch", "2", "--json"]).output)
    alone = json.loads(run(mrc_command, [several, "--json"]).output)
    assert curves["batch"] == 2 and "batch" not in alone
    fewer = [c["curves"][0]["accesses"] for c in (curves, alone)]
    assert fewer[0] < fewer[1]


def test_scenarios_of_batches() -> None:
    s = uvmsim.Scenario(batch=[1, 2, 2], draft=["3:0.80", "0"])
    assert s.batch == (1, 2) and s.draft == ("3:0.8", "0")
    assert uvmsim.Scenario(batch=[4]).batch == 4 and "batch=4" in repr(uvmsim.Scenario(batch=4))
    assert s == uvmsim.Scenario(batch=(1, 2), draft=("3:0.8", "0"))
    assert replace(s, batch=None).to_json().get("batch") is None
    for wrong in ({"batch": 0}, {"batch": 1.5}, {"draft": 3}, {"draft_reject": "maybe"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            uvmsim.Scenario(**wrong)
