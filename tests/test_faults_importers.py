"""Page faults from gpu_ext's CSV files and Nsight Systems' exports, and back to CSV."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces import InputError
from traces.commands.trace import trace
from traces.export.faults import export_faults
from traces.faults import FaultTrace, FaultWriter, fault_table, open_faults
from traces.importers.formats import formats, import_faults, sniff

CHUNK = """\
time_ms,hook_type,pid,owner_pid,va_space,cpu,chunk_addr,list_addr,va_block,va_start,va_end,va_page_index
0,ACTIVATE,158056,158040,0xffffcf69ca739008,18,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7c8,0x733f13800000,0x733f139fffff,0
1,POPULATE,158056,158040,0xffffcf69ca739008,18,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7c8,0x733f13800000,0x733f139fffff,16
1,EVICTION_PREPARE,158056,,,18,0xffff8d571e68da58,0xffff8d571e68da68,,,,
"""
OLDER = """\
time_ms,hook_type,cpu,chunk_addr,list_addr,va_block,va_start,va_end,va_page_index
5,USED,3,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7c8,0x733f13800000,0x733f139fffff,0
4,ACTIVATE,3,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7c8,0x733f13800000,0x733f139fffff,0
18446744073708,ACTIVATE,3,0xffffcf69cb566d38,0xffff8d571e68da58,0xffff8d5ecee8e7c8,0x733f13800000,0x733f139fffff,0
"""
PREFETCH = """\
time_ms,cpu,fault_pid,owner_tgid,va_start,va_end,page_index,faulted_first,faulted_outer,max_first,max_outer,tree_offset,leaf_count,level_count,pages_accessed
0,18,1,2,0x733f13800000,0x733f139fffff,3,3,9,0,512,0,512,10,16
2,18,1,2,0x733f13800000,0x733f139fffff,8,3,9,0,512,0,512,10,32
"""


def load(path: Path, text: str, **options: str) -> FaultTrace:
    path.write_text(text)
    return import_faults(path, options.get("format") or sniff(path).name)


def rows(t: FaultTrace, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(t.column(n).to_pylist() for n in names), strict=True))


def test_chunk_trace(tmp_path: Path) -> None:
    t = load(tmp_path / "t.csv", CHUNK)
    assert t.meta["format"] == "gpu-ext-chunk" and t.meta["notes"] == []
    assert rows(t, "time_ns", "kind", "address", "bytes", "process", "va_block") == [
        (0, "chunk_activate", 0x733F13800000, 2 << 20, 158040, 0x733F13800000),
        (1_000_000, "chunk_access", 0x733F13810000, 2 << 20, 158040, 0x733F13800000),
        (1_000_000, "eviction_prepare", None, None, None, None),
    ]
    chunk, used, unused = 0xFFFFCF69CB566D38, 0xFFFF8D571E68DA58, 0xFFFF8D571E68DA68
    assert rows(t, "chunk", "list", "unused_list", "thread", "cpu") == [
        (chunk, used, None, 158056, 18),
        (chunk, used, None, 158056, 18),
        (None, used, unused, 158056, 18),
    ]
    assert rows(t, "va_space", "block_pointer")[1] == (0xFFFFCF69CA739008, 0xFFFF8D5ECEE8E7C8)


def test_older_chunk_trace_out_of_order_and_before_the_first_event(tmp_path: Path) -> None:
    t = load(tmp_path / "t.csv", OLDER)
    kinds = ["chunk_activate", "chunk_activate", "chunk_access"]
    assert rows(t, "time_ns", "kind") == list(
        zip([-2_000_000, 4_000_000, 5_000_000], kinds, strict=True)
    )
    assert not t.has("process") and "thread" not in t.table.column_names
    assert len(t.meta["notes"]) == 2


def test_prefetch_trace(tmp_path: Path) -> None:
    t = load(tmp_path / "t.csv", PREFETCH)
    assert t.meta["format"] == "gpu-ext-prefetch"
    names = ("time_ns", "kind", "address", "bytes", "process", "thread", "faulted_outer")
    assert rows(t, *names) == [
        (0, "gpu_fault", 0x733F13803000, 4096, 2, 1, 9),
        (2_000_000, "gpu_fault", 0x733F13808000, 4096, 2, 1, 9),
    ]
    assert t.column("pages_accessed").to_pylist() == [16, 32]


def test_a_last_line_cut_off_is_left_out_with_a_note(tmp_path: Path) -> None:
    t = load(tmp_path / "t.csv", CHUNK + "7,ACTIVATE,1580")
    assert t.n_rows == 3 and "cut off" in t.meta["notes"][0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1,POPULATE", "1,NONSENSE", "line 3: hook_type is not one of ACTIVATE"),
        ("1,POPULATE", "1,", "line 3: hook_type is not one of ACTIVATE"),
        ("1,POPULATE", "x,POPULATE", "line 3: .*invalid value 'x'"),
        ("1,POPULATE", ",POPULATE", "line 3: time_ms is empty"),
        ("1,POPULATE", "9000000000000,POPULATE", None),
        ("1,POPULATE", "99000000000000,POPULATE", "line 3: time_ms is out of range"),
        ("0xffffcf69cb566d38", "hello", "line 2: chunk_addr is 'hello', not an address"),
        ("0x733f139fffff,16", "0x733f139fffff,512", "line 3: va_page_index is not below 512"),
        ("0x733f139fffff,0", "0x733f037fffff,0", "line 2: va_end lies before va_start"),
        ("1,POPULATE,158056", "1,POPULATE,99999999999", "line 3: pid is out of range"),
        ("1,POPULATE,", "1,POPULATE,4,4,", "line 3: Expected 12 columns, got 14"),
        ("list_addr,", "lost_addr,", "line 1: column 'list_addr' is missing"),
    ],
)
def test_damaged_chunk_trace(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    assert old in CHUNK
    text = CHUNK.replace(old, new, 1)
    if message is None:
        load(tmp_path / "t.csv", text)
        return
    with pytest.raises(InputError, match=message) as e:
        load(tmp_path / "t.csv", text)
    assert "t.csv" in str(e.value) and "\n" not in str(e.value)


def test_files_without_events(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 4: Expected 12 columns, got 2"):
        load(tmp_path / "t.csv", "\n".join([*CHUNK.splitlines()[:3], "1,2", "3,4"]))
    with pytest.raises(InputError, match="a header and no events"):
        load(tmp_path / "t.csv", CHUNK.splitlines()[0] + "\n")
    with pytest.raises(InputError, match="empty file"):
        load(tmp_path / "t.csv", "", format="gpu-ext-chunk")
    with pytest.raises(InputError, match="no such file"):
        import_faults(tmp_path / "absent", "nsys")
    with pytest.raises(InputError, match="line 1: column 'time_ms' is missing"):
        load(tmp_path / "t.csv", "a,b\n1,2\n", format="gpu-ext-prefetch")


def test_marks_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + CHUNK.replace("\n", "\r\n").encode())
    assert sniff(tmp_path / "t.csv").name == "gpu-ext-chunk"
    assert import_faults(tmp_path / "t.csv", "gpu-ext-chunk").n_rows == 3
    (tmp_path / "t.csv").write_bytes(CHUNK.replace("ACTIVATE", "\xff").encode("latin-1"))
    with pytest.raises(InputError, match="UTF"):
        import_faults(tmp_path / "t.csv", "gpu-ext-chunk")


def test_csv_comes_back_to_the_byte(tmp_path: Path) -> None:
    for name, text in (("gpu-ext-chunk", CHUNK), ("gpu-ext-prefetch", PREFETCH)):
        t = load(tmp_path / "in.csv", text)
        result = export_faults(t, tmp_path / "out.csv", name)
        assert result["notes"] == [] and (tmp_path / "out.csv").read_text() == text


PLACE = st.integers(0, 40)
CHUNK_EVENT = st.one_of(
    st.tuples(
        st.sampled_from(["chunk_activate", "chunk_access"]),
        st.integers(0, 9),
        PLACE,
        st.integers(0, 511),
        st.integers(1, 9),
        st.one_of(st.none(), st.integers(0, 3)),
    ),
    st.tuples(st.just("eviction_prepare"), st.integers(0, 9)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHUNK_EVENT, min_size=1, max_size=20))
def test_import_of_export_is_the_trace(tmp_path: Path, events: list[Any]) -> None:
    columns: dict[str, list[Any]] = {}
    names = ("time_ns", "kind", "address", "bytes", "process", "va_block", "chunk", "list")
    for kind, ms, *more in events:
        row: tuple[Any, ...]
        if more:
            block, page, chunk, process = more
            start = 0x7F0000000000 + block * (2 << 20)
            row = (start + page * 4096, 2 << 20, process, start, 2**64 - chunk, 2**63)
        else:
            row = (None, None, None, None, None, 2**63)
        for name, value in zip(names, (ms * 1_000_000, kind, *row), strict=True):
            columns.setdefault(name, []).append(value)
    t = FaultTrace(fault_table(columns), {})
    result = export_faults(t, tmp_path / "t.csv", "gpu-ext-chunk")
    assert result["notes"] == []
    back = import_faults(tmp_path / "t.csv", sniff(tmp_path / "t.csv").name)
    assert back.table.to_pylist() == t.table.to_pylist()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 9), PLACE, st.integers(0, 511)), min_size=1, max_size=20),
    st.booleans(),
)
def test_import_of_exported_faults(tmp_path: Path, faults: list[Any], spans: bool) -> None:
    block = [0x7F0000000000 + b * (2 << 20) for _, b, _ in faults]
    page = [p for _, _, p in faults]
    columns: dict[str, Any] = {
        "time_ns": [ms * 1_000_000 for ms, _, _ in faults],
        "kind": ["gpu_fault"] * len(faults),
        "address": [b + p * 4096 for b, p in zip(block, page, strict=True)],
        "bytes": [4096] * len(faults),
        "va_block": block,
    }
    if spans:
        columns |= {"faulted_first": page, "faulted_outer": [p + 1 for p in page]}
    t = FaultTrace(fault_table(columns), {})
    export_faults(t, tmp_path / "t.csv", "gpu-ext-prefetch")
    back = import_faults(tmp_path / "t.csv", sniff(tmp_path / "t.csv").name)
    assert back.table.to_pylist() == t.table.to_pylist()


def test_a_simulated_run_goes_to_both_files(tmp_path: Path) -> None:
    base = 0x7F0000000000
    with FaultWriter(tmp_path / "t.arrow") as w:
        for block, chunk, ms in ((0, 1, 0), (1, 2, 1), (2, 1, 2)):
            start = base + block * (2 << 20)
            w.append(time_ns=ms * 1_000_000, kind="eviction_prepare", list=99)
            w.append(
                time_ns=[ms * 1_000_000] * 3,
                kind=["gpu_fault", "chunk_activate", "chunk_access"],
                address=[start + 7 * 4096, start, start],
                bytes=[4096, 2 << 20, 2 << 20],
                va_block=start,
                chunk=[None, chunk, chunk],
                list=[None, 99, 99],
                process=1,
            )
    t = open_faults(tmp_path / "t.arrow")
    for name, n in (("gpu-ext-chunk", 9), ("gpu-ext-prefetch", 3)):
        result = export_faults(t, tmp_path / "t.csv", name)
        assert result["rows"] == n and result["notes"] == [
            f"left out: {12 - n} events of other kinds"
        ]
        back = import_faults(tmp_path / "t.csv", sniff(tmp_path / "t.csv").name)
        kept = t.table.filter(
            pc.invert(pc.is_in(t.table["kind"].cast("string"), pa.array(OTHER[name])))
        )
        assert back.table.to_pylist() == kept.to_pylist()


OTHER = {
    "gpu-ext-chunk": ["gpu_fault"],
    "gpu-ext-prefetch": ["chunk_activate", "chunk_access", "eviction_prepare"],
}


def test_what_csv_cannot_hold_is_said(tmp_path: Path) -> None:
    columns = {
        "time_ns": [1_500_000, 2_000_000],
        "kind": ["chunk_activate", "migration_in"],
        "duration_ns": [5, 5],
    }
    t = FaultTrace(fault_table(columns), {})
    result = export_faults(t, tmp_path / "t.csv", "gpu-ext-chunk")
    assert result["rows"] == 1 and len(result["notes"]) == 3
    with pytest.raises(InputError, match="holds no gpu_fault events"):
        export_faults(t, tmp_path / "x.csv", "gpu-ext-prefetch")
    with pytest.raises(InputError, match="--format"):
        export_faults(t, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


# Nsight Systems


def nsys(path: Path, *statements: str) -> Path:
    db = sqlite3.connect(path)
    for s in statements:
        db.execute(s)
    db.commit()
    db.close()
    return path


GLOBAL_PID = (1 << 56) | (4321 << 24)
GPU = (
    "CREATE TABLE CUDA_UM_GPU_PAGE_FAULT_EVENTS (start INTEGER, end INTEGER, globalPid INTEGER, "
    "deviceId INTEGER, address INTEGER, numberOfPageFaults INTEGER, faultAccessType INTEGER)",
    "INSERT INTO CUDA_UM_GPU_PAGE_FAULT_EVENTS VALUES "
    f"(100, 150, {GLOBAL_PID}, 1, 139637976727552, 7, 2), (50, 60, {GLOBAL_PID}, 0, 4096, 1, 1)",
)
CPU = (
    "CREATE TABLE CUDA_UM_CPU_PAGE_FAULT_EVENTS (start INTEGER, globalPid INTEGER, "
    "address INTEGER, originalFaultPC INTEGER)",
    f"INSERT INTO CUDA_UM_CPU_PAGE_FAULT_EVENTS VALUES (70, {GLOBAL_PID}, 8192, 12)",
)
COPY = (
    "CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, end INTEGER, deviceId INTEGER, "
    "globalPid INTEGER, bytes INTEGER, copyKind INTEGER, migrationCause INTEGER, "
    "virtualAddress INTEGER)",
    "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES "
    f"(80, 90, 0, {GLOBAL_PID}, 65536, 11, 3, 65536), (81, 85, 0, {GLOBAL_PID}, 512, 1, NULL, NULL)"
    f", (95, 99, 0, {GLOBAL_PID}, 2097152, 12, 4, 2097152)",
)


def test_nsys(tmp_path: Path) -> None:
    path = nsys(tmp_path / "report.sqlite", *GPU, *CPU, *COPY)
    assert sniff(path).name == "nsys"
    t = import_faults(path, "nsys")
    names = ("time_ns", "kind", "address", "bytes", "duration_ns", "count", "access", "cause")
    assert rows(t, *names, "process", "device") == [
        (50, "gpu_fault", 4096, None, 10, 1, "read", None, 4321, 0),
        (70, "cpu_fault", 8192, None, None, None, None, None, 4321, None),
        (80, "migration_in", 65536, 65536, 10, None, None, "prefetch", 4321, 0),
        (95, "migration_out", 2097152, 2097152, 4, None, None, "eviction", 4321, 0),
        (100, "gpu_fault", 139637976727552, None, 50, 7, "write", None, 4321, 1),
    ]
    t.save(tmp_path / "t.arrow")
    assert open_faults(tmp_path / "t.arrow").sha256 == t.sha256


def test_nsys_words_and_kinds_from_the_exports_own_tables(tmp_path: Path) -> None:
    path = nsys(
        tmp_path / "r.sqlite",
        *(s.replace("11, 3", "21, 900").replace("12, 4", "22, 4") for s in COPY),
        "CREATE TABLE ENUM_CUDA_MEMCPY_OPER (id INTEGER, name TEXT, label TEXT)",
        "INSERT INTO ENUM_CUDA_MEMCPY_OPER VALUES (1, 'CUDA_MEMCPY_KIND_HTOD', 'HtoD'), "
        "(21, 'CUDA_MEMCPY_KIND_UVM_HTOD', 'x'), (22, 'CUDA_MEMCPY_KIND_UVM_DTOH', 'y')",
        "CREATE TABLE ENUM_CUDA_UNIF_MEM_MIGRATION (id INTEGER, name TEXT, label TEXT)",
        "INSERT INTO ENUM_CUDA_UNIF_MEM_MIGRATION VALUES "
        "(4, 'CUDA_UNIF_MEM_MIGRATION_CAUSE_EVICTION', 'Eviction')",
        "CREATE TABLE StringIds (id INTEGER, value TEXT)",
        "INSERT INTO StringIds VALUES (900, 'New Cause')",
    )
    t = import_faults(path, "nsys")
    assert rows(t, "kind", "cause") == [
        ("migration_in", "new_cause"),
        ("migration_out", "eviction"),
    ]
    assert len(t.meta["notes"]) == 2  # the two tables that are absent


def test_nsys_without_optional_columns(tmp_path: Path) -> None:
    path = nsys(
        tmp_path / "r.sqlite",
        "CREATE TABLE CUDA_UM_GPU_PAGE_FAULT_EVENTS (start INTEGER, address INTEGER)",
        "INSERT INTO CUDA_UM_GPU_PAGE_FAULT_EVENTS VALUES (5, -4096)",
    )
    t = import_faults(path, "nsys")
    assert rows(t, "time_ns", "address", "count", "access") == [(5, 2**64 - 4096, None, None)]
    assert not t.has("process")


def test_bad_nsys_files(tmp_path: Path) -> None:
    none = nsys(tmp_path / "none.sqlite", "CREATE TABLE StringIds (id INTEGER, value TEXT)")
    with pytest.raises(InputError, match="no unified-memory events; record with --cuda-um"):
        import_faults(none, "nsys")
    lacking = nsys(
        tmp_path / "l.sqlite", "CREATE TABLE CUDA_UM_CPU_PAGE_FAULT_EVENTS (start INTEGER)"
    )
    with pytest.raises(InputError, match="has no column 'address'"):
        import_faults(lacking, "nsys")
    words = nsys(tmp_path / "w.sqlite", CPU[0], CPU[1].replace("(70,", "('soon',"))
    with pytest.raises(InputError, match="event 1: start is 'soon'"):
        import_faults(words, "nsys")
    null = nsys(tmp_path / "n.sqlite", CPU[0], CPU[1].replace("(70,", "(NULL,"))
    with pytest.raises(InputError, match="event 1: start is None"):
        import_faults(null, "nsys")
    (tmp_path / "cut.sqlite").write_bytes(none.read_bytes()[:3000])
    with pytest.raises(InputError, match="damaged SQLite file"):
        import_faults(tmp_path / "cut.sqlite", "nsys")
    with pytest.raises(InputError, match="damaged SQLite file"):
        load(tmp_path / "t.csv", CHUNK, format="nsys")
    (tmp_path / "r.nsys-rep").write_bytes(b"QDREP")
    with pytest.raises(InputError, match="nsys export --type sqlite"):
        sniff(tmp_path / "r.nsys-rep")


# The commands


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(trace, [str(a) for a in args])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_commands(tmp_path: Path) -> None:
    source, arrow = tmp_path / "in.csv", tmp_path / "t.arrow"
    source.write_text(CHUNK)
    d = json.loads(run("import", source, "-o", arrow, "--json"))
    assert d["record"] == "faults" and d["events"] == 3 and d["meta"]["format"] == "gpu-ext-chunk"
    assert "--out" in d["meta"]["command"] and d["kinds"]["chunk_access"] == 1
    assert json.loads(run("info", arrow, "--json"))["sha256"] == d["sha256"]
    assert "chunk_activate" in run("info", arrow)
    assert "coarse-times" in run("check", arrow)
    found = json.loads(run("check", arrow, "--json"))["findings"]
    assert [f["code"] for f in found] == ["coarse-times"]
    assert "services an activation" in run("stats", arrow, arrow)
    [s] = json.loads(run("stats", arrow, "--json"))["traces"]
    assert s["chunks"]["activate_evict_ratio"] == 1.0
    out = tmp_path / "out.csv"
    assert "3 rows" in run("export", arrow, "-o", out, "--format", "gpu-ext-chunk")
    assert out.read_text() == CHUNK
    with pytest.raises(InputError, match="have no phases"):
        run("stats", arrow, "--phase", "decode")
    with pytest.raises(InputError, match="for routing dumps"):
        run("import", source, "-o", tmp_path / "x.arrow", "--n-experts", 8)
    with pytest.raises(InputError, match=r"choose one of .*nsys"):
        run("import", source, "-o", tmp_path / "x.arrow", "--format", "gpu")
    assert {p.name for p in tmp_path.iterdir()} == {"in.csv", "t.arrow", "out.csv"}
    assert {f.name for f in formats().values() if f.faults} == {
        "gpu-ext-chunk",
        "gpu-ext-prefetch",
        "nsys",
    }
