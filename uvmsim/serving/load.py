"""Requests ready to be served: when each arrives, how long it is, whose routing it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from traces.errors import InputError
from uvmsim.serving.server import Server
from uvmsim.serving.source import Source


@dataclass(frozen=True)
class Load:
    """N requests in the order in which they arrive."""

    arrival: np.ndarray
    """int64 [N]: ns after the clock starts."""
    prompt: np.ndarray
    """int32 [N]: tokens."""
    output: np.ndarray
    """int32 [N]: tokens, at least 1."""
    cached: np.ndarray
    """int32 [N]: tokens of the prompt that are in the KV cache already, fewer than ``prompt``."""
    start: np.ndarray
    """int64 [N, 2]: first tokens in `Source.prompt` and `Source.output`."""

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def token_lo(self) -> np.ndarray:
        """int64 [N + 1]: first output token of each request among all."""
        return np.concatenate(([0], np.cumsum(self.output, dtype=np.int64)))

    def warmed(self) -> Load:
        """With the first request once more before all others."""
        first = np.concatenate(([0], np.arange(len(self))))
        return replace(
            self, arrival=self.arrival[first], prompt=self.prompt[first],
            output=self.output[first], cached=self.cached[first], start=self.start[first],
        )  # fmt: skip


def load_of(
    arrival: np.ndarray, prompt: np.ndarray, output: np.ndarray, source: Source, seed: int = 0,
    cached: np.ndarray | None = None,
) -> Load:  # fmt: skip
    """Requests with routing borrowed from ``source``; arrays [N], ``arrival`` ascending."""
    if not len(arrival):
        raise InputError("no requests to serve")
    if cached is None:
        cached = np.zeros(len(prompt), np.int32)
    return Load(
        np.ascontiguousarray(arrival, np.int64), np.ascontiguousarray(prompt, np.int32),
        np.ascontiguousarray(output, np.int32),
        np.minimum(np.asarray(cached, np.int32), np.asarray(prompt, np.int32) - 1),
        source.borrow(prompt, output, seed),
    )  # fmt: skip


def check_load(load: Load, server: Server, context: int | None) -> None:
    """Raise `InputError` for a request that can never be served. ``context``: tokens a request may have
    at most, None: no limit."""
    need = load.prompt.astype(np.int64) + load.output
    for most, what, mend in (
        (context, "the context of {:,} tokens", "give a larger `ctx`, or shorter requests"),
        (server.kv_tokens or None, "a KV cache of {:,} tokens", "give a larger `ctx`"),
    ):
        if most is not None and (need > most).any():
            i = int(np.argmax(need > most))
            raise InputError(
                f"request {i} has {need[i]:,} tokens, more than {what.format(most)}; {mend}"
            )


def prefix_tokens(
    blocks: np.ndarray, block_lo: np.ndarray, block_tokens: int, kv_tokens: int
) -> np.ndarray:
    """int32 [N]: tokens at the head of each prompt whose blocks an earlier request has left in the KV
    cache. Blocks (hashes, request i has ``block_lo[i]`` .. ``block_lo[i + 1] - 1``) leave it least
    recently used first; ``kv_tokens`` 0: none ever leaves."""
    room = kv_tokens // block_tokens if kv_tokens else None
    there: dict[int, None] = {}
    found = np.zeros(len(block_lo) - 1, np.int32)
    hashes, lo = blocks.tolist(), block_lo.tolist()
    for i in range(len(found)):
        own = hashes[lo[i] : lo[i + 1]]
        known = 0
        while known < len(own) and own[known] in there:
            known += 1
        found[i] = known * block_tokens
        for h in own:
            there.pop(h, None)
            there[h] = None
        while room is not None and len(there) > room:
            del there[next(iter(there))]
    return found
