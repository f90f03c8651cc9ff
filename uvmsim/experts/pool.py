"""The expert pool's state transitions: one kernel, written once, for every policy and engine.

`plan_events` is a template: `uvmsim.core.bind` puts a policy's functions in the place of those of
`uvmsim.experts.hooks` and compiles the result. Hooks are given the pool to read, not to write.

Rules of an event: hits are judged against the pool before the event; experts are touched in order;
none of the event's experts may be evicted for another; an event wider than the pool is served in
waves of as many experts as there are slots, each wave an event of its own. An event that the policy
bypasses reads what is resident, copies the rest to a buffer beside the pool, and changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.core.read_only import read_only
from uvmsim.experts.hooks import (
    BYPASSES,
    PREFETCHES,
    SEES_EVENTS,
    bypasses,
    eviction_on_event,
    on_access,
    on_evict,
    on_insert,
    prefetch,
    prefetch_on_event,
    victim,
)
from uvmsim.policies.base import ACCESS, EVENT, LAYER, STEP, Event, Pool
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK

HITS, EVICTIONS, ISSUED, USED, WASTED, BASE, WAVES, COPIES, WAITS, ERROR, CULPRIT = range(11)
"""Places in ``Tally.n``; BASE is the run's number of the first copy of the block being written."""
BYPASSED, BYPASSED_HITS = 11, 12
"""More places: accesses of bypassed events, and those among them that were resident."""

BAD_VICTIM, NO_VICTIM, BAD_PREFETCH = 1, 2, 3


class Tally(NamedTuple):
    """Counters and what is known of copies on their way."""

    n: np.ndarray
    """int64 [13]: see the places above; ERROR is 0 while all is well."""
    layer_hits: np.ndarray
    """int64 [2, layers]"""
    layer_accesses: np.ndarray
    fresh: np.ndarray
    """uint8 [experts]: prefetched and not used yet."""
    brought_by: np.ndarray
    """int64 [experts]: number in the run of the copy that brought a fresh expert."""


class Stream(NamedTuple):
    """The arrays of `uvmsim.workload.Workload` the kernel reads."""

    ids: np.ndarray
    counts: np.ndarray
    event_lo: np.ndarray
    event_layer: np.ndarray
    event_step: np.ndarray
    event_tokens: np.ndarray
    row_lo: np.ndarray
    scores: np.ndarray
    row_experts: np.ndarray
    row_seq: np.ndarray
    row_pos: np.ndarray
    step_phase: np.ndarray
    row_guesses: np.ndarray
    row_guess_scores: np.ndarray


class Out(NamedTuple):
    """The part of a plan the kernel writes, with room for at least one event."""

    wave_event: np.ndarray
    wave_hi: np.ndarray
    wave_copy_hi: np.ndarray
    wave_wait_hi: np.ndarray
    copy_expert: np.ndarray
    copy_kind: np.ndarray
    copy_after: np.ndarray
    copy_slot: np.ndarray
    """int32: slot a copy fills or (a write-back) empties; from the number of all slots up, a place
    beside the pool."""
    copy_victim: np.ndarray
    """int32: expert that lost the slot for it, -1 if none."""
    waits: np.ndarray
    wait_slot: np.ndarray
    """int32: slot that the awaited copy fills."""
    hit: np.ndarray
    slot: np.ndarray
    """int32 [A]: slot an access reads."""
    wanted: np.ndarray
    """int32: scratch for `prefetch`."""


