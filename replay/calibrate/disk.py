"""A disk as experts are read from it: time by size and depth, past the page cache, through it, mapped.

Whole experts are read as `uvmsim replay` reads them (`replay.reader`: pieces of 1 MiB, several
threads), so that latency + bytes / rate is what the simulator's reads take. The file is random bytes,
and is removed.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from replay.calibrate.stats import Row, fit_copies, row
from replay.reader import ALIGN, PIECE, THREADS, FileRead, Reader, open_to_read
from traces.errors import InputError
from uvmsim.core.units import format_bytes, format_ns, format_rate

DISK = "disk"
"""The table's name."""
MODES = ("direct", "buffered", "mmap")
FILE_BYTES, QUICK_BYTES = 4 << 30, 64 << 20
WHOLE = (1 << 20, 4 << 20, 13_271_040, 26_542_080, 53_084_160)
"""Bytes of reads by several threads: a piece, small experts, gpt-oss's, two and four of those."""
SINGLE = (4 << 10, 128 << 10, 1 << 20)
"""Bytes of single calls, with depths."""
DEPTHS = (1, 4, 16, 32)
ENGINE, CALLS = "engine", "calls"
"""What a row is of: the replay's reader, or plain calls by so many threads."""


def check_folder(folder: str | Path, quick: bool) -> Path:
    """The folder, if the test file fits into it. Raises `InputError`."""
    path, size = Path(folder), QUICK_BYTES if quick else FILE_BYTES
    if not path.is_dir():
        raise InputError(f"{folder}: no such folder", argument="disk")
    if not os.access(path, os.W_OK):
        raise InputError(f"{folder}: cannot be written", argument="disk")
    free = shutil.disk_usage(path).free
    if free < size + (256 << 20):
        raise InputError(
            f"{folder}: has {format_bytes(free)} free, and the test file takes {format_bytes(size)}",
            argument="disk",
        )
    return path


def disk_rows(folder: Path, quick: bool) -> list[Row]:
    """Medians by mode, size and depth. A mode that the file system refuses has no rows."""
    size, repetitions = (QUICK_BYTES, 3) if quick else (FILE_BYTES, 20)
    rows: list[Row] = []
    with _file(folder, size) as path:
        for direct in (True, False):
            with suppress(InputError):
                rows += _single(path, direct, size, repetitions)
                rows += _whole(path, direct, size, repetitions)
        rows += _mapped(path, size, repetitions)
    return rows


