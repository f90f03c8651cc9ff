"""`uvmsim llama-bench`: the table, the JSON, the mistakes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from small_model import small_hardware, small_model_file

import uvmsim.machine.hardware
from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL
from uvmsim.commands.llama_bench import llama_bench
from uvmsim.machine.model import Model
from uvmsim.paging import tables as t
from uvmsim.paging.layout import PAGE
from uvmsim.policies.pages.phases import parse_phased
from uvmsim.runs.job import Job
from uvmsim.studies.llamabench.table import Options, run
from uvmsim.studies.llamabench.workload import bench
from uvmsim.studies.simulate import simulate

KEYS = {
    "mechanism", "policy", "test", "status", "tokens_per_s", "sd", "chunks_in", "chunks_out",
    "services_per_chunk", "bytes_h2d", "bytes_d2h",
}  # fmt: skip
ENTRY = "import sys; from uvmsim.cli import main; sys.argv[0] = 'uvmsim'; main()"


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    """A small model on a machine of 140 chunks that no preset describes."""
    load = uvmsim.machine.hardware.Hardware.load
    small = small_hardware(140)
    monkeypatch.setattr(
        uvmsim.machine.hardware.Hardware, "load",
        classmethod(lambda cls, spec, program=None: small if spec == "small" else load(spec)),
    )  # fmt: skip
    model = str(small_model_file(tmp_path))
    return ["--model", model, "--hardware", "small", "-p", "32", "-n", "4", "-r", "2"]


def invoke(*args: object) -> str:
    done = CliRunner().invoke(llama_bench, [str(a) for a in args])
    if done.exception:
        raise done.exception
    return done.stdout


def rows_of(*args: object) -> list[dict]:
    return json.loads(invoke(*args, "--json"))["rows"]


def test_the_table(words):
    text = invoke(*words)
    lines = [line for line in text.splitlines() if line.startswith("|uvm")]
    assert len(lines) == 2
    assert "pp32" in lines[0] and "tg4" in lines[1]
    assert all("±" in line for line in lines)
    for word in ("t/s", "services/chunk", "small: 0.30 GiB", "assumed"):
        assert word in text


def test_json_and_that_runs_repeat(words):
    first, second = (invoke(*words, "--json") for _ in range(2))
    assert first == second
    whole = json.loads(first)
    assert [r["test"] for r in whole["rows"]] == ["pp32", "tg4"]
    for row in whole["rows"]:
        assert set(row) >= KEYS
        assert row["status"] == "ok" and row["repetitions"] == 2
        assert row["mechanism"] == "uvm" and row["policy"] == "default"
        assert row["chunks_in"] > 0 and row["services_per_chunk"] >= 1
    assert whole["options"]["threshold"] == 51
    assert invoke(*words, "--json", "--seed", 1) != first


def test_the_readable_clock_agrees(words):
    assert rows_of(*words) == rows_of(*words, "--engine", "des")


@pytest.mark.parametrize(("p", "n", "tests"), [(0, 3, ["tg3"]), (8, 0, ["pp8"])])
def test_one_test_alone(words, p, n, tests):
    assert [r["test"] for r in rows_of(*words, "-p", p, "-n", n)] == tests


def test_every_mechanism(words):
    names = ["uvm", "zero-copy", "cpu-offload", "resident", "stream", "expert-cache"]
    flags = [w for n in names for w in ("--mechanism", n)]
    rows = rows_of(*words, *flags, "--slots", 8)
    assert [r["mechanism"] for r in rows] == [n for n in names for _ in range(2)]
    by = {(r["mechanism"], r["test"]): r for r in rows}
    assert by["resident", "pp32"]["status"] == "out-of-memory"
    assert by["resident", "pp32"]["tokens_per_s"] is None
    for name in ("uvm", "zero-copy", "cpu-offload", "stream", "expert-cache"):
        assert by[name, "tg4"]["tokens_per_s"] > 0
    assert by["cpu-offload", "tg4"]["ncmoe"] == 3
    assert by["zero-copy", "tg4"]["bytes_h2d"] > 0
    assert "out of memory" in invoke(*words, "--mechanism", "resident")


def test_policies_and_phases(words):
    names = ["prefetch_always_max", "phase:prefetch_always_max,default"]
    rows = rows_of(*words, *[w for n in names for w in ("--policy", n)])
    assert [r["policy"] for r in rows] == [n for n in names for _ in range(2)]
    assert rows[0]["services_per_chunk"] == 1
    assert rows[0] == rows[2] | {"policy": names[0]}
    assert rows[3]["services_per_chunk"] > 1


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["-p", "0", "-n", "0"], "-p 0 -n 0"),
        (["-p", "-1"], "-p -1"),
        (["-r", "0"], "-r 0"),
        (["--threshold", "0"], "--threshold 0"),
        (["--threshold", "101"], "1 to 100"),
        (["--policy", "prefetch_alway_max"], "prefetch_always_max"),
        (["--policy", "copy-used"], "phase:copy-used"),
        (["--policy", "phase:default"], "PREFILL_POLICY,DECODE_POLICY"),
        (["--policy", "phase:default,copy-used"], "prefill only"),
        (["--mechanism", "uvn"], "uvm"),
        (["--engine", "slow"], "--engine slow"),
        (["--vram", "100MiB"], "too few"),
        (["--hardware", "a100"], "[uvm] constants"),
        (["--vram", "much"], "much"),
    ],
)
def test_mistakes_are_one_line(words, args, text):
    with pytest.raises(InputError) as e:
        invoke(*words, *args)
    assert text in str(e.value) and "\n" not in str(e.value)


def test_copied_experts_are_bytes_over_the_link(words):
    model = Model.load(words[1])
    made = bench(model, 32, 4, 2, 0, drop_rows=True)
    w = made.workload
    pp = rows_of(*words, "--policy", "phase:copy-used,default")[0]
    step = (made.step_test == 0) & (made.step_rep >= 0)
    events = np.flatnonzero(step[w.event_step])
    used = np.diff(w.event_lo)[events] * np.array(model.expert_bytes)[w.event_layer[events]]
    paged = pp["chunks_in"] * (2 << 20)
    assert used.sum() / 2 <= pp["bytes_h2d"] <= used.sum() / 2 + paged


def test_a_prompts_last_block_is_computed_for_its_last_token_alone(words):
    """As llama.cpp drops rows: by hand, and nothing of that block's experts is copied."""
    model = Model.load(words[1])
    whole, made = bench(model, 600, 3, 2, 0), bench(model, 600, 3, 2, 0, drop_rows=True)
    t, all_rows = made.trace, whole.trace
    last = (t.layer == model.moe_layers[-1]) & (t.phase == PREFILL)
    kept = last & (t.pos == 599)
    assert kept.sum() == 3 and (t.experts[last & ~kept] == -1).all()
    assert (t.experts[~last | kept] == all_rows.experts[~last | kept]).all()
    n, every = model.n_layers, list(model.expert_bytes)
    rows = rows_of(*words, "--mechanism", "cpu-offload", "--ncmoe", f"{n - 1},{n}")
    first, both = (r for r in rows if r["test"].startswith("pp"))
    assert first["bytes_h2d"] == both["bytes_h2d"] > 0 and len(every) == n