def take_slot(es, pool, seen, tally, out, e, i, kind, write_back):
    """Give expert ``e`` a slot, evicting if the pool is full, and queue its copy.

    Returns False where no expert may leave. The copy waits for whatever still moves through the
    slot: the victim's write-back, or its prefetch that has not arrived.
    """
    p = pool.pool_of[e]
    n = tally.n
    after = np.int64(-1)
    left = np.int64(-1)
    if pool.used[p] < pool.lo[p + 1] - pool.lo[p]:
        slot = pool.lo[p] + pool.used[p]
        pool.used[p] += 1
    else:
        v = victim(es, seen, p)
        if v < 0:
            return False
        if (
            v >= pool.slot_of.size
            or pool.slot_of[v] < 0
            or pool.pin[v] == pool.stamp[0]
            or pool.pool_of[v] != p
        ):
            n[ERROR] = BAD_VICTIM
            n[CULPRIT] = v
            return False
        slot = np.int64(pool.slot_of[v])
        left = np.int64(v)
        on_evict(es, seen, v)
        pool.slot_of[v] = -1
        n[EVICTIONS] += 1
        if tally.fresh[v]:
            tally.fresh[v] = 0
            n[WASTED] += 1
            after = tally.brought_by[v]
        if write_back:
            c = n[COPIES]
            out.copy_expert[c] = v
            out.copy_kind[c] = WRITEBACK
            out.copy_after[c] = after
            out.copy_slot[c] = slot
            out.copy_victim[c] = -1
            after = n[BASE] + c
            n[COPIES] = c + 1
    pool.slot_of[e] = slot
    pool.expert_in[slot] = e
    on_insert(es, seen, e, i)
    c = n[COPIES]
    out.copy_expert[c] = e
    out.copy_kind[c] = kind
    out.copy_after[c] = after
    out.copy_slot[c] = slot
    out.copy_victim[c] = left
    n[COPIES] = c + 1
    return True


def copy_beside(tally, out, e, place):
    """Queue the copy of an expert that gets no slot, to a place beside the pool."""
    c = tally.n[COPIES]
    out.copy_expert[c] = e
    out.copy_kind[c] = DEMAND
    out.copy_after[c] = -1
    out.copy_slot[c] = place
    out.copy_victim[c] = -1
    tally.n[COPIES] = c + 1


def event_of(stream, i, lo, hi):
    """What hooks see of event ``i``."""
    scores = stream.scores[:0]
    if len(stream.scores):
        scores = stream.scores[stream.row_lo[i] : stream.row_lo[i + 1]]
    guesses, ranks = stream.row_guesses[:0], stream.row_guess_scores[:0]
    if len(stream.row_guesses):
        guesses = stream.row_guesses[stream.row_lo[i] : stream.row_lo[i + 1]]
        ranks = stream.row_guess_scores[stream.row_lo[i] : stream.row_lo[i + 1]]
    return Event(
        np.int64(stream.event_layer[i]),
        np.int64(stream.event_step[i]),
        np.int64(stream.event_tokens[i]),
        read_only(stream.ids[lo:hi]),
        read_only(stream.counts[lo:hi]),
        read_only(scores),
        read_only(stream.row_experts[stream.row_lo[i] : stream.row_lo[i + 1]]),
        read_only(stream.row_seq[stream.row_lo[i] : stream.row_lo[i + 1]]),
        read_only(stream.row_pos[stream.row_lo[i] : stream.row_lo[i + 1]]),
        read_only(guesses),
        read_only(ranks),
    )


def seen_by_hooks(pool):
    """The pool as hooks get it."""
    return Pool(
        read_only(pool.slot_of), read_only(pool.expert_in), read_only(pool.pin),
        read_only(pool.stamp), read_only(pool.clock), read_only(pool.lo), read_only(pool.used),
        read_only(pool.pool_of), read_only(pool.layer_of), pool.n_layers, pool.n_experts,
    )  # fmt: skip


