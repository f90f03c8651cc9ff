"""The driver's events of a simulated run, written as a fault trace."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from traces.commands.trace import trace
from traces.faults import open_faults
from traces.faults.check import check_faults
from traces.faults.stats import fault_statistics
from uvmsim.commands.llama_bench import llama_bench
from uvmsim.commands.microbench import microbench

ABAB = ["--vram", "256MiB", "--ratio", "1.05"]
CASES = {
    "abab": ABAB,
    "narrow": [*ABAB, "--threshold", "100", "--passes", "2"],
    "rand": ["--pattern", "rand", "--vram", "256MiB", "--ratio", "1.3", "--passes", "2"],
    "tenants": [*ABAB, "--tenants", "2"],
}


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory):
    """A trace, and the row of the run that wrote it."""
    out = tmp_path_factory.mktemp("traces") / f"{request.param}.arrow"
    result = CliRunner().invoke(
        microbench, [*CASES[request.param], "--trace-out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.output)["rows"]
    return request.param, out, row


def test_statistics_are_the_counters(made):
    name, out, row = made
    stats = fault_statistics(open_faults(out))
    chunks = stats["chunks"]
    assert chunks["distinct_blocks"] == row["blocks"]
    if name == "rand":  # the trace has the fill before the first timed pass too
        assert chunks["activations"] == row["chunks_in"] + row["blocks"]
        return
    assert chunks["activations"] == row["chunks_in"]
    again = row["services"] - row["chunks_in"]  # the service that allocates a chunk is no access
    assert chunks["accesses"] == again
    assert chunks["accesses_per_activation"] == pytest.approx(again / row["chunks_in"])
    assert chunks["eviction_prepares"] == row["evictions"]
    assert stats["evictions"]["events"] == row["evictions"]
    assert stats["evictions"]["bytes"] == row["bytes_d2h"]
    assert chunks["distinct_chunks"] == row["chunks"]
    assert stats["kinds"]["gpu_fault"]["events"] == row["services"]


def test_events_tell_what_the_driver_did(made):
    """Replayed one by one: a chunk is activated when it is free, and its victim was in it."""
    _, out, row = made
    t = open_faults(out)
    assert t.complete
    assert not [f for f in check_faults(t) if f.severity == "error"]
    codes, words = t.words("kind")
    block, chunk = t.numbers("va_block").tolist(), t.numbers("chunk").tolist()
    process = t.numbers("process").tolist()
    holder: dict[int, int] = {}
    owner: dict[int, int] = {}
    for i, code in enumerate(codes.tolist()):
        kind = words[code]
        if kind == "eviction":
            assert holder.pop(chunk[i]) == block[i]
        elif kind == "chunk_activate":
            assert chunk[i] not in holder
            holder[chunk[i]] = block[i]
        elif kind == "chunk_access":
            assert holder[chunk[i]] == block[i]
        if kind in ("eviction", "chunk_activate", "chunk_access", "gpu_fault"):
            assert owner.setdefault(block[i], process[i]) == process[i]
    assert len(holder) <= row["chunks"]
    assert len(set(owner.values())) == len(row.get("tenants", [0]))
    assert (np.diff(t.numbers("time_ns")) >= 0).all()


def test_gpu_ext_csv_comes_back(made, tmp_path):
    name, out, _ = made
    if name != "abab":
        pytest.skip("one is enough")
    there, back = tmp_path / "x.csv", tmp_path / "x.arrow"
    run = CliRunner().invoke
    result = run(trace, ["export", str(out), "-o", str(there), "--format", "gpu-ext-chunk"])
    assert result.exit_code == 0, result.output
    first = next(csv.DictReader(there.open()))
    assert first["hook_type"] == "ACTIVATE"
    assert int(first["va_end"], 16) - int(first["va_start"], 16) == (2 << 20) - 1
    assert run(trace, ["import", str(there), "-o", str(back)]).exit_code == 0
    before, after = (fault_statistics(open_faults(p))["chunks"] for p in (out, back))
    for key in ("activations", "accesses", "eviction_prepares", "distinct_chunks"):
        assert before[key] == after[key]


def test_a_simulated_llama_bench(tiny_gguf, tmp_path):
    out = tmp_path / "bench.arrow"
    words = ["--model", str(tiny_gguf), "--vram", "128MiB", "-p", "16", "-n", "4", "-r", "1"]
    result = CliRunner().invoke(llama_bench, [*words, "--trace-out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)["rows"]
    stats = fault_statistics(open_faults(out))
    # The table has the timed repetitions, the trace the warm-up too.
    assert stats["chunks"]["activations"] >= sum(r["chunks_in"] for r in rows)
    two = [*words, "--policy", "default", "--policy", "prefetch_none"]
    refused = CliRunner().invoke(llama_bench, [*two, "--trace-out", str(out)])
    assert "--trace-out" in str(refused.exception)
