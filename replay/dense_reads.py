"""Work outside the routed experts: a read of the same bytes.

Dense blocks, LM head and KV cache are stood in for by a kernel that reads as many bytes as they
have, from one buffer larger than the GPU's caches. Their arithmetic is not done: in decode it hides
behind the reads; in a long prefill it would not, and a replay is then faster than the model.
"""

from __future__ import annotations

import numpy as np

from replay.backend.base import Backend
from uvmsim.runs.job import Job

WINDOW = 256 << 20
"""Bytes of the buffer: several times the last-level cache of any GPU (H100: 50 MiB)."""


class DenseReads:
    """Issues the dense work of events and steps; which bytes belong where is `dense_times`' rule."""

    def __init__(self, backend: Backend, job: Job, remote: bool):
        """``remote``: weights lie in host memory (zero-copy); the KV cache never does."""
        w, m = job.workload, job.model
        self.backend = backend
        moe = list(m.moe_layers)
        before, blocks, tail, tail_blocks = [0] * w.n_layers, [0] * w.n_layers, 0, 0
        for block in range(m.n_layers):
            home = int(np.searchsorted(moe, block))
            if home < len(moe):
                before[home] += m.dense_bytes[block]
                blocks[home] += 1
            else:
                tail += m.dense_bytes[block]
                tail_blocks += 1
        self.before, self.tail = before, tail + m.output_bytes
        kv = w.step_kv * (m.kv_bytes_per_token / m.n_layers)
        self.kv = [(kv * n).astype(np.int64).tolist() for n in (*blocks, tail_blocks)]
        weights = sum(before) + self.tail
        kv_total = max((sum(k) for k in zip(*self.kv, strict=True)), default=0)
        near = kv_total if remote else weights + kv_total
        self.near = backend.device(_window(near), "buffer for dense reads") if near else None
        self.far = (
            backend.host(_window(weights), "dense weights in host memory")
            if remote and weights
            else None
        )
        self.at = 0

    def layer(self, layer: int, step: int) -> None:
        """Queue what precedes an event's routed experts."""
        self._read(self.before[layer], self.kv[layer][step])

    def end(self, step: int) -> None:
        """Queue what follows a step's last MoE layer."""
        self._read(self.tail, self.kv[-1][step])

    def _read(self, weights: int, kv: int) -> None:
        if self.far is not None and weights:
            self.backend.read(self.far, self._from(self.far.nbytes, weights), weights)
            weights = 0
        if self.near is not None and weights + kv:
            n = weights + kv
            self.backend.read(self.near, self._from(self.near.nbytes, n), n)

    def _from(self, size: int, nbytes: int) -> int:
        at = self.at % size
        self.at = (at + nbytes + 15) // 16 * 16
        return at

    def release(self) -> None:
        for memory in (self.near, self.far):
            if memory is not None:
                self.backend.release(memory)


def _window(nbytes: int) -> int:
    return min(WINDOW, (nbytes + 255) // 256 * 256)
