"""The dataset a sweep writes: a folder of Parquet fragments, safe against a kill at any moment.

A fragment is written to a temporary name (begun by a dot, which Arrow and DuckDB pass over) and
renamed when it is whole. Compacting writes the merged rows as a hidden file that lists what it
replaces, deletes those, then renames it: a reader at any moment sees no row twice, and a compaction
cut short is finished by the next `Store`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from traces.errors import InputError
from uvmsim.studies.sweep.rows import ERROR, to_table

PATTERN = "rows-*.parquet"
MERGED = ".merged-"
REPLACES = b"uvmsim.replaces"
FRAGMENTS = 200
"""Fragments above this are merged while the sweep runs."""
FILE_ROWS = 1 << 20


class Store:
    """The rows of one sweep, open for appending by one process at a time."""

    def __init__(self, folder: str | Path, about: dict[str, Any] | None = None):
        """Open or make the dataset at ``folder``; ``about`` is kept in every file's metadata.

        Raises `InputError` where the folder holds something else or another sweep writes to it.
        """
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{folder}: is a file; give a folder for the sweep's rows")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise InputError(f"{folder}: cannot be made ({err.strerror})") from None
        strangers = [p for p in self.folder.iterdir() if not p.name.startswith((".", "rows-"))]
        if strangers:
            raise InputError(
                f"{folder}: holds other files ({strangers[0].name}); give a folder of its own"
            )
        self._lock = _lock(self.folder)
        self._meta = {b"uvmsim.sweep": json.dumps(about or {}, sort_keys=True).encode()}
        self._recover()
        files = self.files()
        self._next = 1 + max((int(p.stem.split("-")[1]) for p in files), default=0)
        self.done: set[str] = set()
        for file in files:
            self.done.update(_read_file(file, ["cell"])["cell"].to_pylist())

    def files(self) -> list[Path]:
        """The fragments, oldest first."""
        return sorted(self.folder.glob(PATTERN))

    def add(self, rows: Iterable[dict[str, Any]]) -> int:
        """Append rows as one fragment; returns how many were new. They are on disk on return."""
        new: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["cell"] not in self.done:
                new[row["cell"]] = row
        if new:
            self._write(to_table(list(new.values())), self._name())
            self.done.update(new)
            if len(self.files()) > FRAGMENTS:
                self.compact()
        return len(new)

    def compact(self, without_errors: bool = False) -> None:
        """Merge small fragments into one file (files of a million rows stay as they are)."""
        files = [p for p in self.files() if without_errors or _n_rows(p) < FILE_ROWS]
        if not files or (len(files) == 1 and not without_errors):
            return
        tables = [_read_file(p) for p in files]
        table = pa.concat_tables(tables, promote_options="default")
        if without_errors:
            table = table.filter(pc.not_equal(table["status"], ERROR))
        name = self._name()
        hidden = self.folder / (MERGED + name)
        replaces = json.dumps([p.name for p in files]).encode()
        self._write(table, hidden.name, {REPLACES: replaces})
        self._finish(hidden)

    def forget_errors(self) -> int:
        """Drop the rows of cells that failed, so that they are run again; returns how many."""
        before = len(self.done)
        self.compact(without_errors=True)
        self.done = set(self.read(["cell"])["cell"].to_pylist())
        return before - len(self.done)

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows."""
        return read(self.folder, columns)

    def close(self) -> None:
        """Compact and let others write."""
        if self._lock is not None:
            self.compact()
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _name(self) -> str:
        name = f"rows-{self._next:08d}.parquet"
        self._next += 1
        return name

    def _write(self, table: pa.Table, name: str, extra: dict[bytes, bytes] | None = None) -> None:
        metadata = {**self._meta, **(extra or {})}
        write_parquet(table.replace_schema_metadata(metadata), self.folder / name)

    def _recover(self) -> None:
        for stray in self.folder.glob(".tmp-*"):
            stray.unlink()
        for hidden in sorted(self.folder.glob(MERGED + "*")):
            self._finish(hidden)

    def _finish(self, hidden: Path) -> None:
        metadata = pq.read_schema(hidden).metadata or {}
        for name in json.loads(metadata.get(REPLACES, b"[]")):
            (self.folder / name).unlink(missing_ok=True)
        hidden.rename(self.folder / hidden.name.removeprefix(MERGED))


def read(folder: str | Path, columns: list[str] | None = None) -> pa.Table:
    """All rows of a dataset: a folder written by a sweep, or one Parquet or Arrow file.

    Raises `InputError` where there is none.
    """
    path = Path(folder)
    if not path.exists():
        raise InputError(f"{folder}: no such dataset; make it with `uvmsim sweep`")
    files = sorted(path.glob(PATTERN)) if path.is_dir() else [path]
    if path.is_dir() and not files:
        raise InputError(f"{folder}: holds no rows of a sweep")
    try:
        tables = [_read_file(p, columns) for p in files]
    except (pa.ArrowInvalid, OSError, KeyError) as err:
        raise InputError(f"{folder}: not a sweep's dataset ({str(err).splitlines()[0]})") from None
    return pa.concat_tables(
        [t.replace_schema_metadata() for t in tables], promote_options="default"
    )


def export(folder: str | Path, file: Path) -> None:
    """All rows as one file, Parquet or (``.arrow``) Arrow IPC."""
    table = read(folder)
    if file.suffix == ".parquet":
        write_parquet(table, file)
        return
    temporary = file.with_name(f".tmp-{file.name}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.rename(file)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write whole or not at all; on disk (not in a cache only) on return."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as f:
        pq.write_table(table, f, compression="zstd")
        f.flush()
        os.fsync(f.fileno())
    temporary.rename(path)


def _read_file(path: Path, columns: list[str] | None = None) -> pa.Table:
    if path.suffix == ".arrow":
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return table.select(columns) if columns else table
    return pq.read_table(path, columns=columns, partitioning=None)


def _n_rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _lock(folder: Path) -> int | None:
    """Held until closed or the process is gone, however it went."""
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl
    except ImportError:  # not POSIX: two sweeps at once are then the user's care
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise InputError(f"{folder}: another sweep is writing there; wait for it to end") from None
    return handle
