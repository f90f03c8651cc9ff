"""Fault traces: one row per event of the unified-memory driver, in time order.

The same crash-safe files as routing traces (`traces.ipc`), with the schema of
`traces.schema.faults_schema`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.ipc import IpcWriter, content_hash, read_ipc
from traces.schema import FAULT_KINDS, FAULTS_SCHEMA, FAULTS_VERSION, META_KEY, faults_schema

WORDS = ("kind", "access", "cause")
NUMBERS: dict[str, Any] = {
    "time_ns": np.int64,
    "address": np.uint64,
    "bytes": np.int64,
    "duration_ns": np.int64,
    "count": np.int32,
    "process": np.int32,
    "va_block": np.uint64,
}
WORDS_MAX = 127
"""Distinct words a column: their numbers are stored in one byte."""


class FaultWriter:
    """Write a fault trace; used as a context manager, as `traces.routing.RoutingWriter` is.

    ``meta``: plain JSON types (tool, command, machine, ...).
    """

    def __init__(
        self, path: str | Path, meta: dict[str, Any] | None = None, *, batch_rows: int = 65536
    ) -> None:
        self._schema = faults_schema(meta)
        self._rows: list[dict[str, pa.Array]] = []
        self._used, self._size = 0, batch_rows
        self._words: dict[str, dict[str, int]] = {
            "kind": {k: i for i, k in enumerate(FAULT_KINDS)},
            # Arrow lets a dictionary grow within a file, but not from nothing.
            "access": {"read": 0, "write": 1, "atomic": 2},
            "cause": {"unknown": 0},
        }
        self._out = IpcWriter(path, self._schema, lambda b: content_hash(_hash_input(b)))

    @property
    def rows(self) -> int:
        """Events appended so far."""
        return self._out.rows + self._used

    def append(self, *, time_ns: Any, kind: Any, **columns: Any) -> None:
        """Append n events.

        ``time_ns``: integers [n]; ``kind``: one of `FAULT_KINDS`, a string or [n] of them. Other
        columns of the schema: arrays [n] or scalars; None, or None among the values, is missing.
        Raises `ValueError` for an unknown column or kind, or columns of different lengths.
        """
        times = np.atleast_1d(np.asarray(time_ns))
        n = len(times)
        values = {"time_ns": times, "kind": kind} | columns
        unknown = set(values) - set(self._schema.names)
        if unknown:
            raise ValueError(f"no column {sorted(unknown)[0]!r} in a fault trace")
        arrays = {}
        for field in self._schema:
            given: Any = values.get(field.name)
            if np.ndim(given) == 0:
                given = [given] * n
            if len(given) != n:
                raise ValueError(f"{field.name} has {len(given)} rows, time_ns {n}")
            arrays[field.name] = (
                pa.array([self._code(field.name, w) for w in given], pa.int8())
                if field.name in WORDS
                else pa.array(given, field.type)
            )
        self._rows.append(arrays)
        self._used += n
        if self._used >= self._size:
            self.flush()

    def _code(self, column: str, word: str | None) -> int | None:
        if word is None:
            return None
        codes = self._words[column]
        if word not in codes:
            if column == "kind":
                raise ValueError(f"unknown kind {word!r}; one of {', '.join(FAULT_KINDS)}")
            if len(codes) == WORDS_MAX:
                raise ValueError(f"{column}: more than {WORDS_MAX} different words")
            codes[word] = len(codes)
        return codes[word]

    def flush(self) -> None:
        """Bring what was appended so far to disk."""
        if not self._used:
            return
        arrays = []
        for field in self._schema:
            column = pa.concat_arrays([r[field.name] for r in self._rows])
            if field.name in WORDS:
                words = pa.array(list(self._words[field.name]), pa.string())
                column = pa.DictionaryArray.from_arrays(column, words)
            arrays.append(column)
        self._rows, self._used = [], 0
        self._out.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Mark the trace complete and give it its name."""
        self.flush()
        self._out.close()

    def __enter__(self) -> FaultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.flush()
            self._out.abandon()


class FaultTrace:
    """A fault trace: ``table`` (Arrow), ``meta`` (JSON), ``complete``."""

    def __init__(
        self, table: pa.Table, meta: dict[str, Any], *, path: Path, complete: bool
    ) -> None:
        self.table, self.meta, self.path, self.complete = table, meta, path, complete

    @property
    def n_rows(self) -> int:
        return int(self.table.num_rows)

    def numbers(self, name: str, missing: int = 0) -> np.ndarray:
        """A numeric column [rows], ``missing`` where it is null."""
        column = self.table.column(name).combine_chunks()
        if column.null_count:
            column = column.fill_null(missing)
        return column.to_numpy(zero_copy_only=False)

    def words(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """A word column (kind, access, cause) as codes int8 [rows], -1 where null, and the words
        they stand for."""
        column = self.table.column(name).unify_dictionaries().combine_chunks()
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes.astype(np.int8), tuple(column.dictionary.to_pylist())

    @cached_property
    def sha256(self) -> str:
        """Hash of the columns' values, whatever the file's layout."""
        return content_hash(_hash_input(self.table.to_batches()))


def open_faults(path: str | Path) -> FaultTrace:
    """Open a fault trace, whole or cut off. Raises `InputError` where it is not one."""
    content = read_ipc(path)
    try:
        meta = json.loads((content.schema.metadata or {}).get(META_KEY, b"{}"))
    except ValueError:
        raise InputError(f"{path}: its metadata is damaged; copy or record it again") from None
    if meta.get("schema") != FAULTS_SCHEMA:
        what = meta.get("schema") or "no uvmsim"
        raise InputError(f"{path}: holds {what} records, not faults; name a fault trace")
    if meta.get("version", 0) > FAULTS_VERSION:
        raise InputError(
            f"{path}: written by a newer uvmsim (fault schema {meta['version']}, this one reads up "
            f"to {FAULTS_VERSION}); update uvmsim"
        )
    if not content.batches:
        raise InputError(f"{path}: holds no events; record it again")
    table = pa.Table.from_batches(content.batches)
    return FaultTrace(table, meta, path=Path(path), complete=content.complete)


def _hash_input(batches: Sequence[pa.RecordBatch]) -> Iterable[tuple[str, Sequence[np.ndarray]]]:
    for name, dtype in NUMBERS.items():
        columns = [b.column(name) for b in batches]
        yield name, [_plain(c, dtype) for c in columns]
        yield f"{name} present", [c.is_valid().to_numpy(zero_copy_only=False) for c in columns]
    for name in WORDS:
        words = [w for b in batches for w in b.column(name).to_pylist()]
        yield name, [np.frombuffer(json.dumps(words).encode(), np.uint8)]


def _plain(column: pa.Array, dtype: Any) -> np.ndarray:
    filled = column.fill_null(0) if column.null_count else column
    return filled.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
