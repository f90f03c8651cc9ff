"""SQLite exports of Nsight Systems (``nsys export --type sqlite``): unified-memory events.

GPU page faults (``CUDA_UM_GPU_PAGE_FAULT_EVENTS``), CPU page faults
(``CUDA_UM_CPU_PAGE_FAULT_EVENTS``) and the driver's transfers (``CUPTI_ACTIVITY_KIND_MEMCPY`` with
a copy kind of unified memory). Which tables and columns there are depends on the version of nsys
and on what was traced: what is absent is left missing. Words are read from the export's own tables
(``ENUM_...``, ``StringIds``) where it has them.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.faults import FaultTrace, fault_table
from traces.importers.format import Format

MAGIC = b"SQLite format 3\x00"
GPU_FAULTS = "CUDA_UM_GPU_PAGE_FAULT_EVENTS"
CPU_FAULTS = "CUDA_UM_CPU_PAGE_FAULT_EVENTS"
COPIES = "CUPTI_ACTIVITY_KIND_MEMCPY"
ACCESS = {0: "unknown", 1: "read", 2: "write", 3: "atomic", 4: "prefetch"}
CAUSE = {
    0: "unknown",
    1: "user",
    2: "coherence",
    3: "prefetch",
    4: "eviction",
    5: "access_counters",
}
COPY_KINDS = {11: "migration_in", 12: "migration_out"}
MEND = "record with --cuda-um-gpu-page-faults=true --cuda-um-cpu-page-faults=true and export again"


def load(path: Path) -> FaultTrace:
    """Read an export; raises `InputError` where it has no unified-memory event."""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            return _load(path, _Export(path, db))
        finally:
            db.close()
    except (sqlite3.Error, UnicodeDecodeError) as e:
        raise InputError(f"{path}: damaged SQLite file ({e}); export it again") from None


def _load(path: Path, export: _Export) -> FaultTrace:
    parts, notes = [], []
    for table, read in ((GPU_FAULTS, _gpu_faults), (CPU_FAULTS, _cpu_faults), (COPIES, _copies)):
        if table not in export.tables:
            notes.append(f"the export has no table {table}")
            continue
        part = read(export)
        if part is not None:
            parts.append(part)
    if not parts:
        raise InputError(f"{path}: holds no unified-memory events; {MEND}")
    names = {n for p in parts for n in p}
    columns = {}
    for name in names:
        pieces = [p[name] if name in p else pa.nulls(len(p["time_ns"])) for p in parts]
        type_ = next(p[name].type for p in parts if name in p)
        columns[name] = pa.concat_arrays([x.cast(type_) for x in pieces])
    return FaultTrace(fault_table(columns), {"notes": notes})


def _gpu_faults(export: _Export) -> dict[str, pa.Array] | None:
    t = export.read(
        GPU_FAULTS,
        ("start", "address"),
        ("end", "globalPid", "deviceId", "numberOfPageFaults", "faultAccessType"),
    )
    if not t:
        return None
    words = ACCESS | export.words("ENUM_CUDA_UNIF_MEM_ACCESS_TYPE")
    return {
        "time_ns": t["start"],
        "kind": pa.repeat("gpu_fault", len(t["start"])),
        "address": _address(t["address"]),
        "duration_ns": _duration(t),
        "count": t["numberOfPageFaults"],
        "access": export.spell(t["faultAccessType"], words),
        "process": _process(t["globalPid"]),
        "device": t["deviceId"],
    }


def _cpu_faults(export: _Export) -> dict[str, pa.Array] | None:
    t = export.read(CPU_FAULTS, ("start", "address"), ("globalPid",))
    if not t:
        return None
    return {
        "time_ns": t["start"],
        "kind": pa.repeat("cpu_fault", len(t["start"])),
        "address": _address(t["address"]),
        "process": _process(t["globalPid"]),
    }


def _copies(export: _Export) -> dict[str, pa.Array] | None:
    kinds = export.copy_kinds()
    t = export.read(
        COPIES,
        ("start", "bytes", "copyKind"),
        ("end", "globalPid", "deviceId", "migrationCause", "virtualAddress"),
        f"WHERE copyKind IN ({', '.join(map(str, kinds))})",
    )
    if not t:
        return None
    return {
        "time_ns": t["start"],
        "kind": export.spell(t["copyKind"], kinds),
        "address": _address(t["virtualAddress"]),
        "bytes": t["bytes"],
        "duration_ns": _duration(t),
        "cause": export.spell(
            t["migrationCause"], CAUSE | export.words("ENUM_CUDA_UNIF_MEM_MIGRATION")
        ),
        "process": _process(t["globalPid"]),
        "device": t["deviceId"],
    }


class _Export:
    """An open export: its tables, their columns, its words."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self.db = path, db
        names = db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        self.tables = {str(n) for (n,) in names}
        self._strings: dict[int, str] | None = None

    def read(
        self, table: str, required: tuple[str, ...], optional: tuple[str, ...], where: str = ""
    ) -> dict[str, pa.Array]:
        """Columns as int64 arrays; optional ones that are absent are null. Empty without rows."""
        there = {str(row[1]) for row in self.db.execute(f"PRAGMA table_info({table})")}
        lacking = [n for n in required if n not in there]
        if lacking:
            raise InputError(
                f"{self.path}: table {table} has no column {lacking[0]!r}; "
                "export it again with a current nsys"
            )
        names = [*required, *(n for n in optional if n in there)]
        quoted = ", ".join(f'"{n}"' for n in names)
        rows = self.db.execute(f"SELECT {quoted} FROM {table} {where}").fetchall()
        if not rows:
            return {}
        out = {}
        for name, values in zip(names, zip(*rows, strict=True), strict=True):
            try:
                out[name] = pa.array(values, pa.int64())
            except (pa.ArrowException, OverflowError, TypeError):
                bad = next(i for i, v in enumerate(values) if not isinstance(v, int | None))
                raise self._row(table, bad, name, values[bad]) from None
            if name in required and out[name].null_count:
                raise self._row(table, values.index(None), name, None)
        return out | {n: pa.nulls(len(rows), pa.int64()) for n in optional if n not in there}

    def _row(self, table: str, row: int, name: str, value: Any) -> InputError:
        return InputError(
            f"{self.path}: table {table}, event {row + 1}: {name} is {value!r}, not a number; "
            "export it again"
        )

    def words(self, table: str) -> dict[int, str]:
        """An ``ENUM_...`` table as number: word in lower case; empty where it is absent."""
        if table not in self.tables:
            return {}
        there = {str(row[1]) for row in self.db.execute(f"PRAGMA table_info({table})")}
        name = "name" if "name" in there else "label"
        if not {"id", name} <= there:
            return {}
        rows = self.db.execute(f"SELECT id, {name} FROM {table}")
        return {int(i): _plain(str(text)) for i, text in rows if text}

    def copy_kinds(self) -> dict[int, str]:
        """Numbers of the copies that are unified memory's, and what they are here."""
        found = {}
        for number, word in self.words("ENUM_CUDA_MEMCPY_OPER").items():
            if "uvm" in word or "unified" in word:
                if "htod" in word:
                    found[number] = "migration_in"
                elif "dtoh" in word:
                    found[number] = "migration_out"
        return found or COPY_KINDS

    def spell(self, codes: pa.Array, words: dict[int, str]) -> pa.Array:
        """Numbers as words: by ``words``, else by the table of strings, else ``code N``."""
        encoded = codes.dictionary_encode()
        texts = [words.get(c) or self._string(c) for c in encoded.dictionary.to_pylist()]
        return pa.array(texts, pa.string()).take(encoded.indices)

    def _string(self, code: int) -> str:
        if self._strings is None:
            rows = []
            if "StringIds" in self.tables:
                rows = self.db.execute("SELECT id, value FROM StringIds").fetchall()
            self._strings = {int(i): _plain(str(s)) for i, s in rows}
        return self._strings.get(code, f"code {code}")


