"""Which pages the GPU's kernels touch, in which order and how many of them at a time.

What is modelled (llama.cpp at build 7099, ggml-cuda):

* Decode, up to 8 tokens: one thread block a matrix row (mmvq). Gate and up run as one fused kernel
  over the chosen experts in slot order, rows ascending; then down. Thread blocks whose pages are there
  finish and make room; those that wait for pages are at most as many as the GPU holds
  (``sm_count * ctas_per_sm``), and their faults come from all over their rows, few at a time.
* Prefill: one kernel each for gate, up and down (mul_mat_id, MMQ, stream-K). The tiles of 128 rows
  are walked row tile outermost, then expert, then tile of 128 tokens; SM b of S starts at fraction
  b/S. The tiles that all SMs work on at once are a *wave*. A tile is loaded strip by strip of
  256 weights (MMQ_ITER_K), so its rows are come back to; what was evicted meanwhile faults again.
* From `IN_ORDER_BUILD` on (read at b11549, and seen in an H100's faults): where tiles fill the SMs to
  90 % each thread block has one tile, in order (mmq.cuh, launch_mul_mat_q); gate, up and down of float
  experts are kernels of their own, in prefill expert by expert, 32 rows a thread block (mmf.cuh,
  mul_mat_f_ids); the fused kernel of quantised ones keeps a quarter of the thread blocks.
* Dense matrices in the same two ways; small tensors, the KV cache (the positions in use) and the
  compute buffer are touched with a layer's first wave. Last, the output matrix.

What is not: SMs drift apart in reality, here a wave ends before the next begins; SMs raise faults in
the order of their numbers, but for neighbours (`uvmsim.paging.faults.OVERTAKING`); a strip counts for
all pages of its tile, though rows beyond 4 KiB have pages that a strip leaves out; L2 plays no role;
writes are not told from reads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from traces.jit import compiled
from uvmsim.core.jit import KERNEL_OPTIONS, kernel_part
from uvmsim.paging.bits import BIG
from uvmsim.paging.layout import PAGE

MMVQ_TOKENS = 8
"""Tokens up to which ggml-cuda multiplies row by row (MMVQ_MAX_BATCH_SIZE)."""
TILE_ROWS, TILE_TOKENS = 128, 128
"""A tile of the matrix kernel (mmq_y, mmq_x)."""
TILE_WARPS = 8
"""Warps that load a tile, each a row at a time (MMQ_NWARPS): their rows' pages fault together."""
ROW_LOOKS = 2
"""Times a decode kernel's thread block comes back to its row: it reads 1,088 bytes each time."""
ROW_BURST, ROW_FAULTS = 8, 32
"""Pages of a run of rows that fault together, and faults in the buffer when the driver looks, where
thread blocks walk rows. Fitted to the decode rows of experiments/rtx5090_gpt_oss_120b."""
IN_ORDER_BUILD = 11549
"""Build of llama.cpp from which matrix kernels go in order; an earlier one may do so too."""
EFFICIENT_PERCENT = 90
"""SMs busy in the last round of tiles, from which each tile gets its own thread block."""
FLOAT_ROWS = 32
"""Rows of a float matrix that a thread block computes (mmf.cuh, MMF_ROWS_PER_BLOCK)."""
FLOAT_RUN = 4
"""Rows, a thread block each, that are one touch for a single token: all that fit fault side by side."""
FUSED_SHARE = 8
"""The fused kernel holds one in so many of the thread blocks that fit: some 130 rows of gate and of
up fault at a time on an H100 of 132 SMs."""
SMALL = 64 << 10
"""Tensors below this size are touched at once."""
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
    burst: np.ndarray
    """int8 [W]: pages of a touch that fault before the next touch's do, above 0."""
    fetched: np.ndarray
    """int16 [W]: entries that are in the buffer when the driver looks, at most; 0: a whole batch."""
    limit: np.ndarray
    """int32 [W]: touches that can wait for pages at a time; 0: all of the wave."""
    looks: np.ndarray
    """int8 [W]: times that the wave reads its touches: what was evicted meanwhile faults again."""
    first: np.ndarray
    """int64 [T]: first page of a touch, counted over all buffers."""
    last: np.ndarray
    """int64 [T]: one past its last page."""
    action: np.ndarray = NO_ACTIONS
    """int8 [K], or [0] for none: `TO_DEVICE`, `TO_HOST` where the touches are prefetched."""


