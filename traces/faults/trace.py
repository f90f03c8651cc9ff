"""Fault traces: one row per event of the unified-memory driver, in time order.

The same crash-safe files as routing traces (`traces.files.ipc`), with the schema of
`traces.files.schema.faults_schema`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.faults.writer import WORDS, FaultWriter, hash_input, in_time_order
from traces.files.ipc import HEADER, IpcFile, content_hash, read_ipc, require_file
from traces.files.schema import (
    FAULT_COLUMNS,
    FAULT_OPTIONAL,
    FAULTS_SCHEMA,
    FAULTS_VERSION,
    META_KEY,
)

__all__ = ["FaultTrace", "FaultWriter", "open_faults"]

BLOCK = 2 << 20
PAGE = 4096


class FaultTrace:
    """A fault trace: ``table`` (Arrow), ``meta`` (JSON), ``complete``."""

    def __init__(
        self,
        table: pa.Table,
        meta: dict[str, Any],
        *,
        path: Path | None = None,
        complete: bool = True,
        recorded_sha256: str | None = None,
    ) -> None:
        self.table, self.meta, self.path, self.complete = table, meta, path, complete
        self.recorded_sha256 = recorded_sha256
        """The hash the writer stored, to compare with `sha256`; None where it stored none."""

    @property
    def n_rows(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> pa.Array:
        """A column of the schema as one Arrow array; all null where the file does not have it."""
        if name not in self.table.column_names:
            return pa.nulls(self.n_rows, (FAULT_COLUMNS | FAULT_OPTIONAL)[name])
        return self.table.column(name).combine_chunks()

    def has(self, name: str) -> bool:
        """Whether a column holds any value."""
        column = self.column(name)
        return bool(column.null_count < len(column))

    def numbers(self, name: str, missing: int = 0) -> np.ndarray:
        """A numeric column [rows], ``missing`` where it is null."""
        column = self.column(name)
        if column.null_count:
            column = column.fill_null(missing)
        return column.to_numpy(zero_copy_only=False)

    def present(self, name: str) -> np.ndarray:
        """bool [rows]: where a column is not null."""
        return self.column(name).is_valid().to_numpy(zero_copy_only=False)

    def words(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """A word column (kind, access, cause) as codes int8 [rows], -1 where null, and the words
        they stand for."""
        column = self.table.column(name).unify_dictionaries().combine_chunks()
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes.astype(np.int8), tuple(column.dictionary.to_pylist())

    def where(self, *kinds: str) -> np.ndarray:
        """bool [rows]: events of some kinds."""
        codes, words = self.words("kind")
        return np.isin(codes, [words.index(k) for k in kinds if k in words])

    @cached_property
    def blocks(self) -> np.ndarray:
        """uint64 [rows]: first byte of each event's 2 MiB block, from ``va_block`` or else from
        ``address``; 0 where neither is known."""
        block = self.numbers("va_block")
        address = self.numbers("address")
        return np.where(self.present("va_block"), block, address & np.uint64(~(BLOCK - 1) % 2**64))

    @cached_property
    def owners(self) -> np.ndarray:
        """int64 [rows]: numbers that tell address spaces apart: by ``va_space`` where the tracer
        knows it, else by ``process``."""
        name = "va_space" if self.has("va_space") else "process"
        _, owner = np.unique(self.numbers(name), return_inverse=True)
        return owner.reshape(-1).astype(np.int64)

    @cached_property
    def sha256(self) -> str:
        """Hash of the columns' values, whatever the file's layout."""
        return content_hash(hash_input(self.table.to_batches()))

    def save(self, path: str | Path, meta: dict[str, Any] | None = None) -> None:
        """Write to a file (complete, one batch)."""
        optional = [n for n in self.table.column_names if n in FAULT_OPTIONAL]
        writer = FaultWriter(
            path, self.meta if meta is None else meta, optional=optional, batch_rows=self.n_rows + 1
        )
        try:
            writer.append(**{n: self.column(n) for n in self.table.column_names})
            writer.close()
        except BaseException:
            writer.discard()
            raise


def fault_table(columns: Mapping[str, Any]) -> pa.Table:
    """Columns [rows] (NumPy or Arrow, of `FAULT_COLUMNS` and `FAULT_OPTIONAL`) as a table in time
    order. Columns of the schema that are not given are null; optional ones that hold no value are
    left out."""
    kept = {}
    for name, type_ in (FAULT_COLUMNS | FAULT_OPTIONAL).items():
        given = columns.get(name)
        n = len(columns["time_ns"])
        column = pa.nulls(n, type_) if given is None else given
        if not isinstance(column, pa.Array):
            column = pa.array(column, None if pa.types.is_dictionary(type_) else type_)
        column = _as_words(column) if pa.types.is_dictionary(type_) else column.cast(type_)
        if name in FAULT_COLUMNS or column.null_count < n:
            kept[name] = column
    return in_time_order(pa.table(kept))


def _as_words(column: pa.Array) -> pa.DictionaryArray:
    if not isinstance(column, pa.DictionaryArray):
        column = column.cast(pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int8()), column.dictionary)


def open_faults(path: str | Path, *, checked: bool = True) -> FaultTrace:
    """Open a fault trace, whole or cut off. Raises `InputError` where it is not one.

    ``checked=False`` lets words pass that are not in their list, as missing ones: it is for
    `traces.faults.check`, which finds that the rows are not those recorded.
    """
    content = _read(Path(path))
    try:
        meta = json.loads((content.schema.metadata or {}).get(META_KEY, b"{}"))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: its metadata is damaged; copy or record it again") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("version", 0), int):
        raise InputError(f"{path}: its metadata is damaged; copy or record it again")
    if meta.get("schema") != FAULTS_SCHEMA:
        what = meta.get("schema") or "no uvmsim"
        raise InputError(f"{path}: holds {what} records, not faults; name a fault trace")
    if meta.get("version", 0) > FAULTS_VERSION:
        raise InputError(
            f"{path}: written by a newer uvmsim (fault schema {meta['version']}, this one reads up "
            f"to {FAULTS_VERSION}); update uvmsim"
        )
    _check_columns(content.schema, meta.get("version", 0), Path(path))
    if not content.batches:
        raise InputError(f"{path}: holds no events; record it again")
    if checked:
        _check_words(content.batches, Path(path))
        batches = content.batches
    else:
        batches = [_without_wrong_words(b) for b in content.batches]
    table = pa.Table.from_batches(batches)
    if not content.complete:  # sorting is the last thing a writer does
        table = in_time_order(table.unify_dictionaries())
    mark = content.trailer or {}
    recorded, remarks = mark.get("sha256"), mark.get("remarks")
    if isinstance(remarks, dict):
        meta = meta | {"recording": remarks}
    return FaultTrace(
        table, meta, path=Path(path), complete=content.complete, recorded_sha256=recorded
    )


def _read(p: Path) -> IpcFile:
    """An Arrow file, or an exported Parquet file."""
    require_file(p)
    with p.open("rb") as f:
        if f.read(4) != b"PAR1":
            return read_ipc(p)
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(p)
        types = FAULT_COLUMNS | FAULT_OPTIONAL
        for i, name in enumerate(table.column_names):
            if name in types and pa.types.is_dictionary(types[name]):
                words = table.column(name).cast(pa.string()).dictionary_encode()
                column = words.combine_chunks().cast(types[name])
                table = table.set_column(i, pa.field(name, types[name]), column)
    except (pa.ArrowException, OSError) as e:
        why = str(e).splitlines()[0]
        raise InputError(f"{p}: damaged Parquet file ({why}); export or copy it again") from None
    whole = (table.schema.metadata or {}).get(b"uvmsim.complete", b"true") == b"true"
    return IpcFile(table.schema, table.combine_chunks().to_batches(), {} if whole else None)


def is_fault_trace(path: str | Path) -> bool:
    """Whether a file is a fault trace. False too where it is no trace, or is not there."""
    try:
        with Path(path).open("rb") as f:
            magic = f.read(6)
        if magic.startswith(b"PAR1"):
            import pyarrow.parquet as pq

            schema = pq.read_schema(path)
        elif magic == b"ARROW1":
            with pa.OSFile(str(path)) as source:
                source.seek(HEADER)
                schema = pa.ipc.open_stream(source).schema
        else:
            return False
        meta = json.loads((schema.metadata or {}).get(META_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError, RecursionError):
        return False
    return isinstance(meta, dict) and meta.get("schema") == FAULTS_SCHEMA


def _check_columns(schema: pa.Schema, version: int, p: Path) -> None:
    """Raise `InputError` unless the columns are those of `traces.files.schema`."""
    for name, type_ in (FAULT_COLUMNS | FAULT_OPTIONAL).items():
        if name not in schema.names:
            if name in FAULT_COLUMNS and (version > 1 or name not in ("chunk", "list")):
                raise InputError(f"{p}: column {name!r} is missing; make the trace again")
            continue
        if schema.field(name).type != type_:
            raise InputError(
                f"{p}: column {name!r} is {schema.field(name).type}, not {type_}; make it again"
            )


def _check_words(batches: list[pa.RecordBatch], p: Path) -> None:
    """Raise `InputError` where a word's code is no index of the words, which Arrow would follow out
    of its memory, or where the time or the kind of an event is missing."""
    rows = 0
    for batch in batches:
        for name in (n for n in FAULT_COLUMNS if n in batch.schema.names):
            column = batch.column(name)
            bad = ~_in_dictionary(column) if name in WORDS else np.zeros(0, bool)
            what = f"{name} is no word of its list"
            if name in ("time_ns", "kind") and column.null_count:
                bad, what = column.is_null().to_numpy(zero_copy_only=False), f"{name} is empty"
            if bad.any():
                row = rows + int(np.argmax(bad))
                raise InputError(f"{p}, row {row}: {what} (damaged?); see `uvmsim trace check`")
        rows += batch.num_rows


def _without_wrong_words(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same events, words missing where their code is no index of the words."""
    for i, name in enumerate(batch.schema.names):
        if name in WORDS:
            column = batch.column(name)
            codes = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
            codes = np.where(_in_dictionary(column), codes, 0).astype(np.int8)
            missing = ~_in_dictionary(column) | ~column.is_valid().to_numpy(zero_copy_only=False)
            mended = pa.DictionaryArray.from_arrays(
                pa.array(codes, mask=missing), column.dictionary
            )
            batch = batch.set_column(i, batch.schema.field(i), mended)
    return batch


def _in_dictionary(column: pa.DictionaryArray) -> np.ndarray:
    """bool [rows]: whether a code is one of a word; true where the word is missing."""
    codes = column.indices
    if codes.null_count:
        codes = codes.fill_null(0)
    values = codes.to_numpy(zero_copy_only=False)
    inside = (values >= 0) & (values < len(column.dictionary))
    if column.null_count:
        inside |= column.is_null().to_numpy(zero_copy_only=False)
    return inside
