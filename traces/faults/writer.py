"""The writer of fault traces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.files.ipc import IpcWriter, content_hash
from traces.files.schema import FAULT_COLUMNS, FAULT_KINDS, FAULT_OPTIONAL, faults_schema
from traces.files.writer import TraceWriter

WORDS = ("kind", "access", "cause")
WORDS_MAX = 127
"""Distinct words a column: their numbers are stored in one byte."""
HASHED_ALWAYS = ("time_ns", "address", "bytes", "duration_ns", "count", "process", "va_block")
"""The columns of version 1: hashed in this order, those added later only where they hold a value.
So the same rows have the same hash, whichever version wrote them."""
HASHED_IF_PRESENT = ("chunk", "list", *FAULT_OPTIONAL)


class FaultWriter(TraceWriter):
    """Write a fault trace; a context manager, see `TraceWriter`.

    ``meta``: plain JSON types (tool, command, machine, ...). ``optional``: columns of
    `traces.files.schema.FAULT_OPTIONAL` that the trace shall have. Events may come out of order:
    closing the file sorts them by time, those of one time as they came. (`open_faults` does the same
    for a file that was cut off.)
    """

    def __init__(
        self,
        path: str | Path,
        meta: dict[str, Any] | None = None,
        *,
        optional: Iterable[str] = (),
        batch_rows: int = 65536,
    ) -> None:
        self._schema = faults_schema(meta, optional)
        self._gathered: list[dict[str, pa.Array]] = []
        self._size = batch_rows
        self._last, self._ascending = np.iinfo(np.int64).min, True
        self._words: dict[str, dict[str, int]] = {
            "kind": {k: i for i, k in enumerate(FAULT_KINDS)},
            # Arrow lets a dictionary grow within a file, but not from nothing.
            "access": {"read": 0, "write": 1, "atomic": 2},
            "cause": {"unknown": 0},
        }
        self._out = IpcWriter(path, self._schema, lambda b: content_hash(hash_input(b)))

    def append(self, *, time_ns: Any, kind: Any, **columns: Any) -> None:
        """Append n events.

        ``time_ns``: integers [n]; ``kind``: one of `FAULT_KINDS`, a string or [n] of them. Other
        columns of the trace: NumPy or Arrow arrays or lists [n], or scalars; None, or None among
        the values, is missing. Raises `ValueError` for an unknown column or kind, or columns of
        different lengths.
        """
        times = np.atleast_1d(np.asarray(time_ns)).astype(np.int64, copy=False)
        n = len(times)
        values = {"time_ns": times, "kind": kind} | columns
        unknown = set(values) - set(self._schema.names)
        if unknown:
            raise ValueError(f"no column {sorted(unknown)[0]!r} in this fault trace")
        arrays = {f.name: self._array(f, values.get(f.name), n) for f in self._schema}
        if n:
            falls = times[0] < self._last or bool((times[1:] < times[:-1]).any())
            self._ascending = self._ascending and not falls
            self._last = int(times[-1])
        self._gathered.append(arrays)
        self._used += n
        if self._used >= self._size:
            self.flush()

    def _array(self, field: pa.Field, given: Any, n: int) -> pa.Array:
        word = field.name in WORDS
        type_ = pa.int8() if word else field.type
        if given is None or isinstance(given, str) or np.ndim(given) == 0:
            if word:
                given = self._code(field.name, given)
            elif isinstance(given, np.generic):
                given = given.item()
            if given is None:
                if not field.nullable:
                    raise ValueError(f"{field.name} is missing")
                return pa.nulls(n, type_)
            return pa.repeat(pa.scalar(given, type_), n)
        if len(given) != n:
            raise ValueError(f"{field.name} has {len(given)} rows, time_ns {n}")
        if isinstance(given, pa.ChunkedArray):
            given = given.combine_chunks()
        if not word:
            return given.cast(type_) if isinstance(given, pa.Array) else pa.array(given, type_)
        coded = given if isinstance(given, pa.Array) else pa.array(given, pa.string())
        if not isinstance(coded, pa.DictionaryArray):
            coded = coded.dictionary_encode()
        codes = [self._code(field.name, w) for w in coded.dictionary.to_pylist()]
        out = pa.array(codes, type_).take(coded.indices)
        if out.null_count and not field.nullable:
            raise ValueError(f"{field.name} is missing in some rows")
        return out

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

    def _write_gathered(self, n: int) -> None:
        gathered, self._gathered = self._gathered, []
        arrays = []
        for field in self._schema:
            column = pa.concat_arrays([r[field.name] for r in gathered])
            if field.name in WORDS:
                words = pa.array(list(self._words[field.name]), pa.string())
                column = pa.DictionaryArray.from_arrays(column, words)
            arrays.append(column)
        self._out.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self, remarks: dict[str, Any] | None = None) -> None:
        """Mark the trace complete, its events sorted by time, and give it its name. ``remarks`` on
        the recording (plain JSON types) become ``meta["recording"]`` of the trace."""
        self.flush()
        self._out.close(None if self._ascending else in_time_order, remarks)


def in_time_order(table: pa.Table) -> pa.Table:
    """The events sorted by time; those of one time keep their order."""
    time = table.column("time_ns").to_numpy()
    if (time[1:] >= time[:-1]).all():
        return table
    return table.take(pa.array(np.argsort(time, kind="stable")))


def hash_input(
    batches: Sequence[pa.RecordBatch],
) -> Iterable[tuple[str, Sequence[np.ndarray]]]:
    """What `traces.files.ipc.content_hash` hashes: values, and which of them are there."""
    names = batches[0].schema.names if batches else list(FAULT_COLUMNS)
    for name in HASHED_ALWAYS:
        yield from _number(name, [b.column(name) for b in batches])
    for name in WORDS:
        yield name, [np.frombuffer(_json_words([b.column(name) for b in batches]), np.uint8)]
    for name in HASHED_IF_PRESENT:
        if name in names:
            columns = [b.column(name) for b in batches]
            if any(c.null_count < len(c) for c in columns):
                yield from _number(name, columns)


def _number(name: str, columns: Sequence[pa.Array]) -> Iterable[tuple[str, list[np.ndarray]]]:
    dtype = (FAULT_COLUMNS | FAULT_OPTIONAL)[name].to_pandas_dtype()
    filled = [c.fill_null(0) if c.null_count else c for c in columns]
    yield name, [c.to_numpy(zero_copy_only=False).astype(dtype, copy=False) for c in filled]
    yield f"{name} present", [c.is_valid().to_numpy(zero_copy_only=False) for c in columns]


def _json_words(columns: Sequence[pa.DictionaryArray]) -> bytes:
    """What ``json.dumps`` makes of the list of all words, in a fraction of its time."""
    parts: list[str] = []
    for c in columns:
        # The last one is where -1, a missing word, points.
        texts = [json.dumps(w) for w in c.dictionary.to_pylist()] + ["null"]
        codes = c.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        parts += map(texts.__getitem__, codes.tolist())
    return f"[{', '.join(parts)}]".encode()
