"""Files of fault traces: time order, optional columns, older versions, Parquet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces import InputError
from traces.export.faults import export_faults
from traces.faults import FaultTrace, FaultWriter, fault_table, is_fault_trace, open_faults
from traces.samples import BUNDLED_FAULTS

VERSION_1 = "727b8966b225d7dda5844a3fcb5b2b518bf434d4daf2fd66caf6bc6ab70d0d39"
"""The hash that version 1 of the schema stored for the rows of `version_1`."""


def version_1(path: Path) -> None:
    """A file as uvmsim 0.1 wrote it before ``chunk`` and ``list`` existed."""
    words = pa.dictionary(pa.int8(), pa.string())
    types = {
        "time_ns": pa.int64(),
        "kind": words,
        "address": pa.uint64(),
        "bytes": pa.int64(),
        "duration_ns": pa.int64(),
        "count": pa.int32(),
        "access": words,
        "cause": words,
        "process": pa.int32(),
        "va_block": pa.uint64(),
    }
    rows = [
        {
            "time_ns": i * 10 + j,
            "kind": ("gpu_fault", "eviction")[j],
            "address": 2**63 + i,
            "bytes": (4096, None)[j],
            "access": (None, "read", "write", "write")[i],
            "cause": f"c{i % 3}",
            "process": None if i else 7,
        }
        for i in range(4)
        for j in range(2)
    ]
    columns = [
        pa.array([r.get(n) for r in rows], pa.string() if t == words else t).cast(t)
        for n, t in types.items()
    ]
    meta = {"schema": "uvmsim.faults", "version": 1, "tool": "test"}
    schema = pa.schema(
        [pa.field(n, t, n not in ("time_ns", "kind")) for n, t in types.items()],
        metadata={b"uvmsim": json.dumps(meta).encode()},
    )
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    mark = json.dumps({"complete": True, "rows": 8, "sha256": VERSION_1}).encode()
    with pa.ipc.new_file(str(path), schema) as w:
        w.write_batch(batch)
        w.write_batch(batch.slice(0, 0), custom_metadata={"uvmsim.end": mark})


def test_version_1_opens_and_keeps_its_hash(tmp_path: Path) -> None:
    version_1(tmp_path / "old.arrow")
    t = open_faults(tmp_path / "old.arrow")
    assert t.complete and t.n_rows == 8
    assert t.recorded_sha256 == t.sha256 == VERSION_1
    assert t.column("chunk").null_count == 8 and not t.has("device")
    assert t.numbers("chunk", missing=5).tolist() == [5] * 8
    t.save(tmp_path / "new.arrow")  # as version 2: the same rows, the same hash
    new = open_faults(tmp_path / "new.arrow")
    assert new.meta["version"] == 2 and new.sha256 == VERSION_1


def test_out_of_order_events_are_sorted_and_equal_times_keep_their_order(tmp_path: Path) -> None:
    for rows, name in ((2, "many.arrow"), (1000, "one.arrow")):
        with FaultWriter(tmp_path / name, batch_rows=rows) as w:
            w.append(time_ns=[30, 10, 20], kind="eviction", bytes=[1, 2, 3])
            w.append(time_ns=[20, 5], kind=["gpu_fault", "prefetch"], bytes=[4, None])
        t = open_faults(tmp_path / name)
        assert t.numbers("time_ns").tolist() == [5, 10, 20, 20, 30]
        assert t.numbers("bytes", missing=-1).tolist() == [-1, 2, 3, 4, 1]
        assert t.recorded_sha256 == t.sha256
    with pytest.raises(RuntimeError), FaultWriter(tmp_path / "cut.arrow") as w:
        w.append(time_ns=[30, 10], kind="eviction")
        raise RuntimeError
    cut = open_faults(tmp_path / "cut.arrow.partial")
    assert not cut.complete and cut.numbers("time_ns").tolist() == [10, 30]


@given(st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=1, max_size=40))
def test_the_order_is_that_of_a_stable_sort(events: list[tuple[int, bool]]) -> None:
    kinds = ["gpu_fault" if g else "eviction" for _, g in events]
    t = fault_table(
        {"time_ns": np.array([e[0] for e in events]), "kind": kinds, "count": range(len(events))}
    )
    expected = sorted(range(len(events)), key=lambda i: events[i][0])
    assert t.column("count").to_pylist() == expected
    assert t.column("kind").to_pylist() == [kinds[i] for i in expected]


def test_optional_columns(tmp_path: Path) -> None:
    with FaultWriter(tmp_path / "t.arrow", optional=["device", "cpu"]) as w:
        w.append(time_ns=[1, 2], kind="gpu_fault", device=[0, None], chunk=2**64 - 1, list=7)
    t = open_faults(tmp_path / "t.arrow")
    assert t.column("device").to_pylist() == [0, None] and t.has("device") and not t.has("cpu")
    assert t.numbers("chunk").tolist() == [2**64 - 1] * 2
    with pytest.raises(ValueError, match="no column 'colour'"):
        FaultWriter(tmp_path / "x.arrow", optional=["colour"])
    with (
        pytest.raises(ValueError, match="no column 'device'"),
        FaultWriter(tmp_path / "y.arrow") as w,
    ):
        w.append(time_ns=1, kind="gpu_fault", device=0)
    with pytest.raises(ValueError, match="missing"), FaultWriter(tmp_path / "z.arrow") as w:
        w.append(time_ns=[1, 2], kind=["gpu_fault", None])


def test_arrow_and_numpy_columns_are_taken(tmp_path: Path) -> None:
    given = {
        "time_ns": np.array([1, 2, 3], np.uint64),
        "kind": pa.array(["gpu_fault", "cpu_fault", "gpu_fault"]).dictionary_encode(),
        "bytes": pa.chunked_array([[1], [None, 3]]),
        "address": np.array([5, 6, 7]),
        "cause": np.array(["a", "b", "a"]),
    }
    with FaultWriter(tmp_path / "t.arrow") as w:
        w.append(**given)
        w.append(time_ns=np.int64(9), kind="eviction", address=np.uint64(2**63))
    got = open_faults(tmp_path / "t.arrow").table.to_pylist()
    assert [r["kind"] for r in got] == ["gpu_fault", "cpu_fault", "gpu_fault", "eviction"]
    assert [r["bytes"] for r in got] == [1, None, 3, None]
    assert [r["cause"] for r in got] == ["a", "b", "a", None]
    assert got[3]["address"] == 2**63


def test_parquet_round_trip(tmp_path: Path) -> None:
    with FaultWriter(tmp_path / "t.arrow", {"tool": "x"}, optional=["cpu"]) as w:
        w.append(time_ns=[1, 2], kind=["gpu_fault", "eviction"], cause=["a", None], cpu=3)
    t = open_faults(tmp_path / "t.arrow")
    assert export_faults(t, tmp_path / "t.parquet")["rows"] == 2
    assert is_fault_trace(tmp_path / "t.parquet")
    back = open_faults(tmp_path / "t.parquet")
    assert back.complete and back.sha256 == t.sha256 and back.meta["tool"] == "x"
    assert back.where("eviction").tolist() == [False, True]
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:200])
    with pytest.raises(InputError, match="damaged Parquet"):
        open_faults(tmp_path / "bad.parquet")


def test_what_is_no_fault_trace(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b", b"ARROW1"), ("c", b"PAR1"), ("d", b"text")):
        (tmp_path / name).write_bytes(content)
        assert not is_fault_trace(tmp_path / name)
    assert not is_fault_trace(tmp_path / "absent") and not is_fault_trace(tmp_path)


def test_columns_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    meta = json.dumps({"schema": "uvmsim.faults", "version": 2}).encode()
    schema = pa.schema([("time_ns", pa.float64())], metadata={b"uvmsim": meta})
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), schema) as w:
        w.write_batch(pa.RecordBatch.from_arrays([pa.array([1.0])], schema=schema))
    with pytest.raises(InputError, match="'time_ns' is double, not int64"):
        open_faults(tmp_path / "t.arrow")


def test_a_trace_in_memory_saves_and_leaves_nothing_where_it_cannot(tmp_path: Path) -> None:
    t = FaultTrace(fault_table({"time_ns": [1], "kind": ["gpu_fault"]}), {"tool": "x"})
    t.save(tmp_path / "t.arrow")
    assert open_faults(tmp_path / "t.arrow").sha256 == t.sha256
    bad = FaultTrace(fault_table({"time_ns": [1], "kind": ["nonsense"]}), {})
    with pytest.raises(ValueError, match="unknown kind"):
        bad.save(tmp_path / "bad.arrow")
    assert [p.name for p in tmp_path.iterdir()] == ["t.arrow"]


def test_statistics_of_a_damaged_trace_are_refused(tmp_path):
    damaged = tmp_path / "t.arrow"
    content = bytearray(BUNDLED_FAULTS.read_bytes())
    for at in range(len(content) // 5, 4 * len(content) // 5, 1000):  # some hit what is null
        content[at] ^= 0x01
    damaged.write_bytes(content)
    for args in (("stats", str(damaged)), ("export", str(damaged), "-o", str(tmp_path / "x.csv"))):
        done = subprocess.run(
            [sys.executable, "-c", "from uvmsim.cli import main; main()", "trace", *args],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and "trace check" in done.stderr, done.stderr
    assert not (tmp_path / "x.csv").exists()
