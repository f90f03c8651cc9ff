"""Which pages the GPU's kernels touch, in which order and how many of them at a time.

What is modelled (llama.cpp at build 7099, ggml-cuda):

* Decode, up to 8 tokens: one thread block a matrix row (mmvq). Gate and up run as one fused kernel
  over the chosen experts in slot order, rows ascending; then down. Thread blocks whose pages are there
  finish and make room; those that wait for pages are at most as many as the GPU holds
  (``sm_count * ctas_per_sm``), and their faults come from all over their rows.
* Prefill: one kernel each for gate, up and down (mul_mat_id, MMQ, stream-K). The tiles of 128 rows
  are walked row tile outermost, then expert, then tile of 128 tokens; SM b of S starts at fraction
  b/S. The tiles that all SMs work on at once are a *wave*.
* Dense matrices in the same two ways; small tensors, the KV cache (the positions in use) and the
  compute buffer are touched with a layer's first wave. Last, the output matrix.

What is not: SMs drift apart in reality, here a wave ends before the next begins; the order in which
SMs raise faults within a wave is their number; L2 plays no role; writes are not told from reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from traces.jit import compiled
from uvmsim.core.jit import inner
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.timing import dense_times, expert_times
from uvmsim.paging.layout import BLOCK, PAGE, Layout, Placed, layout
from uvmsim.workload import Workload

MMVQ_TOKENS = 8
"""Tokens up to which ggml-cuda multiplies row by row (MMVQ_MAX_BATCH_SIZE)."""
TILE_ROWS, TILE_TOKENS = 128, 128
"""A tile of the matrix kernel (mmq_y, mmq_x)."""
BIG = 16
"""Pages of 64 KiB: what an SM's translation buffer asks for at a time while thread blocks read rows."""
SMALL = 64 << 10
"""Tensors below this size are touched at once."""
ACTIVATIONS = 8
"""Buffers of a layer's width that live in the compute buffer at a time (F32)."""


NO_ACTIONS = np.zeros(0, np.int8)


class Kernels(NamedTuple):
    """K kernels of W waves of T touches; a touch is a run of pages."""

    step: np.ndarray
    """int32 [K]: forward pass."""
    compute_ns: np.ndarray
    """int64 [K]: time when every page is resident."""
    wave_hi: np.ndarray
    """int64 [K]: waves up to and including this kernel."""
    copy_bytes: np.ndarray
    """int64 [K]: bytes copied explicitly before it starts (0 but for copied experts)."""
    tenant: np.ndarray
    """int8 [K]"""
    tail_ns: np.ndarray
    """int64 [K]: work that remains when the last missing page has come."""
    touch_hi: np.ndarray
    """int64 [W]: touches up to and including this wave."""
    entries: np.ndarray
    """int8 [W]: fault entries a faulting page raises: SMs that share it."""
    burst: np.ndarray
    """int8 [W]: pages of a touch that fault before the next touch's do; 0: the machine's burst."""
    limit: np.ndarray
    """int32 [W]: touches that can wait for pages at a time; 0: all of the wave."""
    first: np.ndarray
    """int64 [T]: first page of a touch, counted over all buffers."""
    last: np.ndarray
    """int64 [T]: one past its last page."""
    action: np.ndarray = NO_ACTIONS
    """int8 [K], or [0] for none: `TO_DEVICE`, `TO_HOST` where the touches are prefetched."""


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


