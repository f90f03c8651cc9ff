"""What a timed test consists of, in terms (`uvmsim.machine.llama_terms`): an equation of the fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.kv_cache import cells_of
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.timing import KV_PADDING, Variant
from uvmsim.machine.llamacpp.work import Block, work

Routing = list[np.ndarray]
"""A MoE layer each: int [n_experts], tokens of the micro-batch that chose each expert."""


def micro_batch(
    model: LlamaModel,
    config: LlamaConfig,
    n: int,
    n_kv: int,
    routing: Routing | None = None,
    *,
    variant: Variant | None = None,
) -> tuple[Counter[str], int]:
    """Counts of a micro-batch of ``n`` tokens that attends to ``n_kv`` positions, and its kernels.

    ``routing``: None where every token's experts are distinct from the others' (one token).
    """
    x = work(model, config, n)
    x = variant(x) if variant else x
    out: Counter[str] = Counter(x.once)
    padded = -(-n_kv // KV_PADDING) * KV_PADDING
    at = 0
    for i, b in enumerate(x.blocks):
        kv = min(padded, cells_of(model, config, i))
        for counts, times in ((b.dense, 1), (b.attended, kv)):
            _add(out, counts, times)
        if not (b.expert or b.pair):
            continue
        _add(out, b.call, 1)
        counts_of = None if routing is None else routing[at]
        at += 1
        distinct, pairs = _used(model, n, b, counts_of)
        _add(out, b.expert, distinct)
        _add(out, b.pair, pairs)
        if b.copied:
            out[config.link] += b.copied * distinct
            out["copy"] += b.matrices * (distinct if counts_of is None else runs(counts_of))
    return out, x.kernels


def _used(model: LlamaModel, n: int, b: Block, counts: np.ndarray | None) -> tuple[int, int]:
    if counts is None:
        return n * model.n_expert_used, n * model.n_expert_used
    return int((counts > 0).sum()), int((-(-counts // b.tile) * b.tile).sum())


def runs(counts: np.ndarray) -> int:
    """Runs of neighbouring experts that are used: each is one copy a tensor."""
    used = np.concatenate(([0], counts > 0)).astype(np.int8)
    return int((np.diff(used) == 1).sum())


def _add(out: Any, counts: dict[str, float], times: float) -> None:
    for key, n in counts.items():
        out[key] += n * times


def chunks(n: int, n_ubatch: int) -> Iterable[tuple[int, int]]:
    """Micro-batches of a prompt: ``(tokens, positions up to its end)``."""
    for begin in range(0, n, n_ubatch):
        end = min(n, begin + n_ubatch)
        yield end - begin, end
