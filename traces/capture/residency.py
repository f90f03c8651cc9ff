"""Where managed pages lie, asked of the kernel's page table (Linux, /proc/self/pagemap).

A managed page that moves to the GPU is unmapped from the CPU, page by page (uvm_va_block.c,
`uvm_va_block_unmap_mask`), and a prefetch to the host maps what it brings (uvm_migrate.c,
`block_migrate_add_mappings`). So after a prefetch of everything to the host, the pages without a
mapping are those that are on the GPU now. Nothing of this asks the driver, nor any recording of it.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np

PAGE = 4096
PRESENT, FRAME = np.uint64(1 << 63), np.uint64((1 << 55) - 1)
MAPPED_BY = "/dev/nvidia-uvm"
STEP, PROBES = 2 << 20, 1 << 16
"""How a mapping is searched for allocations, and how often at most."""
IS_MANAGED, RANGE_SIZE, RANGE_START = 8, 12, 11
"""CU_POINTER_ATTRIBUTE_IS_MANAGED, _RANGE_SIZE, _RANGE_START_ADDR"""


def page_table(address: int, nbytes: int) -> np.ndarray:
    """uint64 [pages]: the page table's entries of a range, as pagemap has them. Raises `OSError`."""
    first, last = address // PAGE, -(-(address + nbytes) // PAGE)
    with Path("/proc/self/pagemap").open("rb", buffering=0) as f:
        f.seek(first * 8)
        return np.frombuffer(f.read((last - first) * 8), np.uint64)


def on_host(address: int, nbytes: int) -> np.ndarray:
    """bool [pages]: which pages of a range the CPU has mapped."""
    return (page_table(address, nbytes) & PRESENT) != 0


def host_frames(address: int, nbytes: int) -> np.ndarray | None:
    """int64 [pages]: number of the host's frame that holds each page, -1 where there is none; None
    where the kernel keeps them to itself (it tells root)."""
    table = page_table(address, nbytes)
    frames = (table & FRAME).astype(np.int64)
    there = (table & PRESENT) != 0
    if there.any() and not frames[there].any():
        return None
    return np.where(there, frames, -1)


def run_lengths(frames: np.ndarray) -> np.ndarray:
    """int64 [runs]: pages of each run of neighbours that also lie side by side in host memory."""
    there = np.flatnonzero(frames >= 0)
    if not len(there):
        return np.zeros(0, np.int64)
    breaks = (np.diff(there) != 1) | (np.diff(frames[there]) != 1)
    edges = np.concatenate(([0], np.flatnonzero(breaks) + 1, [len(there)]))
    return np.diff(edges)


def managed_ranges() -> list[tuple[int, int]]:
    """(address, bytes) of the managed allocations of this process, ascending, as far as the driver
    knows them: mappings of the paging driver that CUDA calls managed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    found: dict[int, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        at = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if at is None or not line.endswith(MAPPED_BY):
            continue
        start, end = int(at[1], 16), int(at[2], 16)
        probes = 0
        while start < end and probes < PROBES:
            probes += 1
            managed = ctypes.c_uint(0)
            base, size = ctypes.c_uint64(0), ctypes.c_size_t(0)
            code = (
                driver.cuPointerGetAttribute(
                    ctypes.byref(managed), IS_MANAGED, ctypes.c_uint64(start)
                )
                or driver.cuPointerGetAttribute(
                    ctypes.byref(base), RANGE_START, ctypes.c_uint64(start)
                )
                or driver.cuPointerGetAttribute(
                    ctypes.byref(size), RANGE_SIZE, ctypes.c_uint64(start)
                )
            )
            if code or not managed.value or not size.value:
                start += STEP  # room that CUDA keeps between allocations
                continue
            found[base.value] = size.value
            start = -(-(base.value + size.value) // PAGE) * PAGE
    return sorted(found.items())


def map_on_host(address: int, nbytes: int) -> None:
    """Have the CPU read a byte of each page: those on the host are mapped then, others come back."""
    view = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
    int(view[::PAGE].sum())


def on_gpu_bytes(ranges: list[tuple[int, int]]) -> int:
    """Bytes of whole pages that the CPU has not mapped."""
    return sum(int((~on_host(at, n)).sum()) * PAGE for at, n in ranges)


class Location(ctypes.Structure):
    """CUmemLocation"""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


DEVICE_0, HOST = (1, 0), (2, 0)


def prefetch(address: int, nbytes: int, where: tuple[int, int], stream: int = 0) -> int:
    """Queue a move of managed memory; CUDA's error code, 0 where all is well."""
    call = ctypes.CDLL("libcuda.so.1").cuMemPrefetchAsync_v2
    call.argtypes = [
        ctypes.c_uint64, ctypes.c_size_t, Location, ctypes.c_uint, ctypes.c_void_p,
    ]  # fmt: skip
    return int(call(address, nbytes, Location(*where), 0, stream))