class Matrices(NamedTuple):
    """M dense tensors or M expert banks, layer by layer; a bank has a matrix for each expert."""

    offset: np.ndarray
    """int64 [M]: first byte in the buffer of weights."""
    nbytes: np.ndarray
    """int64 [M]: of one matrix."""
    row_bytes: np.ndarray
    """int64 [M]"""
    strips: np.ndarray
    """int64 [M]: strips of a row, 1 to 127."""
    is_down: np.ndarray
    """bool [M]: multiplied after the others."""
    is_float: np.ndarray
    """bool [M]: F16, BF16 or F32, for which there are other kernels."""
    layer_lo: np.ndarray
    """int64 [layers + 1]: first one of each MoE layer, and the end."""


class Routing(NamedTuple):
    """The workload's E events and S steps: see `uvmsim.workload.Workload`."""

    ids: np.ndarray
    counts: np.ndarray
    event_lo: np.ndarray
    event_layer: np.ndarray
    event_step: np.ndarray
    step_tokens: np.ndarray
    step_context: np.ndarray
    """int64 [S]: tokens in the KV cache."""
    n_experts: int


class Times(NamedTuple):
    """Kernels' times when every page is resident, int64."""

    dense_ns: np.ndarray
    """[E]: what comes before a layer's experts."""
    expert_ns: np.ndarray
    """[E]"""
    tail_ns: np.ndarray
    """[S]: what comes after the last layer."""


class Buffers(NamedTuple):
    """KV cache and compute buffer, in bytes."""

    kv_start: int
    kv_half: int
    """A transformer block's keys, or its values, which lie apart."""
    kv_token: int
    """A token's part of that."""
    compute_start: int
    compute_bytes: int
    compute_token: int
    """Activations of a token."""


class Work(NamedTuple):
    """All that decides which pages are touched when."""

    routing: Routing
    times: Times
    dense: Matrices
    """Of each MoE layer and the dense ones before it; last, of what follows the last MoE layer."""
    banks: Matrices
    blocks: np.ndarray
    """int64 [layers + 1]: transformer blocks that ``dense`` is of."""
    buffers: Buffers
    sms: int
    """SMs: thread blocks that run side by side."""
    window: int
    """Thread blocks the GPU holds."""
    copies: bool
    """A prefill copies the experts it uses to scratch memory instead of touching them."""
    in_order: bool
    """llama.cpp from `IN_ORDER_BUILD` on."""


KERNELS, WAVES, TOUCHES = range(3)


class Sink(NamedTuple):
    """Where kernels go, and how many there are."""

    out: Kernels
    n: np.ndarray
    """int64 [3]: ``KERNELS``, ``WAVES``, ``TOUCHES`` so far."""
    write: bool
    """False: they are only counted, ``out`` has no room."""


@kernel_part
def start_of(ends, i):
    """Where part ``i`` begins, of parts that follow one another and end at ``ends``."""
    return np.int64(0) if i == 0 else ends[i - 1]


@kernel_part
def _touch(to: Sink, lo, hi):
    """A run of bytes."""
    if to.write:
        to.out.first[to.n[TOUCHES]] = lo // PAGE
        to.out.last[to.n[TOUCHES]] = (hi + PAGE - 1) // PAGE
    to.n[TOUCHES] += 1


@kernel_part
def _end_wave(to: Sink, burst, fetched, limit, looks):
    if to.write:
        at = to.n[WAVES]
        to.out.touch_hi[at] = to.n[TOUCHES]
        to.out.burst[at], to.out.fetched[at] = burst, fetched
        to.out.limit[at], to.out.looks[at] = limit, looks
    to.n[WAVES] += 1


@kernel_part
def _end_kernel(to: Sink, step, ns):
    if to.write:
        out, at = to.out, to.n[KERNELS]
        rounds = np.int64(0)
        for w in range(start_of(out.wave_hi, at), to.n[WAVES]):
            touches, limit = out.touch_hi[w] - start_of(out.touch_hi, w), out.limit[w]
            rounds += (touches + limit - 1) // limit if limit > 0 else 1
        out.tail_ns[at] = ns // max(rounds, 1)
        out.step[at] = step
        out.compute_ns[at] = ns
        out.wave_hi[at] = to.n[WAVES]
    to.n[KERNELS] += 1


