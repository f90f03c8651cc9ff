"""`uvmsim llama-bench --advice`, and the cliffs that it names."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner
from small_model import small_hardware, small_model_file

from traces.errors import InputError
from uvmsim.commands.llama_bench import llama_bench
from uvmsim.machine.model import Model
from uvmsim.mechanisms.uvm import setup_of
from uvmsim.policies.kinds import PAGES
from uvmsim.runs.job import Job
from uvmsim.studies.llamabench.cliff import SPREAD, cliff_of, touched
from uvmsim.studies.llamabench.table import Options, run
from uvmsim.studies.llamabench.workload import bench
from uvmsim.studies.simulate import simulate

PROMPT, SEED = 64, 3


def job_with(folder, chunks: int, sigma: float = 2.0) -> Job:
    model = dataclasses.replace(
        Model.load(str(small_model_file(folder))), routing_sigma=(sigma, sigma)
    )
    made = bench(model, PROMPT, 0, 1, SEED)
    return Job(made.workload, model, small_hardware(chunks), policy=PAGES.of("default"))


def chunks_of(folder, sigma: float) -> int:
    """Chunks that the last prefill touches, page by page."""
    setup, _ = setup_of(job_with(folder, 400, sigma), False)
    k, seen = setup.kernels, set()
    for kernel, step in enumerate(k.step.tolist()):
        if step != len(setup.phase) - 1:
            continue
        waves = range(int(k.wave_hi[kernel - 1]) if kernel else 0, int(k.wave_hi[kernel]))
        for wave in waves:
            for i in range(int(k.touch_hi[wave - 1]) if wave else 0, int(k.touch_hi[wave])):
                seen |= {p // 512 for p in range(int(k.first[i]), int(k.last[i]))}
    assert len(seen) == touched(setup)
    return len(seen)


def test_a_prefill_that_fits_at_one_end_of_the_band_is_named(tmp_path):
    more, less = chunks_of(tmp_path, 2 * (1 - SPREAD)), chunks_of(tmp_path, 2 * (1 + SPREAD))
    assert more > less
    at = job_with(tmp_path, (more + less) // 2)
    found = cliff_of(at, PROMPT, SEED, 1.0)
    assert found is not None
    assert (found.chunks, found.capacity) == ((more, less), (more + less) // 2)
    ends = []
    for factor in (1 - SPREAD, 1 + SPREAD):
        steps = simulate(job_with(tmp_path, found.capacity, 2 * factor), "uvm").step_ns
        ends.append(PROMPT / (float(steps[1]) / 1e9))
    assert found.tokens_per_s == (1.0, max(ends)), "the speed of the run itself belongs to the band"
    line = found.told("pp64", "default")
    assert "cliff" in line and f"{found.capacity:,}" in line and "\n" not in line
    for chunks in (less - 1, more):
        assert cliff_of(job_with(tmp_path, chunks), PROMPT, SEED, 1.0) is None


def test_the_table_has_it_and_copied_experts_have_none(tmp_path):
    job = job_with(tmp_path, 400)
    middle = (chunks_of(tmp_path, 2 * (1 - SPREAD)) + chunks_of(tmp_path, 2 * (1 + SPREAD))) // 2
    options = Options(
        model=job.model, hardware=small_hardware(middle), prompt=PROMPT, generate=2, reps=1,
        seed=SEED, policies=("default", "phase:copy-used,default"),
    )  # fmt: skip
    done = run(options)
    assert ["cliff" in r for r in done.runs] == [True, False, False, False]
    cliff = done.runs[0]["cliff"]
    assert cliff["popularity"] == [0.9, 1.1] and cliff["capacity"] == middle
    low, high = cliff["tokens_per_s"]
    assert low <= done.runs[0]["tokens_per_s"] <= high
    assert sum("at a cliff" in n for n in done.notes) == 1


def rows(*args: str) -> list[dict]:
    done = CliRunner().invoke(llama_bench, [*args, "--json"])
    if done.exception:
        raise done.exception
    return json.loads(done.stdout)["rows"]


@pytest.fixture
def words(tmp_path) -> list[str]:
    return ["--model", str(small_model_file(tmp_path)), "--hardware", "rtx5090", "--vram", "280MiB",
            "-p", "16", "-n", "2", "-r", "1"]  # fmt: skip


def test_advice(words):
    plain, hinted = rows(*words), rows(*words, "--advice", "prefer-gpu")
    assert plain == hinted
    assert plain[0]["bytes_d2h"] > 0
    for remote in ("prefer-cpu", "accessed-by"):
        assert {r["chunks_in"] for r in rows(*words, "--advice", remote)} == {0}
    mostly = rows(*words, "--advice", "read-mostly")
    assert mostly[0]["chunks_in"] == plain[0]["chunks_in"]
    assert mostly[0]["bytes_d2h"] < plain[0]["bytes_d2h"] / 100, "KV cache and buffers alone"
    none = rows(*words, "--advice", "none")
    assert none[0]["bytes_h2d"] == plain[0]["bytes_h2d"], "the weights are in host memory at first"


def test_prefetched_weights_are_there_at_the_first_touch(words):
    roomy = [*words[:5], "2GiB", *words[6:]]
    assert [r["chunks_in"] for r in rows(*roomy, "--advice", "prefetch")] == [0, 0]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--advice", "prefer"], "must be one of none, prefetch, prefer-gpu"),
        (["--advice", "none", "--mechanism", "zero-copy"], "uvm"),
    ],
)
def test_mistakes_are_one_line(words, args, text):
    with pytest.raises(InputError) as e:
        rows(*words, *args)
    assert text in str(e.value) and "\n" not in str(e.value)
