"""All experts' bytes in a file on a disk: a `Bank` whose images are not in host memory.

The file is written once, under a name that says what is in it, and found again by later runs. It is
written to a temporary name and renamed; whatever stops the writing leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from replay.backend.base import Backend, Memory
from replay.bank import SPOT_CHECKS, Bank, base_image, write_image
from replay.digest import splitmix64
from replay.layout import ExpertLayout
from replay.reader import ALIGN
from traces.errors import InputError
from uvmsim.core.units import format_bytes

DEFAULT_BYTES = 30 * 10**9
SPARE = 256 << 20
"""Bytes that writing leaves free on the disk."""


class FileBank(Bank):
    """See the module. ``path`` is the file; images lie at multiples of 4 KiB."""

    def __init__(
        self, backend: Backend, layouts: Sequence[ExpertLayout], n_experts: int, folder: Path, *,
        seed: int = 0, limit: int = DEFAULT_BYTES,
    ):  # fmt: skip
        """``limit``: most bytes of the file. Raises `InputError`: a full or read-only disk."""
        self.folder = folder
        super().__init__(
            backend, layouts, n_experts, seed=seed, kind="file", limit=limit, align=ALIGN
        )

    def _allocate(self, nbytes: int) -> Memory:
        """The file, and room for one image of it in host memory."""
        asked = repr((self.layouts, self.n_experts, self.seed, nbytes)).encode()
        self.path = self.folder / f"experts-{hashlib.sha256(asked).hexdigest()[:16]}.bank"
        largest = max(x.nbytes for x in self.layouts)
        return self.backend.host(largest, f"one expert of {largest:,} bytes", pinned=False)

    def _fill(self, array: np.ndarray) -> None:
        if self.path.is_file() and self.path.stat().st_size == self.whole_bytes:
            self._check()
            return
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder", argument="tier_file")
        free = shutil.disk_usage(self.folder).free
        if free < self.whole_bytes + SPARE:
            raise InputError(
                f"{self.folder}: has {format_bytes(free)} free, and the experts' file takes "
                f"{format_bytes(self.whole_bytes)}; name another folder, or give fewer `tier_bytes`",
                argument="tier_file",
            )
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb", buffering=0) as file:
                self._write_all(file.fileno())
                file.truncate(self.whole_bytes)
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            partial.replace(self.path)
        except OSError as err:
            raise InputError(
                f"{self.folder}: the experts' file cannot be written ({err.strerror or err}); name a "
                "folder on a disk with room",
                argument="tier_file",
            ) from None
        finally:
            with suppress(OSError):  # on a read-only disk there is nothing to remove
                partial.unlink(missing_ok=True)

    def _write_all(self, file: int) -> None:
        for layout in dict.fromkeys(self.image_layout):
            self._base(layout)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            done = threads.map(
                lambda i: _write(file, self._made(i), self.offsets[i]), range(len(self.offsets))
            )
            list(done)

    def _made(self, i: int) -> np.ndarray:
        """The bytes that image ``i`` must have."""
        layout = self.image_layout[i]
        made = np.empty(layout.nbytes, np.uint8)
        key = splitmix64(self.seed * 1_000_003 + i)
        write_image(made, self._base(layout), layout, key)
        return made

    def _base(self, layout: ExpertLayout) -> np.ndarray:
        if not hasattr(self, "_bases"):
            self._bases: dict[ExpertLayout, np.ndarray] = {}
        if layout not in self._bases:
            self._bases[layout] = base_image(layout, self.seed)
        return self._bases[layout]

    def _check(self) -> None:
        """A file that is there already holds what it must: a few images are looked at."""
        n = len(self.offsets)
        for i in range(0, n, max(1, n // SPOT_CHECKS)):
            if not np.array_equal(self.image(i), self._made(i)):
                raise InputError(
                    f"{self.path}: does not hold the bytes it was written with; remove it",
                    argument="tier_file",
                )

    def source(self, i: int) -> int:
        """Reads the image from the file."""
        assert self.memory.array is not None
        n = self.image_layout[i].nbytes
        with self.path.open("rb", buffering=0) as file:
            into, got = memoryview(self.memory.array[:n].data), 0
            while got < n:
                more = os.preadv(file.fileno(), [into[got:]], self.offsets[i] + got)
                if more <= 0:
                    raise InputError(f"{self.path}: ends within expert image {i}; remove it")
                got += more
            os.posix_fadvise(file.fileno(), self.offsets[i], n, os.POSIX_FADV_DONTNEED)
        return self.memory.ptr

    def image(self, i: int) -> np.ndarray:
        """uint8: the bytes of image ``i``, good until another is asked for."""
        self.source(i)
        assert self.memory.array is not None
        return self.memory.array[: self.image_layout[i].nbytes]

    def corrupted(self, experts: np.ndarray) -> list[int]:
        """As `Bank.corrupted`, of a few of them: nobody has the file open for writing."""
        images = np.unique(self.image_of[experts], return_index=True)[1]
        return super().corrupted(experts[images[:: max(1, len(images) // SPOT_CHECKS)]])

    def place(self, expert: int) -> tuple[int, int]:
        """Where an expert lies in the file: first byte, and bytes up to a multiple of 4 KiB."""
        i = int(self.image_of[expert])
        return self.offsets[i], -(-self.image_layout[i].nbytes // ALIGN) * ALIGN


def _write(file: int, data: np.ndarray, at: int) -> None:
    """All of it."""
    left, done = memoryview(data.data), 0
    while done < len(left):
        done += os.pwrite(file, left[done:], at + done)