class _Bank(NamedTuple):
    offset: int
    each: int
    row: int
    group: int


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
    sharing: int = 1, copies: bool = False,
) -> Kernels:  # fmt: skip
    """The kernels of a workload with event unit, in execution order.

    ``sharing``: fault entries of a page that several thread blocks read, for each of them.
    ``copies``: a prefill copies the experts it uses to scratch memory instead of touching them.
    """
    pre, tail = dense_times(w, model, hw)
    expert = expert_times(w, model, hw, w.event_lo[1:])
    moe = list(model.moe_layers)
    groups = [list(range(0 if i == 0 else moe[i - 1] + 1, moe[i] + 1)) for i in range(len(moe))]
    dense = [[t for b in g for t in space.layout.of_block(b) if t.experts == 1] for g in groups]
    rest = [b for b in range(model.n_layers) if b > moe[-1]]
    dense.append([t for b in [*rest, -1] for t in space.layout.of_block(b) if t.experts == 1])
    banks = [_banks(space.layout.of_block(b)) for b in moe]
    dense_lo = np.cumsum([0, *(len(d) for d in dense)])
    bank_lo = np.cumsum([0, *(len(b) for b in banks)])
    kv_layer = space.kv_bytes // max(model.n_layers, 1) // KV
    args = (
        w.ids, w.counts, w.event_lo, w.event_layer, w.event_step, w.step_tokens, context_lengths(w),
        w.n_experts, pre, expert, tail,
        _table([(t.offset, t.nbytes, t.row_bytes) for d in dense for t in d]), dense_lo,
        _table([tuple(b) for bs in banks for b in bs]), bank_lo,
        np.array([*[len(g) for g in groups], len(rest)]), sm_count, sm_count * ctas_per_sm,
        space.kv_block * (BLOCK // PAGE), kv_layer,
        model.kv_bytes_per_token // max(model.n_layers, 1) // KV,
        space.compute_block * (BLOCK // PAGE), space.compute_bytes,
        (model.n_embd or 4096) * 4 * ACTIVATIONS,
    )  # fmt: skip
    n = np.zeros(3, np.int64)
    _emit(*args, copies, _room(0, 0, 0), n, False)
    out = _room(*n.tolist())
    n[:] = 0
    _emit(*args, copies, out, n, True)
    shared = out.entries > 1
    out.entries[shared] = np.minimum(out.entries[shared].astype(np.int64) * sharing, 127)
    return out


KV = 2
"""Keys and values lie apart."""


def _banks(tensors: list[Placed]) -> list[_Bank]:
    """Expert banks: gate and up (group 0) in kernel order, then down (group 1)."""
    banks = [t for t in tensors if t.experts > 1]
    order = {"gate_exps.weight": 0, "up_exps.weight": 1}

    def rank(t: Placed) -> int:
        return next((r for k, r in order.items() if t.name.endswith(k)), 2)

    return [
        _Bank(t.offset, t.nbytes // t.experts, t.row_bytes, int("down" in t.name))
        for t in sorted(banks, key=rank)
    ]


def _table(rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(len(rows), -1)


def context_lengths(w: Workload) -> np.ndarray:
    """int64 [S]: the longest context of a step's tokens (exact for one sequence a step)."""
    t = w.step_tokens.astype(np.int64)
    return np.where(t > 0, (2 * w.step_kv // np.maximum(t, 1) + t - 1) // 2, 0)


def _room(kernels: int, waves: int, touches: int) -> Kernels:
    i64 = np.int64
    return Kernels(
        np.zeros(kernels, np.int32), np.zeros(kernels, i64), np.zeros(kernels, i64),
        np.zeros(kernels, i64), np.zeros(kernels, np.int8), np.zeros(kernels, i64),
        np.zeros(waves, i64), np.zeros(waves, np.int8), np.zeros(waves, np.int8),
        np.zeros(waves, np.int32), np.zeros(touches, i64), np.zeros(touches, i64),
    )  # fmt: skip


@inner
def _touch(out, n, write, lo, hi):
    """A run of bytes."""
    if write:
        out.first[n[2]] = lo // PAGE
        out.last[n[2]] = (hi + PAGE - 1) // PAGE
    n[2] += 1


@inner
def _end_wave(out, n, write, row, limit):
    if write:
        out.touch_hi[n[1]] = n[2]
        out.limit[n[1]] = limit
        # Rows that share a page, and the one that reaches in from before.
        out.entries[n[1]] = min(PAGE // row + 2, 8) if 0 < row < PAGE else 1
        out.burst[n[1]] = BIG if row > 0 else 0
    n[1] += 1


@inner
def _end_kernel(out, n, write, step, ns):
    if write:
        wave = np.int64(0) if n[0] == 0 else out.wave_hi[n[0] - 1]
        rounds = np.int64(0)
        for w in range(wave, n[1]):
            first = np.int64(0) if w == 0 else out.touch_hi[w - 1]
            limit = out.limit[w]
            rounds += (out.touch_hi[w] - first + limit - 1) // limit if limit > 0 else 1
        out.tail_ns[n[0]] = ns // max(rounds, 1)
        out.step[n[0]] = step
        out.compute_ns[n[0]] = ns
        out.wave_hi[n[0]] = n[1]
    n[0] += 1


@inner
def _rows(out, n, write, banks, lo, hi, group, ids, a, b, n_experts, sms, window):
    """Row by row over experts ``ids[a:b]``, all banks of the group side by side. A window is
    touched in runs of ``sms`` rows: one thread block of each SM."""
    each = np.int64(0)
    for k in range(lo, hi):
        if banks[k, 3] == group:
            each = max(each, (banks[k, 1] + banks[k, 2] - 1) // banks[k, 2])
    total = each * (b - a)
    at = np.int64(0)
    row = np.int64(1)
    matrices = 0
    for k in range(lo, hi):
        if banks[k, 3] == group and banks[k, 1] > banks[k, 2]:
            row = banks[k, 2]
            matrices += 1
    while at < total:
        i = at // each
        stop = min((i + 1) * each, at + sms)
        e = ids[a + i] % n_experts
        for k in range(lo, hi):
            if banks[k, 3] != group:
                continue
            rows = (banks[k, 1] + banks[k, 2] - 1) // banks[k, 2]
            r0, r1 = min(at - i * each, rows), min(stop - i * each, rows)
            if r0 < r1:
                base = banks[k, 0] + e * banks[k, 1]
                _touch(out, n, write, base + r0 * banks[k, 2],
                       base + min(r1 * banks[k, 2], banks[k, 1]))  # fmt: skip
        at = stop
    _end_wave(out, n, write, row, max(matrices, 1) * window // sms)


@inner
def _tiles(out, n, write, offset, each, row, ids, counts, a, b, n_experts, tokens, sms):
    """Tile by tile over experts, SMs starting at equal fractions (stream-K)."""
    rows = (each + row - 1) // row
    row_tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    per_row = np.int64(0)
    for i in range(a, b):
        per_row += (counts[i] + TILE_TOKENS - 1) // TILE_TOKENS
    if a == b:  # a dense matrix
        per_row = (tokens + TILE_TOKENS - 1) // TILE_TOKENS
    total = per_row * row_tiles
    if total == 0:
        return
    longest = (total + sms - 1) // sms
    for j in range(longest):
        for s in range(sms):
            at = total * s // sms + j
            if at >= total * (s + 1) // sms:
                continue
            r, c = at // per_row, at % per_row
            e = np.int64(0)
            if a < b:
                i = a
                while True:
                    wide = (counts[i] + TILE_TOKENS - 1) // TILE_TOKENS
                    if c < wide:
                        break
                    c -= wide
                    i += 1
                e = np.int64(ids[i] % n_experts)
            lo = offset + e * each + r * TILE_ROWS * row
            _touch(out, n, write, lo, min(lo + TILE_ROWS * row, offset + (e + 1) * each))
        _end_wave(out, n, write, 0, 0)


@compiled(nogil=True)
def _emit(
    ids, counts, event_lo, event_layer, event_step, step_tokens, kv_len, n_experts, pre, expert,
    tail, dense, dense_lo, banks, bank_lo, blocks, sms, window, kv_page, kv_layer, kv_token,
    act_page, act_bytes, act_token, copies, out, n, write,
):  # fmt: skip
    """Count (``write`` False) or fill in kernels, waves and touches: ``n`` int64 [3]."""
    n_layers = len(bank_lo) - 1
    none = np.zeros(0, np.int32)
    for ev in range(len(event_layer)):
        layer, step = event_layer[ev], event_step[ev]
        tokens = np.int64(step_tokens[step])
        a, b = event_lo[ev], event_lo[ev + 1]
        block = np.int64(0)
        for i in range(layer):
            block += blocks[i]
        _dense(out, n, write, dense, dense_lo[layer], dense_lo[layer + 1], tokens, sms, window,
               none, block, blocks[layer], kv_page, kv_layer, kv_token, kv_len[step],
               act_page, min(act_token * tokens, act_bytes))  # fmt: skip
        _end_kernel(out, n, write, step, pre[ev])
        lo, hi = bank_lo[layer], bank_lo[layer + 1]
        if b > a:
            if tokens <= MMVQ_TOKENS:
                two = expert[ev] * 2 // 3
                _rows(out, n, write, banks, lo, hi, 0, ids, a, b, n_experts, sms, window)
                _end_kernel(out, n, write, step, two)
                _rows(out, n, write, banks, lo, hi, 1, ids, a, b, n_experts, sms, window)
                _end_kernel(out, n, write, step, expert[ev] - two)
            elif copies:
                for k in range(lo, hi):
                    if write:
                        out.copy_bytes[n[0]] += (b - a) * banks[k, 1]
                _end_kernel(out, n, write, step, expert[ev])
            else:
                rest = expert[ev]
                for k in range(lo, hi):
                    if banks[k, 1] < SMALL:
                        for i in range(a, b):
                            at = banks[k, 0] + (ids[i] % n_experts) * banks[k, 1]
                            _touch(out, n, write, at, at + banks[k, 1])
                        _end_wave(out, n, write, 0, 0)
                    else:
                        _tiles(out, n, write, banks[k, 0], banks[k, 1], banks[k, 2], ids, counts,
                               a, b, n_experts, tokens, sms)  # fmt: skip
                        _end_kernel(out, n, write, step, expert[ev] // 3)
                        rest -= expert[ev] // 3
                _end_kernel(out, n, write, step, max(rest, 0))
        if ev + 1 == len(event_layer) or event_step[ev + 1] != step:
            block += blocks[layer]
            # Only the last token's logits are computed.
            _dense(out, n, write, dense, dense_lo[n_layers], dense_lo[n_layers + 1],
                   np.int64(1) if blocks[n_layers] == 0 else tokens, sms, window, none, block,
                   blocks[n_layers], kv_page, kv_layer, kv_token, kv_len[step], act_page,
                   min(act_token, act_bytes))  # fmt: skip
            _end_kernel(out, n, write, step, tail[step])


@inner
def _dense(
    out, n, write, dense, lo, hi, tokens, sms, window, none, block, blocks, kv_page, kv_layer,
    kv_token, kv_len, act_page, act_bytes,
):  # fmt: skip
    """What comes before a layer's experts: small tensors, KV cache, activations; then matrices."""
    for k in range(lo, hi):
        if dense[k, 1] < SMALL:
            _touch(out, n, write, dense[k, 0], dense[k, 0] + dense[k, 1])
    for i in range(block, block + blocks):
        for half in range(2):
            if kv_token > 0 and kv_len > 0:
                at = kv_page * PAGE + (2 * i + half) * kv_layer
                _touch(out, n, write, at, at + min(kv_len * kv_token, kv_layer))
    if act_bytes > 0:
        _touch(out, n, write, act_page * PAGE, act_page * PAGE + act_bytes)
    _end_wave(out, n, write, 0, 0)
    for k in range(lo, hi):
        if dense[k, 1] < SMALL:
            continue
        if tokens <= MMVQ_TOKENS:
            rows = (dense[k, 1] + dense[k, 2] - 1) // dense[k, 2]
            r = np.int64(0)
            while r < rows:
                stop = min(r + sms, rows)
                _touch(out, n, write, dense[k, 0] + r * dense[k, 2],
                       dense[k, 0] + min(stop * dense[k, 2], dense[k, 1]))  # fmt: skip
                r = stop
            _end_wave(out, n, write, dense[k, 2], window // sms)
        else:
            _tiles(out, n, write, dense[k, 0], dense[k, 1], dense[k, 2], none, none, 0, 0, 1,
                   tokens, sms)  # fmt: skip
