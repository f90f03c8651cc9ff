"""Arrow IPC files that survive a kill.

A recording is written in Arrow's IPC *file* format to ``PATH.partial`` and renamed to ``PATH`` when
it is closed. The last record batch is empty and carries the closing mark (`TRAILER_KEY`); a file
without it is incomplete. The file format is the stream format between two magic strings, with an
index (the footer) at the end, so a file that lost its end is still read: as a stream, after the
first eight bytes, up to the last batch that is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.files.target import check_target

MAGIC = b"ARROW1"
HEADER = 8  # the magic, padded
TRAILER_KEY = b"uvmsim.end"
COMPACT_LIMIT = 4 << 30
"""Recordings above this many bytes keep their batches: compacting holds all of one in memory."""


@dataclass
class IpcFile:
    """What an IPC file holds. ``trailer`` is None where the closing mark is absent."""

    schema: pa.Schema
    batches: list[pa.RecordBatch]
    trailer: dict[str, Any] | None

    @property
    def complete(self) -> bool:
        return self.trailer is not None

    @property
    def rows(self) -> int:
        return sum(b.num_rows for b in self.batches)


def read_ipc(path: str | Path) -> IpcFile:
    """Memory-map an IPC file; without a footer, recover every batch that is whole.

    Raises `InputError` where there is no such file (naming ``PATH.partial`` where that exists), or
    it is no Arrow file, or it was cut before its schema.
    """
    p = Path(path)
    require_file(p)
    with p.open("rb") as f:
        head = f.read(HEADER)
    if not head:
        raise InputError(f"{p}: empty file; the recording was stopped before it wrote anything")
    if not head.startswith(MAGIC):
        raise InputError(
            f"{p}: not an Arrow IPC file; bring other formats in with `uvmsim trace import`"
        )
    source = pa.memory_map(str(p))
    try:
        reader = pa.ipc.open_file(source)
    except (pa.ArrowException, OSError):
        return _recover(p, source)
    try:
        return _collect(
            reader.schema,
            (reader.get_batch_with_custom_metadata(i) for i in range(reader.num_record_batches)),
        )
    except (pa.ArrowException, OSError) as e:
        raise InputError(
            f"{p}: a record batch is damaged ({_line(e)}); copy or record it again"
        ) from None


def require_file(p: Path) -> None:
    """Raise `InputError` unless ``p`` is a file."""
    if p.is_dir():
        raise InputError(f"{p}: is a directory; name a trace file in it")
    if p.is_file():
        return
    partial = partial_path(p)
    if partial.is_file() and partial.stat().st_size == 0:
        raise InputError(f"{p}: the recording ended before it wrote anything; record it again")
    if partial.is_file():
        raise InputError(
            f"{p}: the recording did not finish; what it wrote is in {partial}: open that instead"
        )
    raise InputError(f"{p}: no such file; check the path")


def partial_path(path: str | Path) -> Path:
    """Where a recording to ``path`` is kept until it is closed."""
    p = Path(path)
    return p.with_name(p.name + ".partial")


def _recover(p: Path, source: pa.MemoryMappedFile) -> IpcFile:
    source.seek(HEADER)
    try:
        stream = pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError):
        raise InputError(
            f"{p}: cut off before its schema was written: nothing to recover; record it again"
        ) from None

    def whole() -> Iterable[Any]:
        while True:
            try:
                item = stream.read_next_batch_with_custom_metadata()
                item.batch.validate()
                yield item
            except (StopIteration, pa.ArrowException, OSError):
                return

    try:
        return _collect(stream.schema, whole())
    except (pa.ArrowException, OSError) as e:
        raise InputError(f"{p}: damaged ({_line(e)}); copy or record it again") from None


def _collect(schema: pa.Schema, items: Iterable[Any]) -> IpcFile:
    try:
        schema.names  # noqa: B018 - raises where a name is not text
    except UnicodeDecodeError:
        raise pa.ArrowInvalid("its schema is unreadable") from None
    batches: list[pa.RecordBatch] = []
    trailer = None
    for item in items:
        mark = item.custom_metadata and item.custom_metadata.get(TRAILER_KEY)
        if mark:
            trailer = _mark(mark)
        if item.batch.num_rows:
            item.batch.validate()
            batches.append(item.batch)
    return IpcFile(schema, batches, trailer)


def _mark(text: bytes) -> dict[str, Any] | None:
    try:
        mark = json.loads(text)
    except ValueError:
        return None
    return mark if isinstance(mark, dict) else None


def _is_ours(path: Path) -> bool:
    """Whether writing to ``path`` replaces a trace (or nothing) and not somebody's other file."""
    with path.open("rb") as f:
        return f.read(6) in (b"ARROW1", b"")


def check_free(path: str | Path) -> Path:
    """``path``, if a trace can be written there. Raises `InputError` where something else is, or a
    recording to it did not finish."""
    p, partial = check_target(path), partial_path(path)
    if partial.exists():
        raise InputError(
            f"{partial}: left by a recording that did not finish (or one that is still "
            "running); read it, then move or delete it"
        )
    if p.is_file() and not _is_ours(p):
        raise InputError(f"{p}: exists and is no trace; give another name to write to")
    return p


