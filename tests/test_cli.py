"""The command line as a stranger meets it: one line for every mistake, one object for --json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from routing import generate

from traces.samples import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
ENTRY = "import sys; from uvmsim.cli import main; sys.argv[0] = 'uvmsim'; main()"
CASE = generate(12, layers=3, experts=8, top_k=2, sequences=2, decode=12)


def uvmsim(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments],
        env=env, cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("cli") / "t.arrow"
    CASE.trace.save(path)
    return str(path)


@pytest.fixture(scope="module")
def compared(trace) -> dict:
    done = uvmsim("compare", trace, "--slots", "8,50%", "--policy", "lru,lru+next-layer,belady",
                  "--mechanism", "expert-cache", "--mechanism", "resident", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where nobody watches
    return json.loads(done.stdout)


def test_json_has_what_was_promised(compared):
    t = compared["trace"]
    assert (t["layers"], t["experts"], t["top_k"], t["missing_rows"]) == (3, 8, 2, 0)
    assert t["sequences"] == 2
    assert t["tokens"] == t["prefill_tokens"] + t["decode_tokens"] == 2 * (12 + 4)
    assert len(t["sha256"]) == 64
    runs = compared["runs"]
    assert [(r["mechanism"], r["policy"], r["slots"]) for r in runs] == [
        ("expert-cache", "lru", 8), ("expert-cache", "lru+next-layer", 8),
        ("expert-cache", "belady", 8), ("expert-cache", "lru", 12),
        ("expert-cache", "lru+next-layer", 12), ("expert-cache", "belady", 12),
        ("resident", None, 24),
    ]  # fmt: skip
    for r in runs:
        assert set(r) >= {
            "policy", "accesses", "hits", "misses", "hit_rate", "bytes_h2d", "bytes_d2h",
            "prefetch", "time_s", "tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s",
        }  # fmt: skip
        assert set(r["prefetch"]) >= {"useful", "late", "wasted"}
        assert r["hits"] + r["misses"] == r["accesses"]
        assert r["hit_rate"] == r["hits"] / r["accesses"]
        assert r["tokens_per_s"] == pytest.approx(t["tokens"] / r["time_s"])
        assert all(r[f"{p}_tokens_per_s"] > 0 for p in ("prefill", "decode"))
    assert runs[2]["misses_over_belady"] == 1.0
    assert runs[0]["misses_over_belady"] == runs[0]["misses"] / runs[2]["misses"] >= 1.0


def test_json_counts_are_the_reference_s(compared):
    from routing import naive_of

    for r in compared["runs"][:-1]:
        want = naive_of(CASE, r["policy"], slots=r["slots"])
        assert (r["accesses"], r["hits"]) == (len(want.hit), sum(want.hit))
        assert r["evictions"] == want.evictions
        assert r["prefetch"]["wasted"] == want.wasted
        assert r["prefetch"]["useful"] + r["prefetch"]["late"] == want.used


def test_both_engines_print_the_same(trace):
    out = [
        json.loads(uvmsim("compare", trace, "--slots", "8", "--policy", "lru", "--engine", e,
                          "--json").stdout)["runs"]
        for e in ("fast", "des")
    ]  # fmt: skip
    assert out[0] == out[1]


def test_the_table_has_a_line_a_policy(trace):
    done = uvmsim("compare", trace, "--slots", "8", "--policy", "lru", "--policy", "belady")
    assert done.returncode == 0
    for word in ("lru", "belady"):
        assert any(word in line for line in done.stdout.splitlines())


def test_limit_cuts_the_trace(trace):
    done = uvmsim("compare", trace, "--slots", "8", "--policy", "lru", "--limit", "3", "--json")
    assert json.loads(done.stdout)["trace"]["tokens"] == 3


def test_an_own_policy_file(trace, tmp_path):
    from test_sim_user_policy import COMPILABLE

    (tmp_path / "mine.py").write_text(COMPILABLE)
    done = uvmsim("compare", trace, "--slots", "8", "--policy", "./mine.py:MyPolicy",
                  "--policy", "lru", "--json", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    mine, lru = json.loads(done.stdout)["runs"]
    assert mine["policy"] == "./mine.py:MyPolicy"
    assert (mine["hits"], mine["time_s"]) == (lru["hits"], lru["time_s"])


def test_static_pin_learns_from_a_profile(trace):
    done = uvmsim("compare", trace, "--slots", "9", "--policy", "static-pin", "--profile", trace,
                  "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    from routing import naive_of

    want = naive_of(CASE, "static-pin", profile=CASE, slots=9)
    assert json.loads(done.stdout)["runs"][0]["hits"] == sum(want.hit)


BAD = [
    (["compare", "no-such.arrow"], ["no-such.arrow"]),
    (["compare", "{dir}/u.arrow"], ["did you mean", "t.arrow"]),
    (["compare", "{junk}"], ["junk.arrow"]),
    (["compare", "{dir}"], []),
    (["compare", "{t}", "--policy", "lru2"], ["lru2", "uvmsim policies"]),
    (["compare", "{t}", "--policy", "lru:size=3"], ["size"]),
    (["compare", "{t}", "--policy", "static-pin"], ["--profile"]),
    (["compare", "{t}", "--policy", "lru+score-rank"], ["scores"]),
    (["compare", "{t}", "--policy", "./nowhere.py:X"], ["nowhere.py"]),
    (["compare", "{t}", "--policy", "lru+next-layer:n=-1", "--slots", "8"], ["-1"]),
    (["compare", "{t}", "--slots", "1"], ["2 experts"]),
    (["compare", "{t}", "--slots", "5", "--pool", "per-layer"], ["a layer", "6"]),
    (["compare", "{t}", "--slots", "0"], ["--slots"]),
    (["compare", "{t}", "--slots", "-4"], ["--slots"]),
    (["compare", "{t}", "--slots", "lots"], ["--slots"]),
    (["compare", "{t}", "--slots", "120%"], ["--slots"]),
    (["compare", "{t}", "--slots", "nan%"], ["--slots"]),
    (["compare", "{t}", "--mechanism", "expert_cache"], ["expert-cache"]),
    (["compare", "{t}", "--pool", "local"], ["--pool", "per-layer"]),
    (["compare", "{t}", "--unit", "token"], ["--unit"]),
    (["compare", "{t}", "--reset", "daily"], ["--reset"]),
    (["compare", "{t}", "--engine", "slow"], ["--engine"]),
    (["compare", "{t}", "--hardware", "rtx509"], ["rtx5090"]),
    (["compare", "{t}", "--vram", "0"], []),
    (["compare", "{t}", "--link", "fast"], ["fast"]),
    (["compare", "{t}", "--link", "0GB/s"], []),
    (["compare", "{t}", "--model", "gpt-oss-20b"], ["experts"]),
    (["compare", "{t}", "--model", "gpt-os-20b"], ["gpt-oss-20b"]),
    (["compare", "{t}", "--expert-size", "-3MB"], []),
    (["compare", "{t}", "--limit", "0"], ["--limit"]),
    (["compare", "{t}", "--seed", "x"], ["--seed"]),
    (["compare", "{t}", "--seed", "-1", "--policy", "random", "--slots", "8"], []),
    (["compare", "{t}", "--colour"], ["--colour"]),
    (["compare", "{t}", "--profile", "{t}x"], []),
    (["compare", "{t}", "more"], []),
    (["frobnicate"], ["frobnicate"]),
    (["models", "gpt"], []),
    (["models", "{junk}"], []),
    (["hardware", "h1000"], ["h100"]),
    (["policies", "lru", "--nope"], []),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_a_mistake_is_one_line_and_exit_code_2(
    trace, tmp_path, arguments, words, capfd, monkeypatch
):
    junk = tmp_path / "junk.arrow"
    junk.write_bytes(b"not an arrow file at all")
    places = {"t": trace, "dir": str(Path(trace).parent), "junk": str(junk)}
    # In this process: a start of Python for each of forty mistakes would take a minute.
    from uvmsim.cli import main

    monkeypatch.setattr(sys, "argv", ["uvmsim", *(a.format(**places) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    assert stop.value.code == 2
    assert err.count("\n") == 1 and err.startswith("error: "), err
    assert out == ""
    for word in words:
        assert word in err, err


def test_a_mistake_in_a_process_of_its_own(trace):
    done = uvmsim("compare", trace, "--slots", "1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


@pytest.mark.parametrize("command", [[], ["trace"], ["capture"]])
def test_a_group_alone_shows_its_help_as_it_is(command):
    done = uvmsim(*command)
    told = uvmsim(*command, "--help")
    assert told.returncode == 0 and len(told.stdout.splitlines()) > 8
    assert "error" not in done.stderr
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told.stdout)


def test_help_answers_at_once():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = uvmsim("--help")
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(times) < 0.5, times
    for command in ("compare", "trace", "capture", "models", "hardware", "policies"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["compare", "models", "hardware", "policies", "trace"])
def test_every_command_explains_itself(command):
    done = uvmsim(command, "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 4


@pytest.mark.parametrize(
    ("command", "key", "names"),
    [
        ("policies", "policies", {"lru", "belady", "next-layer", "static-pin", "oracle"}),
        ("models", "models", {"gpt-oss-20b", "gpt-oss-120b", "mixtral-8x7b", "olmoe-1b-7b"}),
        ("hardware", "hardware", {"rtx5090", "rtx4090", "h100", "a30"}),
    ],
)
def test_lists_as_json_and_as_table(command, key, names):
    done = uvmsim(command, "--json")
    assert done.returncode == 0
    listed = json.loads(done.stdout)[key]
    found = {x["name"] for x in listed} if isinstance(listed, list) else set(listed)
    assert found >= names
    if command == "policies":
        needs = {x["name"]: x["needs"] for x in listed}
        assert needs["belady"] == ["next_use"] and needs["lru"] == []
        assert all(x["summary"] for x in listed)
    table = uvmsim(command).stdout
    for name in names:
        assert name in table


def test_no_trace_means_the_bundled_one():
    if not BUNDLED.is_file():
        pytest.skip("the bundled trace is not here")
    done = uvmsim("compare", "--policy", "belady", "--limit", "1500", "--json")
    assert done.returncode == 0, done.stderr
    d = json.loads(done.stdout)
    assert d["trace"]["tokens"] == 1500 and d["notes"]
    assert 0 < d["runs"][0]["hits"] < d["runs"][0]["accesses"]
