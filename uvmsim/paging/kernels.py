"""The kernels of a workload, with the pages each of them touches (`uvmsim.paging.touches`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.timing import dense_times, expert_times
from uvmsim.paging.layout import BLOCK, PAGE, Layout, Placed, layout
from uvmsim.paging.touches import (
    IN_ORDER_BUILD,
    MMVQ_TOKENS,
    TILE_TOKENS,
    Buffers,
    Kernels,
    Matrices,
    Routing,
    Sink,
    Times,
    Work,
    emit,
)
from uvmsim.workload import Workload

__all__ = [
    "MMVQ_TOKENS", "TILE_TOKENS", "Kernels", "Space", "context_lengths", "kernels_of", "space_of",
]  # fmt: skip

ACTIVATIONS = 8
"""Buffers of a layer's width that live in the compute buffer at a time (F32)."""
KV = 2
"""Keys and values lie apart."""
BANKS = ("gate_exps.weight", "up_exps.weight")
"""The first ones of a layer, in kernel order; then down."""


@dataclass(frozen=True)
class Space:
    """The managed address space of one process: buffers at 2 MiB boundaries."""

    layout: Layout
    kv_block: int
    """First VA block of the KV cache."""
    compute_block: int
    """First VA block of the compute buffer."""
    n_blocks: int
    n_pages: np.ndarray
    """int32 [n_blocks]: pages a block has."""
    kv_bytes: int
    compute_bytes: int


def space_of(model: Model, context: int, compute_bytes: int) -> Space:
    """Weights, KV cache of ``context`` tokens and compute buffer, one after the other."""
    lay = layout(model)
    sizes = [lay.nbytes, context * model.kv_bytes_per_token, compute_bytes]
    blocks = [-(-s // BLOCK) for s in sizes]
    n_pages = np.full(sum(blocks), BLOCK // PAGE, np.int32)
    end = 0
    for size, count in zip(sizes, blocks, strict=True):
        end += count
        if size % BLOCK:
            n_pages[end - 1] = -(-(size % BLOCK) // PAGE)
    return Space(lay, blocks[0], blocks[0] + blocks[1], sum(blocks), n_pages, sizes[1], sizes[2])


def kernels_of(
    w: Workload, model: Model, hw: Hardware, space: Space, sm_count: int, ctas_per_sm: int,
    copies: bool = False,
) -> Kernels:  # fmt: skip
    """The kernels of a workload with event unit, in execution order.

    ``copies``: a prefill copies the experts it uses to scratch memory instead of touching them.
    """
    before, after = dense_times(w, model, hw)
    if w.step_added_ns is not None:
        after = after + w.step_added_ns
    dense, banks, blocks = _matrices(model, space.layout)
    work = Work(
        Routing(
            w.ids, w.counts, w.event_lo, w.event_layer, w.event_step, w.step_tokens,
            context_lengths(w), w.n_experts,
        ),
        Times(before, expert_times(w, model, hw, w.event_lo[1:]), after),
        dense, banks, blocks, _buffers(model, space), sm_count, sm_count * ctas_per_sm, copies,
        hw.engine.build >= IN_ORDER_BUILD,
    )  # fmt: skip
    n = np.zeros(3, np.int64)
    emit(work, Sink(_room(0, 0, 0), n, False))
    out = _room(*n.tolist())
    n[:] = 0
    emit(work, Sink(out, n, True))
    return out


def _matrices(model: Model, lay: Layout) -> tuple[Matrices, Matrices, np.ndarray]:
    """Dense tensors and expert banks by MoE layer, and the transformer blocks of each layer."""
    moe = list(model.moe_layers)
    groups = [list(range(0 if i == 0 else moe[i - 1] + 1, moe[i] + 1)) for i in range(len(moe))]
    rest = [b for b in range(model.n_layers) if b > moe[-1]]
    dense = [[t for b in g for t in lay.of_block(b) if t.experts == 1] for g in groups]
    dense.append([t for b in [*rest, -1] for t in lay.of_block(b) if t.experts == 1])
    banks = [sorted((t for t in lay.of_block(b) if t.experts > 1), key=_rank) for b in moe]
    return _table(dense), _table(banks), np.array([len(g) for g in [*groups, rest]])


def _rank(bank: Placed) -> int:
    return next((i for i, end in enumerate(BANKS) if bank.name.endswith(end)), len(BANKS))


def _table(layers: list[list[Placed]]) -> Matrices:
    flat = [t for tensors in layers for t in tensors]
    return Matrices(
        np.array([t.offset for t in flat], np.int64),
        np.array([t.nbytes // t.experts for t in flat], np.int64),
        np.array([t.row_bytes for t in flat], np.int64),
        np.array([t.strips for t in flat], np.int64),
        np.array(["down" in t.name for t in flat], bool),
        np.array([t.is_float for t in flat], bool),
        np.cumsum([0, *(len(tensors) for tensors in layers)]),
    )


def _buffers(model: Model, space: Space) -> Buffers:
    halves = max(model.n_layers, 1) * KV
    return Buffers(
        space.kv_block * BLOCK, space.kv_bytes // halves,
        model.kv_bytes_per_token // halves,
        space.compute_block * BLOCK, space.compute_bytes,
        (model.n_embd or 4096) * 4 * ACTIVATIONS,
    )  # fmt: skip


def context_lengths(w: Workload) -> np.ndarray:
    """int64 [S]: the longest context of a step's tokens (exact for one sequence a step)."""
    t = w.step_tokens.astype(np.int64)
    return np.where(t > 0, (2 * w.step_kv // np.maximum(t, 1) + t - 1) // 2, 0)


def _room(kernels: int, waves: int, touches: int) -> Kernels:
    i64 = np.int64
    return Kernels(
        np.zeros(kernels, np.int32), np.zeros(kernels, i64), np.zeros(kernels, i64),
        np.zeros(kernels, i64), np.zeros(kernels, np.int8), np.zeros(kernels, i64),
        np.zeros(waves, i64), np.zeros(waves, np.int8), np.zeros(waves, np.int16),
        np.zeros(waves, np.int32), np.zeros(waves, np.int8), np.zeros(touches, i64),
        np.zeros(touches, i64),
    )  # fmt: skip