class IpcWriter:
    """Write batches to ``PATH.partial``; `close` marks the end and renames to ``PATH``.

    ``digest`` maps the batches to the hash stored in the closing mark.
    """

    def __init__(
        self,
        path: str | Path,
        schema: pa.Schema,
        digest: Callable[[Sequence[pa.RecordBatch]], str],
    ) -> None:
        self.path, self.schema, self._digest = check_free(path), schema, digest
        self.partial = partial_path(path)
        self.rows = self.n_batches = 0
        self._remarks: dict[str, Any] = {}
        try:
            self._sink = self.partial.open("xb", buffering=0)
        except OSError as e:
            raise InputError(f"{self.path}: cannot be written ({e.strerror})") from None
        self._writer = _new_file(self._sink, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch; when this returns, a kill of the process can no longer lose it."""
        if batch.num_rows:
            self._writer.write_batch(batch)
            self.rows += batch.num_rows
            self.n_batches += 1

    def close(
        self,
        arrange: Callable[[pa.Table], pa.Table] | None = None,
        remarks: dict[str, Any] | None = None,
    ) -> None:
        """Mark the recording complete, as one batch, and give it its name.

        ``arrange`` puts the rows in their final order, where it is not that of writing.
        ``remarks``: what is known only now, plain JSON types, kept in the closing mark.
        """
        if self._sink.closed:
            return
        self._remarks = remarks or {}
        if self.n_batches > 1 or (arrange and self.n_batches):
            self._writer.close()
            self._sink.close()
            self._compact(arrange)
            return
        # The batch is read back: its buffers may be the caller's, changed since.
        written = _written_so_far(self.partial)
        self._end(self._writer, self._sink, written)
        self.partial.replace(self.path)

    def abandon(self) -> None:
        """Close without the mark: ``PATH.partial`` stays, readable and incomplete."""
        if not self._sink.closed:
            self._writer.close()
            self._sink.close()

    def discard(self) -> None:
        """Leave nothing behind, also where the disk is full."""
        with contextlib.suppress(OSError):
            self.abandon()
        with contextlib.suppress(OSError):
            self._sink.close()
        self.partial.unlink(missing_ok=True)

    def _compact(self, arrange: Callable[[pa.Table], pa.Table] | None) -> None:
        content = read_ipc(self.partial)
        table = pa.Table.from_batches(content.batches, self.schema).unify_dictionaries()
        if arrange:
            table = arrange(table)
        if table.nbytes <= COMPACT_LIMIT:
            table = table.combine_chunks()
        content.batches = table.to_batches()
        tmp = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            sink = tmp.open("wb")
            writer = _new_file(sink, self.schema)
            for b in content.batches:
                writer.write_batch(b)
            self._end(writer, sink, content.batches)
            tmp.replace(self.path)
        finally:
            tmp.unlink(missing_ok=True)
        self.partial.unlink()

    def _end(self, writer: Any, sink: Any, batches: Sequence[pa.RecordBatch]) -> None:
        mark: dict[str, Any] = {"complete": True, "rows": self.rows}
        mark["sha256"] = self._digest(batches)
        if self._remarks:
            mark["remarks"] = self._remarks
        empty = batches[-1].slice(0, 0) if batches else pa.RecordBatch.from_pylist([], self.schema)
        writer.write_batch(empty, custom_metadata={TRAILER_KEY: json.dumps(mark).encode()})
        writer.close()
        sink.flush()
        os.fsync(sink.fileno())
        sink.close()


def _new_file(sink: Any, schema: pa.Schema) -> pa.RecordBatchFileWriter:
    # Dictionaries grow while recording; the file format takes additions but no replacement.
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    return pa.ipc.new_file(sink, schema, options=options)


def _written_so_far(partial: Path) -> list[pa.RecordBatch]:
    try:
        return read_ipc(partial).batches
    except InputError:  # no batch yet, hence no schema on disk
        return []


def content_hash(columns: Iterable[tuple[str, Sequence[np.ndarray]]]) -> str:
    """SHA-256 of columns' values, whatever the batches they are cut into.

    ``columns`` yields (name, chunks); chunks of one column share dtype and trailing shape. Hashed
    for each column: name, dtype, shape, values little-endian. NaNs are all hashed alike.
    """
    h = hashlib.sha256()
    for name, chunks in columns:
        rows = sum(len(c) for c in chunks)
        tail = chunks[0].shape[1:] if chunks else ()
        kind = chunks[0].dtype.newbyteorder("<").str if chunks else ""
        h.update(f"{name}|{kind}|{(rows, *tail)}\n".encode())
        for c in chunks:
            a: Any = np.ascontiguousarray(c, dtype=c.dtype.newbyteorder("<"))
            if a.dtype.kind == "f":
                nan = np.isnan(a)
                if nan.any():
                    a = np.where(nan, a.dtype.type(np.nan), a)
            h.update(memoryview(a).cast("B") if a.size else b"")
    return h.hexdigest()


def _line(e: BaseException) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__
