"""The rivals' fastest paths, behind one small interface."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

LCS = {
    "lru": ("LRU", {}),
    "fifo": ("FIFO", {}),
    "clock": ("Clock", {}),
    "sieve": ("Sieve", {}),
    "lfu": ("LFU", {}),
    "arc": ("ARC", {}),
    "s3fifo": ("S3FIFO", {}),
    "belady": ("Belady", {}),
}
"""Our name of a policy to libCacheSim's class."""


def libcachesim(trace: Path, n: int, catalog: int, capacity: int, policy: str) -> Callable[[], int]:
    """A call that replays an oracleGeneral file with libCacheSim's C loop; returns the misses.

    The hash table is sized for the catalogue (the default of 2^24 entries is slower for small ones);
    opening the file and building the cache are part of neither side's time.
    """
    import libcachesim as lcs

    cls, extra = LCS[policy]
    power = max(12, int(np.ceil(np.log2(catalog))) + 1)

    def run() -> int:
        reader = lcs.TraceReader(str(trace), lcs.TraceType.ORACLE_GENERAL_TRACE)
        cache = getattr(lcs, cls)(capacity, hashpower=power, **extra)
        ratio, _ = cache.process_trace(reader)
        return round(ratio * n)

    return run


def moe_policylang(rows: np.ndarray, k: int, share: float) -> Callable[[], int]:
    """A call of `replay_policies` (top-k LRU a layer, one sequence); returns the misses.

    ``rows`` float32 [tokens, layers, experts]: what the library takes for softmax outputs.
    """
    from moe_policylang.benchmark.replay import replay_policies
    from moe_policylang.integrations.trace_recorder import TraceEntry, TraceRecording

    tokens, layers, n_experts = rows.shape
    recording = TraceRecording("bench", layers, n_experts, k)
    for t in range(tokens):
        for layer in range(layers):
            entry = TraceEntry(0, t, layer, [])
            entry.router_softmax = rows[t, layer]
            recording.entries.append(entry)

    def run() -> int:
        (result,) = replay_policies(recording, k, ("topk_lru",), (share,))
        return result.accesses - result.hits

    return run


def softmax_rows(ids: np.ndarray, n_experts: int) -> np.ndarray:
    """float32 [tokens, layers, experts]: large for a chosen expert, less by rank, 0 for others."""
    rows = np.zeros((*ids.shape[:2], n_experts), np.float32)
    values = np.broadcast_to(1.0 - 0.01 * np.arange(ids.shape[2], dtype=np.float32), ids.shape)
    np.put_along_axis(rows, ids.astype(np.int64), values, axis=2)
    return rows


def its_top_k(rows: np.ndarray, k: int) -> np.ndarray:
    """int [tokens, layers, k]: the ids in the order moe-policylang's own top-k gives them."""
    return np.stack([[np.argpartition(-row, k - 1)[:k] for row in token] for token in rows]).astype(
        np.int16
    )


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
