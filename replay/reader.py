"""Reads from files by a pool of threads: in pieces, in the order in which they were asked for.

A read is cut into pieces, so that one expert alone has the disk's whole speed and of several the first
is there first; the threads take piece after piece. Nothing here knows of devices or experts.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from traces.errors import InputError

PIECE = 1 << 20
"""Bytes of a piece."""
ALIGN = 4096
"""What direct reads want offsets, lengths and addresses to be multiples of."""
THREADS = 16


@dataclass(eq=False)
class FileRead:
    """Bytes on their way from a file to memory."""

    ptr: int
    at: int
    nbytes: int
    """Multiples of `ALIGN`, all three."""
    left: int = 0
    """Pieces that are not there yet."""
    error: str = ""
    done: bool = False
    mine: list[int] = field(default_factory=list)
    """What the caller wants to remember."""


class Reader:
    """One file, opened for reads past the page cache (``direct``) or through it, which then forgets
    what it read. Close it, or use ``with``."""

    def __init__(self, path: Path, direct: bool, threads: int = THREADS):
        """Raises `InputError` where the file system has no direct reads."""
        self.path, self.direct = path, direct
        self._file = open_to_read(path, direct)
        self._pieces: deque[tuple[FileRead, int, int]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.reads = self.bytes = 0
        """Done so far; bytes that calls returned."""
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, read: FileRead) -> FileRead:
        """Queue a read behind those that were asked for."""
        ends = range(0, read.nbytes, PIECE)
        with self._changed:
            read.left = len(ends)
            self._pieces.extend((read, at, min(PIECE, read.nbytes - at)) for at in ends)
            self._changed.notify_all()
        return read

    def wait(self, read: FileRead | None = None, seconds: float | None = None) -> None:
        """Until a read is done; None: until any piece is, or so many seconds have passed."""
        with self._changed:
            if read is None:
                self._changed.wait(seconds)
            else:
                self._changed.wait_for(lambda: read.done, seconds)

    def close(self) -> None:
        """Finish what is under way, drop the rest."""
        with self._changed:
            self._closing = True
            self._pieces.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # ---- a thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._closing)
                if self._closing:
                    return
                read, at, n = self._pieces.popleft()
            error, got = "", 0
            try:
                got = self._piece(read.ptr + at, read.at + at, n)
            except OSError as err:
                error = f"{self.path}: {err.strerror or err}"
            with self._changed:
                self.bytes += got
                read.error = read.error or error
                read.left -= 1
                if not read.left:
                    read.done = True
                    self.reads += 1
                self._changed.notify_all()

    def _piece(self, ptr: int, at: int, nbytes: int) -> int:
        if not self.direct:
            os.posix_fadvise(self._file, at, nbytes, os.POSIX_FADV_DONTNEED)
        buffer = memoryview((ctypes.c_uint8 * nbytes).from_address(ptr)).cast("B")
        done = 0
        while done < nbytes:
            got = os.preadv(self._file, [buffer[done:]], at + done)
            if got <= 0:
                raise OSError(None, f"ends at byte {at + done:,}, which should be there")
            done += got
        if not self.direct:
            os.posix_fadvise(self._file, at, nbytes, os.POSIX_FADV_DONTNEED)
        return done


def open_to_read(path: Path, direct: bool) -> int:
    """A file descriptor. Raises `InputError` where the file system has no direct reads."""
    if not direct:
        return os.open(path, os.O_RDONLY)
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as err:
        raise _no_direct(path, err) from None
    probe = mmap.mmap(-1, ALIGN)  # page-aligned, as a direct read's buffer must be
    try:
        os.preadv(file, [probe], 0)
    except OSError as err:
        os.close(file)
        raise _no_direct(path, err) from None
    finally:
        probe.close()
    return file


def _no_direct(path: Path, err: OSError) -> InputError:
    return InputError(
        f"{path}: the file system has no direct reads ({err.strerror}); name a folder on a disk, or "
        "say mode=buffered"
    )