def test_mistakes_exit_with_2():
    run = [sys.executable, "-c", ENTRY, "llama-bench", "-p", "0", "-n", "0"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: -p 0 -n 0") and done.stderr.count("\n") == 1


def test_warm_ups_run_but_do_not_count(words):
    model = Model.load(words[1])
    made = bench(model, 600, 5, 3, 0)
    # 600 tokens are two micro-batches; a generation's warm-up is one token
    assert made.step_rep.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, -1, *[0] * 5, *[1] * 5, *[2] * 5]
    assert made.step_test.tolist() == [0] * 8 + [1] * 16
    assert made.workload.step_tokens.tolist() == [512, 88] * 4 + [1] * 16
    assert (made.workload.step_phase == np.repeat([PREFILL, DECODE], [8, 16])).all()
    assert made.tokens == (600, 5) and made.context == 600
    # the KV cache is cleared: positions begin anew
    kv = made.workload.step_kv
    assert kv[8:9].tolist() == kv[9:10].tolist() == kv[14:15].tolist()

    made = bench(model, 32, 4, 2, 0)
    hw = small_hardware(140)
    result = simulate(Job(made.workload, model, hw), "uvm")
    duration = np.diff(result.step_end, prepend=0)
    pp, tg = run(Options(words[1], "small", prompt=32, generate=4, reps=2)).runs
    for row, test, tokens in ((pp, 0, 32), (tg, 1, 4)):
        rates = []
        for rep in range(2):
            mine = (made.step_test == test) & (made.step_rep == rep)
            rates.append(tokens / (int(duration[mine].sum()) / 1e9))
        assert row["tokens_per_s"] == pytest.approx(sum(rates) / 2, rel=1e-12)
        assert row["sd"] == pytest.approx(abs(rates[0] - rates[1]) / 2**0.5, rel=1e-6, abs=1e-9)
        timed = (made.step_test == test) & (made.step_rep >= 0)
        counts = result.trail.run.counts[timed].sum(axis=0)
        assert row["chunks_in"] == counts[t.ACTIVATED] / 2
        assert row["bytes_h2d"] == counts[t.PAGES_IN] * PAGE / 2
        assert row["chunks_in_per_token"] == counts[t.ACTIVATED] / 2 / tokens


def test_more_memory_takes_fewer_chunks(words):
    model = Model.load(words[1])
    made = bench(model, 32, 8, 2, 0)
    job = Job(made.workload, model, small_hardware(100), policy=parse_phased("default"))
    moved = []
    for chunks in (80, 120, 160, 400):
        hw = small_hardware(chunks)
        done = simulate(dataclasses.replace(job, hardware=hw), "uvm")
        moved.append(done.trail.run.total(t.ACTIVATED))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < moved[0]
