"""`traces.routing.loops` against an obvious version, and `uvmsim trace filter` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_naive import decode_trace, random_ids

from traces import open_routing
from traces.commands.trace import trace
from traces.errors import InputError
from traces.routing import loops
from traces.routing.filter import filtered


def naive_looped(words: list[tuple[int, object]]) -> list[bool]:
    """``words``: (sequence, what) of each token."""
    out = [False] * len(words)
    for p in range(1, 129):
        size = max(2 * p, 32)
        for start in range(p, len(words) - size + 1):
            here = range(start, start + size)
            if len({words[t][0] for t in range(start - p, start + size)}) > 1:
                continue
            if sum(words[t] == words[t - p] for t in here) >= 0.8 * size:
                for t in here:
                    out[t] = True
    return out


def looping(rng, lead: int, period: int, rounds: int, noise: float = 0.0):
    """Ids [tokens, 2 layers, 2] that say something, then loop."""
    start = random_ids(rng, lead, 2, 16, 2)
    loop = np.tile(random_ids(rng, period, 2, 16, 2), (rounds, 1, 1))
    other = random_ids(rng, len(loop), 2, 16, 2)
    swap = rng.random(len(loop)) < noise
    loop[swap] = other[swap]
    return np.concatenate([start, loop])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 5), st.sampled_from((0, 0.1, 0.3)))
def test_looped_equals_the_obvious(seed, period, rounds, noise):
    rng = np.random.default_rng(seed)
    ids = [
        looping(rng, 20, period, rounds, noise),
        looping(rng, 3, 3, 12),
        random_ids(rng, 9, 2, 16, 2),
    ]
    d = decode_trace(ids, 16).dense
    words = [(int(s), frozenset(x[0].tolist())) for s, x in zip(d.seq, d.ids, strict=True)]
    assert loops.looped(d).tolist() == naive_looped(words)


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    """Sequences: 0 loops, 1 and 2 do not."""
    rng = np.random.default_rng(5)
    ids = [looping(rng, 30, 4, 20), random_ids(rng, 70, 2, 16, 2), random_ids(rng, 40, 2, 16, 2)]
    decode_trace(ids, 16).save(tmp_path / "t.arrow")
    return tmp_path / "t.arrow"


def run(*args: object, code: int = 0):
    result = CliRunner().invoke(trace, [str(a) for a in args])
    if isinstance(result.exception, InputError):
        assert code == 2  # the command line prints its one line
        return str(result.exception)
    assert result.exit_code == code, result.output
    return result.stdout


def test_stats_tell_loops(arrow: Path) -> None:
    found = json.loads(run("stats", arrow, "--json"))["traces"][0]["loops"]
    assert found["told_by"] == "first-layer experts"
    assert found["by_sequence"]["0"] > 0.6 and found["by_sequence"]["1"] == 0
    assert (found["sequences"], found["tokens"]) == (1, 110)
    assert f"by sequence: 0: {found['by_sequence']['0']:.0%}" in run("stats", arrow)


def test_filter_makes_a_clean_trace_that_says_so(arrow: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.arrow"
    assert "1 sequences (110 tokens) left out" in run("filter", arrow, "-o", out, "--no-loops")
    t = open_routing(out)
    assert sorted(set(t.seq.tolist())) == [1, 2]
    whole = open_routing(arrow)
    assert t.experts.tolist() == whole.experts[whole.seq > 0].tolist()
    assert "loops" in json.loads(run("info", out, "--json"))["extra"]["filter"]
    assert json.loads(run("stats", out, "--json"))["traces"][0]["loops"]["share"] == 0


def test_filter_by_sequence_phase_and_length(arrow: Path) -> None:
    t = open_routing(arrow)
    by_number, _ = filtered(t, sequences=(0, 2))
    assert sorted(set(by_number.seq.tolist())) == [0, 2]
    by_length, _ = filtered(t, length=(41, 80))
    assert set(by_length.seq.tolist()) == {1}
    assert filtered(t, phase="decode")[0].n_rows == t.n_rows


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--sequences", "7"), "has no such sequence; it has 0 to 2"),
        (("--length", "9-3"), "give least and most tokens"),
        (("--length", "500-"), "nothing is left"),
        (("--phase", "prefill"), "nothing is left (prefill only); ask for more"),
    ],
)
def test_what_cannot_be_is_said(arrow: Path, tmp_path: Path, options, says) -> None:
    assert says in run("filter", arrow, "-o", tmp_path / "x.arrow", *options, code=2)
    assert not (tmp_path / "x.arrow").exists()