def disk_tables(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """By mode: the values of ``[disk.MODE]`` but for the stamp of its source."""
    made: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        mine = [r for r in rows if r["mode"] == mode and r["what"] == ENGINE]
        if len({r["bytes"] for r in mine}) < 2:
            continue
        latency, rate, worst = fit_copies(mine)
        top = max(mine, key=lambda r: r["bytes"])
        how = "one thread" if mode == "mmap" else f"{THREADS} threads, pieces of {PIECE >> 20} MiB"
        low, high = top["bytes"] / top["p90_ns"], top["bytes"] / max(top["p10_ns"], 1e-3)
        source = (
            f"{mode} reads of {len(mine)} sizes up to {format_bytes(top['bytes'])}, {how}, as "
            f"{format_ns(latency)} + bytes / {format_rate(rate)} (worst size {worst:.1%} off); "
            f"largest: median of {top['n']}, p10 to p90 {low:.3g} to {high:.3g} GB/s"
        )
        values = {"bytes_per_s": round(rate), "latency_ns": round(latency)}
        made[mode] = values | {"source": source}
    return made


@contextmanager
def _file(folder: Path, size: int) -> Iterator[Path]:
    """A file of random bytes on the disk, removed whatever happens."""
    path = folder / f"uvmsim-disk-{os.getpid()}.partial"
    try:
        block = np.random.default_rng(0).integers(0, 256, min(size, 64 << 20), np.uint8)
        with path.open("wb", buffering=0) as file:
            for at in range(0, size, len(block)):
                block[:8] = np.frombuffer(at.to_bytes(8, "little"), np.uint8)
                part, done = memoryview(block.data)[: size - at], 0
                while done < len(part):
                    done += file.write(part[done:])
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Room:
    """Aligned memory, and random places in the file that no earlier read of a turn has touched."""

    def __init__(self, nbytes: int, file_bytes: int):
        self.memory = mmap.mmap(-1, nbytes)
        self.memory.write(bytes(nbytes))  # its own pages are there before anything is timed
        self.ptr = np.frombuffer(self.memory, np.uint8).ctypes.data
        self.file_bytes, self.random = file_bytes, random.Random(0)

    def places(self, n: int, nbytes: int) -> list[int]:
        """``n`` offsets, multiples of `ALIGN`, apart from one another while the file has room."""
        slots = max(self.file_bytes // nbytes, 1)
        chosen = self.random.sample(range(slots), min(n, slots))
        return [c * nbytes // ALIGN * ALIGN for c in (chosen * n)[:n]]


def _single(path: Path, direct: bool, size: int, repetitions: int) -> list[Row]:
    """Calls of one size by 1 to 32 threads: what a call takes, and bytes a second of all."""
    from concurrent.futures import ThreadPoolExecutor

    rows, mode = [], "direct" if direct else "buffered"
    file = open_to_read(path, direct)
    try:
        for nbytes in SINGLE:
            for depth in DEPTHS:
                calls = max(depth, repetitions) * 4
                rooms = [_Room(nbytes, size) for _ in range(depth)]
                where = rooms[0].places(calls, nbytes)

                def one(
                    j: int, nbytes: int = nbytes, rooms: list[_Room] = rooms,
                    where: list[int] = where,
                ) -> int:  # fmt: skip
                    if not direct:
                        os.posix_fadvise(file, where[j], nbytes, os.POSIX_FADV_DONTNEED)
                    begin = time.perf_counter_ns()
                    os.preadv(file, [rooms[j % len(rooms)].memory], where[j])
                    return time.perf_counter_ns() - begin

                with ThreadPoolExecutor(depth) as threads:
                    begin = time.perf_counter_ns()
                    took = list(threads.map(one, range(calls)))
                    wall = time.perf_counter_ns() - begin
                made = row(took, nbytes, what=CALLS, mode=mode, depth=depth)
                rows.append(made | {"bytes_per_s": round(calls * nbytes / wall * 1e9)})
    finally:
        os.close(file)
    return rows


def _whole(path: Path, direct: bool, size: int, repetitions: int) -> list[Row]:
    """Reads of experts as the replay makes them."""
    rows = []
    with Reader(path, direct, THREADS) as reader:
        for nbytes in WHOLE:
            if nbytes > size:
                continue
            room = _Room(nbytes, size)
            took = []
            for at in room.places(repetitions, nbytes):
                begin = time.perf_counter_ns()
                read = reader.ask(FileRead(room.ptr, at, nbytes))
                reader.wait(read)
                took.append(time.perf_counter_ns() - begin)
                if read.error:
                    raise InputError(read.error)
            mode = "direct" if direct else "buffered"
            rows.append(row(took, nbytes, what=ENGINE, mode=mode, depth=THREADS))
    return rows


def _mapped(path: Path, size: int, repetitions: int) -> list[Row]:
    """One thread copies from a mapped file whose pages are not in memory."""
    rows = []
    with path.open("rb") as file:
        for nbytes in WHOLE:
            if nbytes > size:
                continue
            room, took = _Room(nbytes, size), []
            out = np.frombuffer(room.memory, np.uint8)
            for at in room.places(repetitions, nbytes):
                # Mapped pages do not leave the page cache: map anew each time.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    view = np.frombuffer(mapped, np.uint8, nbytes, at)
                    begin = time.perf_counter_ns()
                    np.copyto(out, view)
                    took.append(time.perf_counter_ns() - begin)
                    del view
            rows.append(row(took, nbytes, what=ENGINE, mode="mmap", depth=1))
    return rows
