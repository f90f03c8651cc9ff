"""All experts' bytes in host memory: one region, allocated once, with known contents.

Contents are pseudo-random and depend on the seed and the expert alone; every 8 bytes of an expert
differ from every other expert's. Weights are small, so outputs stay finite.

An expert is an *image*. Where the bank may not be as large as the model, experts share images round
robin: copies, times and counters are the same, but a mix-up of two experts with one image would go
unseen, so results say when images are shared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from replay.backend.base import DEMAND, X_ROWS, Backend, Memory, Tasks
from replay.digest import checksum, splitmix64
from replay.layout import ExpertLayout
from traces.errors import InputError

ALIGN = 256
DEFAULT_LIMIT = 24 << 30
SPOT_CHECKS = 4
"""Images whose checksum is also computed on the host, by NumPy, in every run."""


class Bank:
    """Host (or managed) memory with every expert's bytes, and what each expert must compute."""

    def __init__(
        self,
        backend: Backend,
        layouts: Sequence[ExpertLayout],
        n_experts: int,
        *,
        seed: int = 0,
        kind: str = "pinned",
        limit: int = DEFAULT_LIMIT,
        align: int = ALIGN,
    ):
        """``layouts``: one a MoE layer; ``kind``: pinned, pageable or managed; ``limit``: bytes;
        ``align``: images begin at its multiples."""
        self.backend, self.seed, self.kind = backend, seed, kind
        self.layouts, self.n_experts = list(layouts), n_experts
        self.nbytes = [x.nbytes for x in self.layouts for _ in range(n_experts)]
        groups: dict[ExpertLayout, list[int]] = {}
        for e in range(len(self.nbytes)):
            groups.setdefault(self.layouts[e // n_experts], []).append(e)
        whole = sum(len(who) * stride(x.nbytes, align) for x, who in groups.items())
        share = min(1.0, limit / whole)
        self.image_of = np.zeros(len(self.nbytes), np.int64)
        self.image_layout: list[ExpertLayout] = []
        self.offsets: list[int] = []
        at = 0
        for layout, who in groups.items():
            count = len(who) if share == 1.0 else max(1, int(len(who) * share))
            self.image_of[who] = len(self.offsets) + np.arange(len(who)) % count
            for _ in range(count):
                self.image_layout.append(layout)
                self.offsets.append(at)
                at += stride(layout.nbytes, align)
        self.whole_bytes = at
        """Of all images."""
        self.memory = self._allocate(at)
        assert self.memory.array is not None
        self.ptrs = [self.memory.ptr + self.offsets[i] for i in self.image_of.tolist()]
        self._fill(self.memory.array)
        self.expected = np.zeros((len(self.offsets), X_ROWS), np.uint64)
        """Hash of each image's output row for each input row, once `learn` has seen it."""
        self.sums = np.zeros(len(self.offsets), np.uint64)
        self.known = np.zeros(len(self.offsets), bool)
        self.cpu_rows = np.zeros((len(self.offsets), X_ROWS), np.uint64)
        """The same of what the CPU computes (`replay.on_cpu`), where ``cpu_known``."""
        self.cpu_known = np.zeros(len(self.offsets), bool)

    def _allocate(self, nbytes: int) -> Memory:
        """Memory for all images."""
        what = f"expert bank of {nbytes:,} bytes"
        if self.kind == "managed":
            return self.backend.managed(nbytes, what)
        return self.backend.host(nbytes, what, pinned=self.kind == "pinned")

    @property
    def shared(self) -> bool:
        """Whether several experts have one image."""
        return len(self.offsets) < len(self.nbytes)

    def image(self, i: int) -> np.ndarray:
        """uint8: the bytes of image ``i``, a view."""
        assert self.memory.array is not None
        return self.memory.array[self.offsets[i] : self.offsets[i] + self.image_layout[i].nbytes]

    def source(self, i: int) -> int:
        """Address of the bytes of image ``i`` in host memory, good until another is asked for."""
        return self.memory.ptr + self.offsets[i]

    def _fill(self, array: np.ndarray) -> None:
        bases = {x: base_image(x, self.seed) for x in dict.fromkeys(self.image_layout)}

        def one(i: int) -> None:
            write_image(self.image(i), bases[self.image_layout[i]], self.image_layout[i],
                        splitmix64(self.seed * 1_000_003 + i))  # fmt: skip

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            list(threads.map(one, range(len(self.offsets))))

    # ---- what must come out ---------------------------------------------------------------------

    def learn(self, experts: np.ndarray) -> None:
        """Compute what the given experts must give: each one resident, alone, one token a call.

        This is the all-resident run: the same kernels on weights nobody evicts. Fills ``expected``
        and ``sums`` for images not seen before.
        """
        images = np.unique(self.image_of[experts])
        images = images[~self.known[images]]
        if not len(images):
            return
        b = self.backend
        scratch = b.device(max(x.nbytes for x in self.layouts), "one expert beside the pool")
        for i in images.tolist():
            layout = self.image_layout[i]
            self._compute_alone(i, scratch)
            self.expected[i] = b.hashes(X_ROWS)
            self.sums[i] = b.checksums([scratch.ptr], [layout.nbytes])[0]
            self.known[i] = True
        b.release(scratch)
        for i in images[:: max(1, len(images) // SPOT_CHECKS)][:SPOT_CHECKS].tolist():
            if checksum(self.image(i)) != int(self.sums[i]):
                raise InputError(
                    f"expert image {i}: the bytes that arrived on the device are not those in the "
                    "host's bank; the link or the memory is faulty"
                )

    def _compute_alone(self, image: int, scratch: Memory) -> None:
        """One image copied to device memory, and its expert with every input row."""
        b, layout = self.backend, self.image_layout[image]
        tasks = Tasks.empty()
        tasks.weights[:X_ROWS] = scratch.ptr
        tasks.tokens[:X_ROWS] = 1
        tasks.first_row[:X_ROWS] = np.arange(X_ROWS)
        tasks.x_first[:X_ROWS] = np.arange(X_ROWS)
        b.copy_in(scratch.ptr, self.source(image), layout.nbytes, DEMAND)
        b.synchronise()
        b.clear_hashes()
        b.experts(layout, tasks, X_ROWS, 0)

    def device_rows(self, image: int) -> np.ndarray:
        """float32 [X_ROWS, n_embd]: what the device computes of an image for every input row."""
        layout = self.image_layout[image]
        scratch = self.backend.device(layout.nbytes, "one expert beside the pool")
        self._compute_alone(image, scratch)
        rows = self.backend.outputs(layout, X_ROWS)
        self.backend.release(scratch)
        return rows

    def output_hashes(self, ids: np.ndarray, counts: np.ndarray, event: np.ndarray) -> np.ndarray:
        """uint64 [accesses]: what `Backend.hashes` must be. All arrays [accesses]: expert, its
        tokens, and the number of the event (whose input rows start at ``event % X_ROWS``)."""
        return self.sums_of(self.expected, ids, counts, event)

    def sums_of(
        self, hashes: np.ndarray, ids: np.ndarray, counts: np.ndarray, event: np.ndarray
    ) -> np.ndarray:
        """uint64 [accesses]: ``hashes`` [images, X_ROWS] of each access's rows, summed."""
        rows = hashes[self.image_of[ids]]
        full = rows.sum(axis=1, dtype=np.uint64) * (counts // X_ROWS).astype(np.uint64)
        rest = counts % X_ROWS
        for j in range(int(rest.max(initial=0))):
            row = rows[np.arange(len(ids)), (event + j) % X_ROWS]
            full += np.where(rest > j, row, np.uint64(0))
        return full

    def corrupted(self, experts: np.ndarray) -> list[int]:
        """Experts among those given whose bytes in the bank are no longer what they were."""
        images = np.unique(self.image_of[experts])
        images = images[self.known[images]]
        b = self.backend
        scratch = b.device(max(x.nbytes for x in self.layouts), "one expert beside the pool")
        wrong = set()
        for i in images.tolist():
            n = self.image_layout[i].nbytes
            b.copy_in(scratch.ptr, self.source(i), n, DEMAND)
            b.synchronise()
            if b.checksums([scratch.ptr], [n])[0] != self.sums[i]:
                wrong.add(i)
        b.release(scratch)
        return [int(e) for e in np.unique(experts) if int(self.image_of[e]) in wrong]

    def release(self) -> None:
        self.backend.release(self.memory)


def stride(nbytes: int, align: int = ALIGN) -> int:
    """Bytes from one expert to the next."""
    return -(-nbytes // align) * align


def base_image(layout: ExpertLayout, seed: int) -> np.ndarray:
    """uint8 [nbytes]: random weights of magnitude about 2**-7, random tail."""
    rng = np.random.default_rng([seed, layout.n_embd, layout.n_ff])
    data = rng.integers(0, 256, layout.nbytes, np.uint8)
    matrices = data[: 3 * layout.plane]
    if layout.dtype == "mxfp4":
        scales = data[3 * layout.plane : layout.tail_at]
        scales &= 3
        scales += 116  # weights up to 6 * 2**-8
    elif layout.dtype == "fp16":
        _set_exponent(matrices.view(np.uint16), 0x83FF, 8 << 10)
    elif layout.dtype == "bf16":
        _set_exponent(matrices.view(np.uint16), 0x807F, 120 << 7)
    else:
        _set_exponent(matrices.view(np.uint32), 0x807FFFFF, 120 << 23)
    return data


def _set_exponent(words: np.ndarray, keep: int, exponent: int) -> None:
    words &= words.dtype.type(keep)
    words |= words.dtype.type(exponent)


KEEP = {
    "mxfp4": 0xFFFFFFFFFFFFFFFF,
    "fp16": 0x83FF83FF83FF83FF,
    "bf16": 0x807F807F807F807F,
    "fp32": 0x807FFFFF807FFFFF,
}
"""Bits of 8 bytes of matrix an expert's key may flip: all but exponents."""


def write_image(out: np.ndarray, base: np.ndarray, layout: ExpertLayout, key: int) -> None:
    """Write the base image with the bits of ``key`` flipped: weights, scales and tail stay valid."""
    key |= 1  # so that no key leaves the base as it is
    planes, scales_end = 3 * layout.plane, layout.tail_at
    _flip(out[:planes], base[:planes], key & KEEP[layout.dtype])
    _flip(out[planes:scales_end], base[planes:scales_end], key & 0x0303030303030303)
    _flip(out[scales_end:], base[scales_end:], key)


def _flip(out: np.ndarray, base: np.ndarray, key: int) -> None:
    pattern = np.frombuffer(key.to_bytes(8, "little"), np.uint8)
    whole = len(out) // 8 * 8
    if out.ctypes.data % 8 == 0 and base.ctypes.data % 8 == 0:
        np.bitwise_xor(
            base[:whole].view(np.uint64), np.uint64(key), out=out[:whole].view(np.uint64)
        )
    else:
        np.bitwise_xor(base[:whole].reshape(-1, 8), pattern, out=out[:whole].reshape(-1, 8))
    np.bitwise_xor(base[whole:], pattern[: len(out) - whole], out=out[whole:])
