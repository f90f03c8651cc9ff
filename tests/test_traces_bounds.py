"""No file and no array makes a kernel write where it may not: impossible values are one line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from traces_naive import decode_trace, random_ids

from traces.errors import InputError
from traces.faults import FaultWriter, open_faults
from traces.files.schema import FAULT_KINDS, RoutingMeta
from traces.routing import RoutingTrace, open_routing
from traces.routing.bounds import MAX_EXPERTS, check_values
from uvmsim.workload import build_workload

L, N, K = 3, 16, 4
ROW = 7


def good() -> RoutingTrace:
    rng = np.random.default_rng(1)
    return decode_trace([random_ids(rng, 40, L, N, K) for _ in range(2)], N)


def edited(column: str, value: Any, at: Any = ROW) -> RoutingTrace:
    t = good()
    changed = t.columns[column].copy()
    changed[at] = value
    return RoutingTrace(t.columns | {column: changed}, t.meta)


VALUES = [
    ("phase", 2, "phase 2 is not 0 (prefill) or 1 (decode)"),
    ("phase", 9, "phase 9 is not"),
    ("phase", 255, "phase 255 is not"),
    ("layer", -1, "layer -1 is negative"),
    ("layer", -32768, "layer -32768 is negative"),
    ("layer", L, "layer 3 is outside 0..2"),
    ("layer", 32767, "layer 32767 is outside"),
    ("seq", -1, "seq -1 is negative"),
    ("pos", -5, "pos -5 is negative"),
    ("step", -(2**31), "step -2147483648 is negative"),
]
IDS = [(-2, "is outside 0..15"), (N, "is outside 0..15"), (32767, "is outside 0..15")]


def run(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    """A command in this process: exit code, standard output, standard error."""
    from uvmsim.cli import main

    monkeypatch.setattr(sys, "argv", ["uvmsim", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capfd.readouterr()


def refused(told: tuple[int, str, str], *words: str) -> None:
    code, out, err = told
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err, err


@pytest.mark.parametrize(("column", "value", "words"), VALUES)
def test_a_value_out_of_range_is_refused_by_opener_and_kernels(tmp_path, column, value, words):
    t = edited(column, value)
    t.save(tmp_path / "t.arrow")
    with pytest.raises(InputError, match=f"row {ROW}: ") as told:
        open_routing(tmp_path / "t.arrow")
    assert words in str(told.value)
    assert "t.arrow" in str(told.value) and "uvmsim trace check" in str(told.value)
    for unit in ("event", "access"):
        with pytest.raises(InputError, match=f"row {ROW}: {column} {value}"):
            build_workload(t, unit)


@pytest.mark.parametrize(("value", "words"), IDS)
def test_an_expert_out_of_range_is_refused(tmp_path, value, words):
    t = edited("experts", value, (ROW, 2))
    t.save(tmp_path / "t.arrow")
    with pytest.raises(InputError, match=f"row {ROW}: expert .*{value}") as told:
        open_routing(tmp_path / "t.arrow")
    assert words in str(told.value)
    with pytest.raises(InputError, match=f"row {ROW}: expert"):
        build_workload(t)


def test_a_parquet_file_is_held_to_the_same(tmp_path):
    from traces.export.routing import export_routing

    t = edited("phase", 9)
    export_routing(t, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=f"row {ROW}: phase 9"):
        open_routing(tmp_path / "t.parquet")


def test_parts_of_a_damaged_trace_reach_no_kernel(tmp_path):
    edited("phase", 9).save(tmp_path / "t.arrow")
    t = open_routing(tmp_path / "t.arrow", checked=False)
    for part in (t.head(5), t.take(np.arange(12))):
        with pytest.raises(InputError, match=f"row {ROW}: phase 9"):
            build_workload(part)
    assert build_workload(t.head(2)).n_steps == 2  # the bad row is not among these


def test_what_can_be_passes():
    t = good()
    check_values(t)
    unknown = edited("experts", -1)  # a row whose routing was not seen
    check_values(unknown)
    assert build_workload(unknown).missing_rows == 1
    unstated = replace(t.meta, model=replace(t.meta.model, n_layers=0))
    check_values(RoutingTrace(t.columns, unstated))


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("scores", np.zeros((240, N - 1), np.float32), "column 'scores' has shape"),
        ("weights", np.zeros((240, K + 1), np.float32), "column 'weights' has shape"),
        ("pos", np.zeros(3, np.int32), "column 'pos' has shape"),
        ("pos", np.zeros(240), "column 'pos' does not hold whole numbers"),
        ("experts", np.zeros(240, np.int16), "experts has shape"),
    ],
)
def test_columns_made_in_memory_fit_each_other(column, values, words):
    t = good()
    with pytest.raises(InputError, match=words):
        build_workload(RoutingTrace(t.columns | {column: values}, t.meta))


def test_trace_check_still_lists_what_is_wrong(tmp_path, monkeypatch, capfd):
    for i, t in enumerate((edited("phase", 9), edited("experts", N, (ROW, 2)), edited("pos", -1))):
        path = str(tmp_path / f"{i}.arrow")
        t.save(path)
        code, out, err = run(monkeypatch, capfd, "trace", "check", path, "--json")
        found = {f["code"]: f for f in json.loads(out)["findings"]}
        want = "expert-out-of-range" if i == 1 else "bad-value"
        assert (code, err, found[want]["first"]["row"]) == (1, "", ROW)


@pytest.mark.parametrize("column", ["phase", "layer"])
def test_every_command_that_uses_a_trace_refuses_it(tmp_path, monkeypatch, capfd, column):
    path = str(tmp_path / "t.arrow")
    edited(column, 9).save(path)
    (tmp_path / "s.toml").write_text('slots = "50%"\n')
    compare = ["--expert-size", "1MB", "--slots", "50%", "--policy", "lru"]
    out = str(tmp_path / "x.arrow")
    for arguments in (
        ["compare", path, *compare],
        ["compare", "--profile", path, "--policy", "static-pin", "--limit", "100"],
        ["replay", path, "--backend", "host"],
        ["mrc", path],
        ["sweep", str(tmp_path / "s.toml"), path, "-o", str(tmp_path / "s.sweep"), "--jobs", "1"],
        ["trace", "info", path],
        ["trace", "stats", path],
        ["trace", "export", path, "-o", str(tmp_path / "x.parquet")],
        ["trace", "synth", "--like", path, "-o", out],
        ["trace", "synth", "--shuffle", path, "-o", out],
        ["llama-bench", "--routing", path],
    ):
        told = run(monkeypatch, capfd, *arguments)
        refused(told, "t.arrow", f"row {ROW}: {column} 9", "uvmsim trace check")
    assert not Path(out).exists()


def with_meta(path: Path, change: Any) -> None:
    """A trace of `good`, its metadata replaced by ``change`` of what was there."""
    t = good()
    t.save(path)
    table = pa.ipc.open_file(str(path)).read_all()
    d = json.loads(table.schema.metadata[b"uvmsim"])
    changed = change(d)
    text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    table = table.replace_schema_metadata({b"uvmsim": text})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as f:
            f.write_table(table)


def model(**changes: Any) -> Any:
    return lambda d: d | {"model": d["model"] | changes}


META = {
    "n_exp_huge": (model(n_experts=10**9), "n_experts is 1000000000"),
    "n_exp_many": (model(n_experts=MAX_EXPERTS + 1), "n_experts is 32768"),
    "n_exp_neg": (model(n_experts=-5), "n_experts is -5"),
    "n_exp_zero": (model(n_experts=0), "n_experts is 0"),
    "n_exp_str": (model(n_experts="16"), "n_experts is '16'"),
    "n_exp_float": (model(n_experts=16.0), "n_experts is 16.0"),
    "n_exp_true": (model(n_experts=True), "n_experts is True"),
    "n_exp_none": (model(n_experts=None), "n_experts is None"),
    "top_k_str": (model(top_k="4"), "top_k is '4'"),
    "top_k_neg": (model(top_k=-1), "top_k is -1"),
    "top_k_other": (model(top_k=5), "column 'experts' is"),
    "top_k_over": (model(n_experts=3), "top_k is 4, of 3 experts"),
    "n_layers_str": (model(n_layers="3"), "n_layers is '3'"),
    "n_layers_huge": (model(n_layers=10**8), "n_layers is 100000000"),
    "moe_layers": (model(moe_layers=[0, "1", 2]), "moe_layers has '1'"),
    "expert_bytes": (model(expert_bytes=[1.5, 2, 3]), "expert_bytes has 1.5"),
    "kv_bytes": (model(kv_bytes_per_token="x" * 99), "kv_bytes_per_token is 'xxx"),
    "name_int": (model(name=12), "the model's name is 12"),
    "name_none": (model(name=None), "the model's name is None"),
    "extra": (lambda d: d | {"extra": [1]}, "extra is [1]"),
    "tool": (lambda d: d | {"tool": 3}, "tool is 3"),
    "meta_deep": (lambda d: b"[" * 100_000 + b"]" * 100_000, "metadata is damaged"),
    "meta_list": (lambda d: [1], "metadata is damaged"),
    "version": (lambda d: d | {"version": "two"}, "metadata is damaged"),
}


@pytest.mark.parametrize("name", META)
def test_impossible_metadata_is_one_line(tmp_path, monkeypatch, capfd, name):
    change, words = META[name]
    path = tmp_path / f"{name}.arrow"
    with_meta(path, change)
    for command in (["compare"], ["trace", "info"], ["trace", "check"], ["trace", "stats"]):
        refused(run(monkeypatch, capfd, *command, str(path)), path.name, words)
    if "metadata is damaged" not in words and name != "top_k_other":
        with pytest.raises(InputError, match="metadata is impossible"):
            open_routing(path)


def test_metadata_made_in_memory_is_held_to_the_same():
    t = good()
    wrong = RoutingMeta(replace(t.meta.model, n_experts=10**9))
    with pytest.raises(InputError, match="n_experts is 1000000000"):
        build_workload(RoutingTrace(t.columns, wrong))


def test_synth_refuses_what_no_trace_can_hold(tmp_path, monkeypatch, capfd):
    for layers, experts in (("4", "100000"), ("1000000", "1000")):
        told = run(monkeypatch, capfd, "trace", "synth", "-o", str(tmp_path / "x.arrow"),
                   "--layers", layers, "--experts", experts, "--top-k", "2")  # fmt: skip
        refused(told, "at most")


# ---- fault traces -------------------------------------------------------------------------------


def damaged_faults(path: Path, name: str = "kind", code: int = 99) -> None:
    """Three events, the word of the second one not in its list of words."""
    with FaultWriter(path) as w:
        w.append(time_ns=[1, 2, 3], kind="gpu_fault", cause=["a", "b", None], address=4096)
    table = pa.ipc.open_file(str(path)).read_all()
    i = table.column_names.index(name)
    column = table.column(i).combine_chunks()
    codes = column.indices.to_pylist()
    codes[1] = code
    wrong = pa.DictionaryArray.from_arrays(
        pa.array(codes, pa.int8()), column.dictionary, safe=False
    )
    table = table.set_column(i, table.schema.field(i), wrong)
    with pa.ipc.new_file(str(path), table.schema) as f:
        f.write_table(table)


@pytest.mark.parametrize("name", ["kind", "cause"])
@pytest.mark.parametrize("code", [len(FAULT_KINDS), 99, -1])
def test_a_word_outside_its_list_is_refused(tmp_path, name, code):
    damaged_faults(tmp_path / "f.arrow", name, code)
    with pytest.raises(InputError, match=f"row 1: {name} is no word of its list.*trace check"):
        open_faults(tmp_path / "f.arrow")
    t = open_faults(tmp_path / "f.arrow", checked=False)  # for `trace check`: missing
    assert t.column(name).to_pylist()[1] is None and t.sha256


def test_damaged_fault_metadata_is_one_line(tmp_path):
    with FaultWriter(tmp_path / "f.arrow") as w:
        w.append(time_ns=[1], kind="gpu_fault")
    table = pa.ipc.open_file(str(tmp_path / "f.arrow")).read_all()
    for text in (b"[" * 100_000, b"[1]", b'{"schema": "uvmsim.faults", "version": "x"}'):
        with pa.ipc.new_file(
            str(tmp_path / "d.arrow"), table.schema.with_metadata({b"uvmsim": text})
        ) as f:
            f.write_table(table.replace_schema_metadata({b"uvmsim": text}))
        with pytest.raises(InputError, match="damaged"):
            open_faults(tmp_path / "d.arrow")


def test_a_process_of_its_own_survives_a_wrong_phase(tmp_path):
    """The case that ended with a segmentation fault, or with a heap overwritten unseen."""
    t = good()
    phase = np.full_like(t.phase, 9)
    RoutingTrace(t.columns | {"phase": phase}, t.meta).save(tmp_path / "phase9.arrow")
    done = subprocess.run(
        [sys.executable, "-c", "from uvmsim.cli import main; main()", "compare",
         str(tmp_path / "phase9.arrow"), "--expert-size", "1MB", "--slots", "60%", "--policy", "lru"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "row 0: phase 9" in done.stderr
