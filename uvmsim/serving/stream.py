"""The server compiled whole: schedule, routing, decisions and clock in one loop, memory bounded.

One forward pass at a time is made up (`uvmsim.serving.schedule`), its experts are served by the
policy's kernel (`uvmsim.experts.pool`), priced as `uvmsim.machine.timing` does and clocked by
`uvmsim.clocks.fast`. Nothing of a pass is kept but sums and when tokens came out; copies are
forgotten once they are done. Times and counts are those of `uvmsim.serving.machine` and
`uvmsim.serving.des`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from traces.jit import compiled
from uvmsim.clocks.fast import BACK_HEAD, DEMAND_HEAD, ISSUED, PREFETCH_HEAD, UNKNOWN, advance
from uvmsim.clocks.fast import NOW as CLOCK
from uvmsim.core.jit import kernel_part
from uvmsim.experts.pool import (
    ACCESSES,
    BASE,
    COPIES,
    EVENTS,
    HITS,
    LIMIT,
    STEPS,
    WAITS,
    WAVES,
)
from uvmsim.machine.timing import wave_ns
from uvmsim.serving.schedule import KV, NOW, PROMPT, ZERO, Entries, begin, commit, compose, cut

PASSES, TOKENS, BUSY_NS, ACCESSED, HIT, BYTES, STALL_NS = range(7)
"""Columns of ``sums`` (int64 [2, 7], by phase): forward passes, their tokens, how long they took,
accesses, hits, bytes copied, how long the GPU waited for copies."""
COLUMNS = 7

ENTRIES, X, TAKEN, N, ATTENDED, HITS_BEFORE = range(6)
"""Places in ``cursor`` (int64 [6]): of the iteration, its entries, the next one and how much of that is
taken; of the pass, its tokens, what they attend to, and hits of the run before it."""

DROPPED, FULL = 0, 1
"""Places in `Copies.n`: copies of the run that were forgotten, whether there is room for no more."""


class Part(NamedTuple):
    """One forward pass: the tokens it has and, in the fields of `uvmsim.experts.pool.Stream` of the
    same names, what they ask for. All are written anew for each pass."""

    entries: Entries
    request: np.ndarray
    kind: np.ndarray
    at: np.ndarray
    """int32 [ubatch]: number of the token within its kind."""
    ids: np.ndarray
    counts: np.ndarray
    event_lo: np.ndarray
    event_tokens: np.ndarray
    row_lo: np.ndarray
    row_experts: np.ndarray
    row_seq: np.ndarray
    row_pos: np.ndarray
    step_phase: np.ndarray
    seen: np.ndarray
    """int64 [experts]: where in the pass's accesses an expert is."""


class Tokens(NamedTuple):
    """`uvmsim.serving.source.Source` and where each request begins in it."""

    prompt: np.ndarray
    output: np.ndarray
    start: np.ndarray


class Prices(NamedTuple):
    """A machine and a model as `uvmsim.machine.timing` sees them; B blocks, L layers with experts."""

    dense_bytes: np.ndarray
    dense_params: np.ndarray
    home: np.ndarray
    """int64 [B]: layer whose event a block is charged to; L: the tail."""
    expert_bytes: np.ndarray
    expert_params: np.ndarray
    copy_ns: np.ndarray
    """int64 [L]: an expert over the link."""
    rates: np.ndarray
    """float64 [8]: dense and expert bytes/s, flop/s, KV bytes a token and block, output bytes, output
    parameters, tile, row tokens."""
    ns: np.ndarray
    """int64 [3]: launches of a block and of an event's experts, decision."""
    border: np.ndarray
    """int64 [3]: bytes that experts and KV cache share, of a slot, of a token's KV; 0: the border
    stays."""


class Copies(NamedTuple):
    """Copies that are not over, and what their pass's waves look like to the clock."""

    kind: np.ndarray
    after: np.ndarray
    ns: np.ndarray
    queued: np.ndarray
    start: np.ndarray
    done: np.ndarray
    at: np.ndarray
    """int64 [9]: `uvmsim.clocks.fast`."""
    n: np.ndarray
    """int64 [2]"""
    none: np.ndarray
    """int64 [0]"""
    pre: np.ndarray
    cpu: np.ndarray
    compute: np.ndarray
    copy_hi: np.ndarray
    wait_hi: np.ndarray
    waits: np.ndarray
    opened: np.ndarray
    arrived: np.ndarray
    ended: np.ndarray


def plan_pass(first, last, stream, pool, tally, es, ps, out, write_back, most, misses):
    """Stands for the policy's kernel."""
    return last


def serve_passes(
    budget, q, cursor, entries, tokens, part, prices, copies, sums, stream, pool, tally, es, ps, out,
    most, misses,
):  # fmt: skip
    """Serve ``budget`` forward passes, fewer where all requests are through; returns how many.
    ``tally.n[ERROR]`` is set where the policy is at fault, ``copies.n[FULL]`` where more copies are
    under way than there is room for: either ends the run."""
    layers = len(part.event_tokens)
    passes = 0
    while passes < budget and next_pass(
        q, cursor, entries, tokens, part, prices, tally, pool.n_experts
    ):
        if plan_pass(0, layers, stream, pool, tally, es, ps, out, False, most, misses) < layers:
            return passes
        if not end_pass(q, cursor, entries, part, prices, copies, sums, tally, out, pool.n_experts):
            return passes
        passes += 1
    return passes