def plan_events(first, last, stream, pool, tally, es, ps, out, write_back, most):
    """Serve events ``first`` .. ``last - 1``; returns the number of the first one not served.

    Stops early where ``out`` might not hold another event, or at an error (see ``tally.n``).
    ``most`` is the most experts one prefetch call may ask for.
    """
    n = tally.n
    seen = seen_by_hooks(pool)
    narrowest = pool.lo[1] - pool.lo[0]
    for p in range(len(pool.used)):
        narrowest = min(narrowest, pool.lo[p + 1] - pool.lo[p])
    for i in range(first, last):
        lo, hi = stream.event_lo[i], stream.event_lo[i + 1]
        room = 2 * (hi - lo) + 2 * most
        if (
            n[COPIES] + room > len(out.copy_kind)
            or n[WAVES] + hi - lo + 1 > len(out.wave_hi)
            or n[WAITS] + hi - lo > len(out.waits)
        ):
            return i
        layer = stream.event_layer[i]
        step = stream.event_step[i]
        phase = stream.step_phase[step]
        pool.clock[EVENT] = i
        pool.clock[STEP] = step
        pool.clock[LAYER] = layer
        pool.clock[ACCESS] = lo
        if SEES_EVENTS:
            ev = event_of(stream, i, lo, hi)
            eviction_on_event(es, seen, ev)
            prefetch_on_event(ps, seen, ev)
        kept = True
        if BYPASSES:
            kept = not bypasses(es, seen, ev)
        a = lo
        beside = pool.expert_in.size
        while True:
            end = min(a + narrowest, hi) if kept else hi
            pool.stamp[0] += 1
            for j in range(a, end):
                pool.pin[stream.ids[j]] = pool.stamp[0]
            for j in range(a, end):
                e = stream.ids[j]
                pool.clock[ACCESS] = j
                found = pool.slot_of[e] >= 0
                if kept:
                    on_access(es, seen, e, j, found)
                else:
                    n[BYPASSED] += 1
                    n[BYPASSED_HITS] += found
                if found:
                    out.hit[j] = 1
                    n[HITS] += 1
                    tally.layer_hits[phase, layer] += 1
                    if tally.fresh[e]:
                        tally.fresh[e] = 0
                        n[USED] += 1
                        out.waits[n[WAITS]] = tally.brought_by[e]
                        out.wait_slot[n[WAITS]] = pool.slot_of[e]
                        n[WAITS] += 1
                else:
                    out.hit[j] = 0
                    if not kept:
                        copy_beside(tally, out, e, beside)
                        out.slot[j] = beside
                        beside += 1
                    elif not take_slot(es, pool, seen, tally, out, e, j, DEMAND, write_back):
                        if n[ERROR] == 0:
                            n[ERROR] = NO_VICTIM
                        return i
                if found or kept:
                    out.slot[j] = pool.slot_of[e]
                tally.layer_accesses[phase, layer] += 1
            if PREFETCHES and kept and end == hi:
                asked = prefetch(ps, seen, event_of(stream, i, lo, hi), out.wanted)
                if asked > most:
                    n[ERROR] = BAD_PREFETCH
                    n[CULPRIT] = asked
                    return i
                # Neither the event's experts nor any of those asked for may leave for another.
                for j in range(asked):
                    e = np.int64(out.wanted[j])
                    if e < 0 or e >= pool.slot_of.size:
                        n[ERROR] = BAD_PREFETCH
                        n[CULPRIT] = e
                        return i
                    if pool.slot_of[e] >= 0:
                        pool.pin[e] = pool.stamp[0]
                for j in range(asked):
                    e = np.int64(out.wanted[j])
                    if pool.slot_of[e] >= 0:
                        continue
                    pool.pin[e] = pool.stamp[0]
                    if not take_slot(es, pool, seen, tally, out, e, hi - 1, PREFETCH, write_back):
                        pool.pin[e] = 0
                        if n[ERROR]:
                            return i
                        continue
                    n[ISSUED] += 1
                    tally.fresh[e] = 1
                    tally.brought_by[e] = n[BASE] + n[COPIES] - 1
            w = n[WAVES]
            out.wave_event[w] = i
            out.wave_hi[w] = end
            out.wave_copy_hi[w] = n[COPIES]
            out.wave_wait_hi[w] = n[WAITS]
            n[WAVES] = w + 1
            a = end
            if a == hi:
                break
    return last


def new_pool(n_layers: int, n_experts: int, capacity: np.ndarray, pool_of: np.ndarray) -> Pool:
    """An empty pool; ``capacity`` int64 [pools], ``pool_of`` int32 [experts]."""
    total = n_layers * n_experts
    lo = np.concatenate(([0], np.cumsum(capacity))).astype(np.int64)
    return Pool(
        np.full(total, -1, np.int32),
        np.full(int(lo[-1]), -1, np.int32),
        np.zeros(total, np.int64),
        np.zeros(1, np.int64),
        np.zeros(4, np.int64),
        lo,
        np.zeros(len(capacity), np.int64),
        pool_of.astype(np.int32),
        np.repeat(np.arange(n_layers, dtype=np.int32), n_experts),
        n_layers,
        n_experts,
    )


def new_tally(n_layers: int, n_experts: int) -> Tally:
    """Counters at zero."""
    total = n_layers * n_experts
    return Tally(
        np.zeros(13, np.int64),
        np.zeros((2, n_layers), np.int64),
        np.zeros((2, n_layers), np.int64),
        np.zeros(total, np.uint8),
        np.zeros(total, np.int64),
    )
