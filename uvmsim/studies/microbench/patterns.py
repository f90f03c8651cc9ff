"""What the microbenchmarks' kernels touch, in the terms of `uvmsim.paging.kernels`.

``abab``: one allocation of ratio x capacity, its two halves scanned in turn, A, B, A, B, each by one
wide kernel that goes through it in order (crupest/gpu_ext, the study on an A30). At any time the scan
has `SCAN_PAGES` pages in flight.

``seq``, ``rand``: 65,536 threads, each with a contiguous range of an input it reads and of an output it
writes, one access a page (eunomia-bpf/gpu_ext microbench/memory). The ratio covers input and output
together: at 4-byte stride 0.25x takes 7.2 to 7.6 ms, which is 1.1 TB/s that way and would be 2.3,
above the memory's 1.8, if it were the input alone. ``seq`` walks a range in order. ``rand``
walks it in random order, here of 64 KiB pages. Threads whose pages are there run through; those that
wait do so one access at a time. Passes are preceded by a fill in order, which is not timed.

What is not: reads are not told from writes, so read-mostly data does not collapse when it is
written to (measured: 3 s a pass); what a thread reads and what it writes are separate walks.
"""

from __future__ import annotations

import numpy as np

from uvmsim.machine.hardware import Hardware
from uvmsim.paging.kernels import Kernels
from uvmsim.paging.layout import BLOCK, PAGE

PATTERNS = ("abab", "seq", "rand")
SCAN_PAGES = 5
"""Pages a scan has in flight: fitted on the A30 study's none at 0.95x, 17.5 us a page, where a service
takes about 87 us by its other rows."""
SCAN_BYTES = 2
"""Bytes of memory traffic a byte scanned is: read and written. A half of the 0.95x allocation then
takes 9.8 ms on the A30 by the preset's memory rate; 11.8 were measured."""
THREADS = 65536
TOUCH_BYTES = 221
"""Memory traffic that an access by page stride stands for: 0.570 ms for 4.11 million pages at 1,595
GB/s on the RTX 5090 (0.5x; 0.25x and 0.75x agree within 1 %). It is bound by address translation."""
REMOTE_BYTES = 472
"""The same across the link: 34.5 ms for 2.06 million pages at 28.1 GB/s (0.25x, preferred location
CPU)."""
REPORTED = 16055 / 15790
"""Memory a card reports (31.36 GiB on the RTX 5090), which the study's ratios are taken of, over what
can hold data there (15,790 chunks): 1.0x does not fit."""
RUN = 16
"""Pages of a 64 KiB page."""
PER_BLOCK = BLOCK // PAGE
SLICE = 16
"""Blocks a process scans before the other one has its turn, with several of them."""


def scan(lo: int, hi: int, slices: bool) -> list[np.ndarray]:
    """Kernels that go through blocks [lo, hi): int64 [waves, 1, 2] runs of pages each."""
    edges = list(range(lo, hi, SLICE)) if slices else [lo]
    kernels = []
    for at, end in zip(edges, [*edges[1:], hi], strict=True):
        first = np.arange(at * PER_BLOCK, end * PER_BLOCK, SCAN_PAGES)
        last = np.minimum(first + SCAN_PAGES, end * PER_BLOCK)
        kernels.append(np.stack([first, last], axis=1)[:, None, :])
    return kernels


def fill(n_blocks: int) -> np.ndarray:
    """A kernel that touches block after block: int64 [blocks, 1, 2]."""
    first = np.arange(n_blocks) * PER_BLOCK
    return np.stack([first, first + PER_BLOCK], axis=1)[:, None, :]


def walk(n_blocks: int, shuffled: np.random.Generator | None) -> np.ndarray:
    """One pass of all threads: int64 [1, touches, 2]."""
    if shuffled is None:
        edges = np.linspace(0, n_blocks * PER_BLOCK, 2 * THREADS + 1).astype(np.int64)
        # Input and output of a thread in turn.
        runs = np.stack([edges[:-1], edges[1:]], axis=1).reshape(2, THREADS, 2)
        return runs.transpose(1, 0, 2).reshape(1, -1, 2)
    first = shuffled.permutation(n_blocks * (PER_BLOCK // RUN)) * RUN
    return np.stack([first, first + RUN], axis=1)[None]


def assemble(passes: list[list[np.ndarray]], pass_ns: list[int], burst: int) -> Kernels:
    """The kernels of all passes; a pass's time when all is resident is shared out among its kernels."""
    parts = [k for kernels in passes for k in kernels]
    step = np.repeat(np.arange(len(passes)), [len(k) for k in passes])
    runs = np.array([int((k[..., 1] - k[..., 0]).sum()) for k in parts])
    whole = np.bincount(step, weights=runs)
    compute = np.rint(np.array(pass_ns)[step] * runs / whole[step]).astype(np.int64)
    waves = np.concatenate([np.full(k.shape[0], k.shape[1], np.int64) for k in parts])
    flat = np.concatenate([k.reshape(-1, 2) for k in parts])
    n = len(parts)
    return Kernels(
        step.astype(np.int32), compute, np.cumsum([k.shape[0] for k in parts]),
        np.zeros(n, np.int64), np.zeros(n, np.int8), np.zeros(n, np.int64),
        np.cumsum(waves), np.full(len(waves), burst, np.int8), np.zeros(len(waves), np.int16),
        np.where(waves > 1, THREADS, 0).astype(np.int32), np.ones(len(waves), np.int8),
        np.ascontiguousarray(flat[:, 0]), np.ascontiguousarray(flat[:, 1]),
    )  # fmt: skip


def resident_ns(pattern: str, nbytes: int, stride: int, hw: Hardware) -> int:
    """A pass over ``nbytes`` that are all in device memory."""
    if pattern == "abab":
        return hw.read_ns(SCAN_BYTES * nbytes)
    return hw.read_ns(nbytes * min(stride, TOUCH_BYTES) // stride)