@kernel_part
def next_pass(q, cursor, entries, tokens, part, prices, tally, n_experts):
    """Make up the next forward pass, after its iteration if it is that's first; False where there is
    none."""
    if cursor[X] == cursor[ENTRIES]:
        if not begin(q):
            return False
        cursor[ENTRIES] = compose(q, entries)
        cursor[X] = 0
        tally.n[LIMIT] = limit_of(prices.border, q.n[KV])
    own = part.entries
    n = 0
    prompts = 0
    for e in range(cut(q, entries, cursor[ENTRIES], cursor[X : X + 2], own, 0)):
        for j in range(own.length[e]):
            part.request[n] = own.request[e]
            part.kind[n] = own.kind[e]
            part.at[n] = own.first[e] + j
            n += 1
        if own.kind[e] == PROMPT:
            prompts = 1
    cursor[N] = n
    cursor[ATTENDED] = fill(part, q, tokens, n, n_experts)
    cursor[HITS_BEFORE] = tally.n[HITS]
    part.step_phase[0] = 1 - prompts
    tally.n[COPIES] = 0
    tally.n[WAVES] = 0
    tally.n[WAITS] = 0
    return True


@kernel_part
def end_pass(q, cursor, entries, part, prices, copies, sums, tally, out, n_experts):
    """Price and clock a pass that was served, and its iteration if it is that's last; False where there
    is no room for its copies."""
    if not queue_copies(copies, prices, tally, out, n_experts):
        return False
    layers = len(part.event_tokens)
    idle = max(q.n[NOW] - copies.at[CLOCK], 0)
    before = copies.at[CLOCK] + idle
    price(copies, prices, part, tally, out, cursor[N], cursor[ATTENDED], n_experts)
    copies.pre[0] += idle
    advance(
        copies.at, tally.n[WAVES], copies.at[ISSUED] + tally.n[COPIES], False, copies.pre,
        copies.cpu, copies.compute, copies.copy_hi, copies.wait_hi, copies.kind, copies.kind,
        copies.after, copies.ns, copies.ns, copies.waits, copies.queued, copies.start, copies.done,
        copies.none, copies.opened, copies.arrived, copies.ended, 0,
    )  # fmt: skip
    copies.pre[0] -= idle
    own = sums[part.step_phase[0]]
    own[PASSES] += 1
    own[TOKENS] += cursor[N]
    own[BUSY_NS] += copies.at[CLOCK] - before
    own[ACCESSED] += part.event_lo[layers]
    own[HIT] += tally.n[HITS] - cursor[HITS_BEFORE]
    add_up(own, copies, prices, tally, out, n_experts)
    tally.n[EVENTS] += layers
    tally.n[STEPS] += 1
    tally.n[ACCESSES] += part.event_lo[layers]
    tally.n[BASE] += tally.n[COPIES]
    if cursor[X] == cursor[ENTRIES]:
        warming = q.n[ZERO] < 0
        commit(q, entries, cursor[ENTRIES], copies.at[CLOCK])
        if warming and q.n[ZERO] >= 0:
            sums[:] = 0
    return True


@compiled(nogil=True)
def begin_one(q, cursor, entries, tokens, part, prices, tally, n_experts):
    """`next_pass`, for a loop in Python."""
    return next_pass(q, cursor, entries, tokens, part, prices, tally, n_experts)


@compiled(nogil=True)
def end_one(q, cursor, entries, part, prices, copies, sums, tally, out, n_experts):
    """`end_pass`, for a loop in Python."""
    return end_pass(q, cursor, entries, part, prices, copies, sums, tally, out, n_experts)