@kernel_part
def _rows(to: Sink, work: Work, ev, down):
    """Row by row over an event's experts, side by side gate and up, or down alone. A window is
    touched in runs of ``work.sms`` rows: one thread block of each SM."""
    r, m = work.routing, work.banks
    layer, a = r.event_layer[ev], r.event_lo[ev]
    lo, hi = m.layer_lo[layer], m.layer_lo[layer + 1]
    each, matrices = np.int64(0), 0
    for k in range(lo, hi):
        if m.is_down[k] == down:
            each = max(each, (m.nbytes[k] + m.row_bytes[k] - 1) // m.row_bytes[k])
            if m.nbytes[k] > m.row_bytes[k]:
                matrices += 1
    total = each * (r.event_lo[ev + 1] - a)
    at = np.int64(0)
    while at < total:
        i = at // each
        stop = min((i + 1) * each, at + work.sms)
        e = r.ids[a + i] % r.n_experts
        for k in range(lo, hi):
            if m.is_down[k] != down:
                continue
            size, width = m.nbytes[k], m.row_bytes[k]
            rows = (size + width - 1) // width
            r0, r1 = min(at - i * each, rows), min(stop - i * each, rows)
            if r0 < r1:
                base = m.offset[k] + e * size
                _touch(to, base + r0 * width, base + min(r1 * width, size))
        at = stop
    limit = max(matrices, 1) * work.window // work.sms
    if work.in_order and matrices > 1:
        limit = max(limit // FUSED_SHARE, 1)
    _end_wave(to, ROW_BURST, ROW_FAULTS, limit, ROW_LOOKS)


@kernel_part
def _runs(to: Sink, base, size, run):
    """``size`` bytes from ``base`` on, in touches of ``run`` bytes."""
    at = np.int64(0)
    while at < size:
        _touch(to, base + at, base + min(at + run, size))
        at += run


@kernel_part
def _float_rows(to: Sink, work: Work, ev, k, tokens):
    """Matrix ``k`` of an event's float experts, a kernel: row by row in the experts' order of the
    routing for one token, for more expert by expert in blocks of `FLOAT_ROWS`."""
    r, m = work.routing, work.banks
    size, width = m.nbytes[k], m.row_bytes[k]
    a, b = r.event_lo[ev], r.event_lo[ev + 1]
    run = (FLOAT_RUN if tokens == 1 else FLOAT_ROWS) * width
    if tokens == 1:
        for i in range(a, b):
            _runs(to, m.offset[k] + r.ids[i] % r.n_experts * size, size, run)
    else:  # the grid's second dimension is the expert
        for e in range(r.n_experts):
            for i in range(a, b):
                if r.ids[i] % r.n_experts == e:
                    _runs(to, m.offset[k] + e * size, size, run)
    limit = work.window // FLOAT_RUN if tokens == 1 else work.sms
    _end_wave(to, ROW_BURST, ROW_FAULTS, limit, 1)


@kernel_part
def _fills(work: Work, row_tiles, a, b, tokens):
    """Whether a launch of all tiles, those of experts without tokens too, keeps the SMs busy."""
    n = row_tiles * ((tokens + TILE_TOKENS - 1) // TILE_TOKENS)
    if a < b:
        n *= work.routing.n_experts
    rounds = (n + work.sms - 1) // work.sms
    return 100 * n >= EFFICIENT_PERCENT * rounds * work.sms


@kernel_part
def _tile(to: Sink, routing: Routing, m: Matrices, k, a, b, r, c):
    """Rows of row tile ``r``, of the expert among [a, b) that the ``c``-th tile of tokens belongs to
    (none: of a dense matrix)."""
    each, row = m.nbytes[k], m.row_bytes[k]
    e = np.int64(0)
    if a < b:
        i = a
        while True:
            wide = (routing.counts[i] + TILE_TOKENS - 1) // TILE_TOKENS
            if c < wide:
                break
            c -= wide
            i += 1
        e = np.int64(routing.ids[i] % routing.n_experts)
    lo = m.offset[k] + e * each + r * TILE_ROWS * row
    _touch(to, lo, min(lo + TILE_ROWS * row, m.offset[k] + (e + 1) * each))


@kernel_part
def _tiles(to: Sink, work: Work, m: Matrices, k, a, b, tokens):
    """Tile by tile over experts [a, b) of the routing (none: a dense matrix), SMs starting at equal
    fractions (stream-K)."""
    counts, sms = work.routing.counts, work.sms
    each, row = m.nbytes[k], m.row_bytes[k]
    rows = (each + row - 1) // row
    row_tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    per_row = np.int64(0)
    for i in range(a, b):
        per_row += (counts[i] + TILE_TOKENS - 1) // TILE_TOKENS
    if a == b:
        per_row = (tokens + TILE_TOKENS - 1) // TILE_TOKENS
    total = per_row * row_tiles
    if total == 0:
        return
    burst = min((TILE_WARPS * row + PAGE - 1) // PAGE, 127)
    if work.in_order and _fills(work, row_tiles, a, b, tokens):
        for at in range(total):
            _tile(to, work.routing, m, k, a, b, at // per_row, at % per_row)
        _end_wave(to, burst, 0, sms, m.strips[k])
        return
    longest = (total + sms - 1) // sms
    for j in range(longest):
        for s in range(sms):
            at = total * s // sms + j
            if at < total * (s + 1) // sms:
                _tile(to, work.routing, m, k, a, b, at // per_row, at % per_row)
        _end_wave(to, burst, 0, 0, m.strips[k])


@kernel_part
def _dense(to: Sink, work: Work, layer, step, block, tokens, active):
    """What comes before a layer's experts: small tensors, KV cache, activations of ``active`` tokens;
    then matrices. ``block``: its first transformer block."""
    m, b = work.dense, work.buffers
    lo, hi = m.layer_lo[layer], m.layer_lo[layer + 1]
    for k in range(lo, hi):
        if m.nbytes[k] < SMALL:
            _touch(to, m.offset[k], m.offset[k] + m.nbytes[k])
    context = work.routing.step_context[step]
    for i in range(block, block + work.blocks[layer]):
        for half in range(2):
            if b.kv_token > 0 and context > 0:
                at = b.kv_start + (2 * i + half) * b.kv_half
                _touch(to, at, at + min(context * b.kv_token, b.kv_half))
    used = min(b.compute_token * active, b.compute_bytes)
    if used > 0:
        _touch(to, b.compute_start, b.compute_start + used)
    _end_wave(to, BIG, 0, 0, 1)
    for k in range(lo, hi):
        size, width = m.nbytes[k], m.row_bytes[k]
        if size < SMALL:
            continue
        if tokens <= MMVQ_TOKENS:
            rows = (size + width - 1) // width
            r = np.int64(0)
            while r < rows:
                stop = min(r + work.sms, rows)
                _touch(to, m.offset[k] + r * width, m.offset[k] + min(stop * width, size))
                r = stop
            _end_wave(to, ROW_BURST, ROW_FAULTS, work.window // work.sms, ROW_LOOKS)
        else:
            _tiles(to, work, m, k, 0, 0, tokens)


@kernel_part
def _experts(to: Sink, work: Work, ev, tokens):
    """The kernels of an event's experts."""
    r, m, ns = work.routing, work.banks, work.times.expert_ns[ev]
    step, layer = r.event_step[ev], r.event_layer[ev]
    a, b = r.event_lo[ev], r.event_lo[ev + 1]
    lo, hi = m.layer_lo[layer], m.layer_lo[layer + 1]
    floats = work.in_order and not work.copies
    for k in range(lo, hi):
        floats = floats and (m.is_float[k] or m.nbytes[k] < SMALL)
    if floats:
        rest = ns
        for k in range(lo, hi):
            _float_rows(to, work, ev, k, tokens)
            _end_kernel(to, step, ns // (hi - lo))
            rest -= ns // (hi - lo)
        _end_kernel(to, step, max(rest, 0))
    elif tokens <= MMVQ_TOKENS:
        two = ns * 2 // 3
        _rows(to, work, ev, False)
        _end_kernel(to, step, two)
        _rows(to, work, ev, True)
        _end_kernel(to, step, ns - two)
    elif work.copies:
        if to.write:
            for k in range(lo, hi):
                to.out.copy_bytes[to.n[KERNELS]] += (b - a) * m.nbytes[k]
        _end_kernel(to, step, ns)
    else:
        rest = ns
        for k in range(lo, hi):
            if m.nbytes[k] < SMALL:
                for i in range(a, b):
                    at = m.offset[k] + (r.ids[i] % r.n_experts) * m.nbytes[k]
                    _touch(to, at, at + m.nbytes[k])
                _end_wave(to, BIG, 0, 0, 1)
            else:
                _tiles(to, work, m, k, a, b, tokens)
                _end_kernel(to, step, ns // 3)
                rest -= ns // 3
        _end_kernel(to, step, max(rest, 0))


@compiled(**KERNEL_OPTIONS)
def emit(work: Work, to: Sink):
    """Count or write kernels, waves and touches, in execution order."""
    r, times = work.routing, work.times
    n_layers, n_events = len(work.banks.layer_lo) - 1, len(r.event_layer)
    for ev in range(n_events):
        layer, step = r.event_layer[ev], r.event_step[ev]
        tokens = np.int64(r.step_tokens[step])
        block = np.int64(0)
        for i in range(layer):
            block += work.blocks[i]
        _dense(to, work, layer, step, block, tokens, tokens)
        _end_kernel(to, step, times.dense_ns[ev])
        if r.event_lo[ev + 1] > r.event_lo[ev]:
            _experts(to, work, ev, tokens)
        if ev + 1 == n_events or r.event_step[ev + 1] != step:
            block += work.blocks[layer]
            # Only the last token's logits are computed.
            left = np.int64(1) if work.blocks[n_layers] == 0 else tokens
            _dense(to, work, n_layers, step, block, left, 1)
            _end_kernel(to, step, times.tail_ns[step])