def _plain(text: str) -> str:
    """``CUDA_UNIF_MEM_MIGRATION_ACCESS_COUNTERS`` as ``access_counters``."""
    for prefix in ("ACCESS_TYPE_", "CAUSE_", "UNIF_MEM_MIGRATION_", "UNIF_MEM_ACCESS_TYPE_"):
        if prefix in text:
            text = text.rpartition(prefix)[2]
    return text.lower().replace(" ", "_")


def _duration(t: dict[str, pa.Array]) -> pa.Array:
    start = t["start"].to_numpy(zero_copy_only=False)
    end = t["end"].fill_null(-1).to_numpy(zero_copy_only=False)
    return pa.array(end - start, mask=end < start)


def _process(global_pid: pa.Array) -> pa.Array:
    """The process id: 24 bits of the serialised id, above 24 bits of thread id."""
    ids = global_pid.fill_null(0).to_numpy(zero_copy_only=False)
    return pa.array((ids >> 24) & 0xFFFFFF, mask=~_valid(global_pid))


def _address(column: pa.Array) -> pa.Array:
    """SQLite's integers are signed, addresses are not; 0 means: not known."""
    values = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64)
    return pa.array(values, mask=values == 0)


def _valid(column: pa.Array) -> np.ndarray:
    valid: np.ndarray = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


FORMATS = (Format("nsys", load, recognises=lambda h: h.startswith(MAGIC), faults=True),)