@kernel_part
def limit_of(border, kv_tokens):
    """Slots that are left beside the KV cache of ``kv_tokens`` tokens; 0: the border does not move."""
    if border[0] == 0:
        return np.int64(0)
    return max((border[0] - kv_tokens * border[2]) // border[1], np.int64(1))


@kernel_part
def fill(part, q, tokens, n, n_experts):
    """Write what the pass's first ``n`` tokens ask for; returns the positions they attend to, in
    all."""
    layers = len(part.event_tokens)
    k = part.row_experts.shape[1]
    kv = np.int64(0)
    for t in range(n):
        kv += position(part, q, t) + 1
    a = np.int64(0)
    r = np.int64(0)
    for m in range(layers):
        start = a
        known = 0
        base = m * n_experts
        for t in range(n):
            i = part.request[t]
            phase = part.kind[t]
            table = tokens.prompt if phase == PROMPT else tokens.output
            row = (tokens.start[i, phase] + part.at[t]) % len(table)
            if table[row, m, 0] < 0:
                continue
            known += 1
            for j in range(k):
                own = table[row, m, j]
                part.row_experts[r, j] = own
                if own < 0:
                    continue
                e = base + own
                s = part.seen[e]
                if start <= s < a and part.ids[s] == e:
                    part.counts[s] += 1
                else:
                    part.seen[e] = a
                    part.ids[a] = e
                    part.counts[a] = 1
                    a += 1
            part.row_seq[r] = i
            part.row_pos[r] = position(part, q, t)
            r += 1
        part.event_tokens[m] = known
        part.event_lo[m + 1] = a
        part.row_lo[m + 1] = r
    return kv


@kernel_part
def position(part, q, t):
    """The place of a pass's token in its request."""
    at = np.int64(part.at[t])
    return at if part.kind[t] == PROMPT else at + q.prompt[part.request[t]]


@kernel_part
def queue_copies(copies, prices, tally, out, n_experts):
    """Hand the pass's copies to the clock; False where there is no room."""
    more = tally.n[COPIES]
    if copies.at[ISSUED] + more > len(copies.kind):
        forget(copies)
        if copies.at[ISSUED] + more > len(copies.kind):
            copies.n[FULL] = 1
            return False
    base = copies.at[ISSUED]
    dropped = copies.n[DROPPED]
    for c in range(more):
        at = base + c
        copies.kind[at] = out.copy_kind[c]
        # What was forgotten is done.
        copies.after[at] = max(out.copy_after[c] - dropped, -1)
        copies.ns[at] = prices.copy_ns[out.copy_expert[c] // n_experts]
        copies.start[at] = UNKNOWN
        copies.done[at] = UNKNOWN
    kept = 0
    x = 0
    for w in range(tally.n[WAVES]):
        copies.copy_hi[w] = base + out.wave_copy_hi[w]
        while x < out.wave_wait_hi[w]:
            if out.waits[x] >= dropped:
                copies.waits[kept] = out.waits[x] - dropped
                kept += 1
            x += 1
        copies.wait_hi[w] = kept
    return True


@kernel_part
def forget(copies):
    """Drop the copies before the first that is not done by now."""
    n = copies.at[ISSUED]
    now = copies.at[CLOCK]
    first = np.int64(0)
    while first < n and copies.done[first] != UNKNOWN and copies.done[first] <= now:
        first += 1
    for c in range(first, n):
        to = c - first
        copies.kind[to] = copies.kind[c]
        copies.after[to] = max(copies.after[c] - first, -1)
        copies.ns[to] = copies.ns[c]
        copies.queued[to] = copies.queued[c]
        copies.start[to] = copies.start[c]
        copies.done[to] = copies.done[c]
    copies.at[ISSUED] -= first
    copies.at[DEMAND_HEAD] -= first
    copies.at[PREFETCH_HEAD] -= first
    copies.at[BACK_HEAD] -= first
    copies.n[DROPPED] += first


@kernel_part
def price(copies, prices, part, tally, out, n, kv, n_experts):
    """Durations of the pass's waves, as `uvmsim.machine.timing` has them."""
    layers = len(part.event_tokens)
    rates = prices.rates
    dense, read, flop, kv_block = rates[0], rates[1], rates[2], rates[3]
    head_bytes, head_params, tile, rows = rates[4], rates[5], np.int64(rates[6]), rates[7]
    block_launch, expert_launch, decision = prices.ns[0], prices.ns[1], prices.ns[2]
    attended = kv * kv_block / dense
    tail = np.int64(0)
    waves = tally.n[WAVES]
    w = 0
    b = 0
    a = np.int64(0)
    for m in range(layers + 1):
        ns = np.int64(0)
        while b < len(prices.home) and prices.home[b] == m:
            seconds = max(prices.dense_bytes[b] / dense, 2.0 * prices.dense_params[b] * n / flop)
            seconds += attended
            ns += np.int64(np.rint(seconds * 1e9)) + block_launch
            b += 1
        if m == layers:
            tail = ns
            break
        first = True
        while w < waves and out.wave_event[w] == m:
            copies.pre[w] = ns + decision if first else 0
            copies.cpu[w] = 0
            copies.compute[w] = wave_ns(
                part.counts, a, out.wave_hi[w], prices.expert_bytes[m], prices.expert_params[m],
                read, flop, expert_launch, tile, rows,
            )  # fmt: skip
            a = out.wave_hi[w]
            first = False
            w += 1
    head = max(head_bytes / dense, 2.0 * head_params / flop)
    tail += np.int64(np.rint(head * 1e9)) + block_launch
    copies.compute[waves - 1] += tail


@kernel_part
def add_up(own, copies, prices, tally, out, n_experts):
    """The pass's bytes and waits."""
    for c in range(tally.n[COPIES]):
        own[BYTES] += np.int64(prices.expert_bytes[out.copy_expert[c] // n_experts])
    for w in range(tally.n[WAVES]):
        own[STALL_NS] += copies.arrived[w] - copies.opened[w]
