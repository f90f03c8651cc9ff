"""The expert pool's state transitions: one kernel, written once, for every policy and engine.

`plan_events` is a template: `uvmsim.core.bind` puts a policy's functions in the place of those of
`uvmsim.experts.hooks` and compiles the result. Hooks are given the pool to read, not to write.

Rules of an event: hits are judged against the pool before the event; experts are touched in order;
none of the event's experts may be evicted for another; an event wider than the pool is served in
waves of as many experts as there are slots, each wave an event of its own. An event that the policy
bypasses reads what is resident, copies the rest to a buffer beside the pool, and changes nothing. What
becomes of a single miss the policy may choose: `uvmsim.policies.base.Eviction.on_miss`,
`uvmsim.experts.misses`; a wave then also ends before a miss for which no scratch place is left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.core.read_only import read_only
from uvmsim.experts.hooks import (
    BYPASSES,
    CHOOSES,
    PREFETCHES,
    SEES_EVENTS,
    SPARE,
    SPLITS,
    bypasses,
    eviction_on_event,
    on_access,
    on_evict,
    on_insert,
    prefetch,
    prefetch_on_event,
    victim,
)
from uvmsim.experts.misses import (
    LEFT,
    begin_wave,
    chosen,
    leave_place,
    rested,
    split_wave,
    take_place,
)
from uvmsim.policies.base import (
    ACCESS,
    CPU,
    CPU_BEHIND,
    EVENT,
    INSERT,
    LAYER,
    OFFER,
    SCRATCH,
    STEP,
    Event,
    Pool,
)
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK

HITS, EVICTIONS, ISSUED, USED, WASTED, BASE, WAVES, COPIES, WAITS, ERROR, CULPRIT = range(11)
"""Places in ``Tally.n``; BASE is the run's number of the first copy of the block being written."""
BYPASSED, BYPASSED_HITS = 11, 12
"""More places: accesses of bypassed events, and those among them that were resident."""
EVENTS, STEPS, ACCESSES = 13, 14, 15
"""More places: what came before the first event, step and access of a stream that holds only a part of
the run; hooks are told numbers of the run."""
LIMIT = 16
"""One more place: slots that a single pool may use for now, 0: all it has."""

BAD_VICTIM, NO_VICTIM, BAD_PREFETCH, BAD_ACTION, NO_SCRATCH = 1, 2, 3, 4, 5

AHEAD, BEHIND = 1, 2
"""What `Tally.fresh` holds of experts not used since they were fetched: by a prefetcher, or behind
a miss that the CPU computed."""


class Tally(NamedTuple):
    """Counters and what is known of copies on their way."""

    n: np.ndarray
    """int64 [17]: see the places above; ERROR is 0 while all is well."""
    layer_hits: np.ndarray
    """int64 [2, layers]"""
    layer_accesses: np.ndarray
    fresh: np.ndarray
    """uint8 [experts]: `AHEAD` where prefetched, `BEHIND` where copied in behind, and not used yet."""
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


def leaving(es, pool, seen, tally, p):
    """Whom the policy lets go of pool ``p``; -1 where it is nobody, or nobody who may leave: then
    ``tally.n[ERROR]`` says so."""
    v = np.int64(victim(es, seen, p))
    if v >= 0 and (
        v >= pool.slot_of.size
        or pool.slot_of[v] < 0
        or pool.pin[v] == pool.stamp[0]
        or pool.pool_of[v] != p
    ):
        tally.n[ERROR] = BAD_VICTIM
        tally.n[CULPRIT] = v
        return np.int64(-1)
    return v


def let_go(es, seen, tally, v):
    """Tell the policy and the counters that ``v`` leaves; returns the copy that still brings it, -1 if
    none."""
    on_evict(es, seen, v)
    tally.n[EVICTIONS] += 1
    if not tally.fresh[v]:
        return np.int64(-1)
    tally.n[WASTED] += tally.fresh[v] == AHEAD
    tally.fresh[v] = 0
    return np.int64(tally.brought_by[v])


def take_slot(es, pool, seen, tally, out, e, i, kind, write_back):
    """Give expert ``e`` a slot, evicting if the pool is full, and queue its copy.

    Returns False where no expert may leave. The copy waits for whatever still moves through the
    slot: the victim's write-back, or its prefetch that has not arrived.
    """
    p = pool.pool_of[e]
    n = tally.n
    after = np.int64(-1)
    left = np.int64(-1)
    room = pool.lo[p + 1] - pool.lo[p]
    if n[LIMIT] > 0:
        room = min(room, n[LIMIT])
    if pool.used[p] < room:
        slot = pool.lo[p] + pool.used[p]
        pool.used[p] += 1
    else:
        v = leaving(es, pool, seen, tally, p)
        if v < 0:
            return False
        slot = np.int64(pool.slot_of[v])
        left = v
        after = let_go(es, seen, tally, v)
        pool.slot_of[v] = -1
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


def shrink(es, pool, seen, tally):
    """Let experts leave a single pool until it uses no more slots than it may; who is in the last
    slot moves to the one that is free. Returns False where no expert may leave."""
    n = tally.n
    pool.stamp[0] += 1  # nobody is in use
    while pool.used[0] > n[LIMIT]:
        v = leaving(es, pool, seen, tally, np.int64(0))
        if v < 0:
            if n[ERROR] == 0:
                n[ERROR] = NO_VICTIM
            return False
        let_go(es, seen, tally, v)
        slot = np.int64(pool.slot_of[v])
        pool.slot_of[v] = -1
        pool.used[0] -= 1
        last = pool.lo[0] + pool.used[0]
        mover = pool.expert_in[last]
        pool.expert_in[last] = -1
        if slot != last:
            pool.expert_in[slot] = mover
            pool.slot_of[mover] = slot
    return True


def enter_slot(es, pool, seen, tally, out, misses, e, i, kind, place):
    """`take_slot` where there are scratch places: ``e`` enters the slot that its pool has more than it
    may fill, then the victim leaves. ``place``: where ``e`` is already, which makes of the victim's
    place a scratch place; -1: it takes the victim's, or a free one, and its copy is queued.

    Returns False where no expert may leave.
    """
    p = pool.pool_of[e]
    n = tally.n
    slot = pool.lo[p] + pool.used[p]
    if place < 0 and slot + 1 == pool.lo[p + 1] and all_in_use(pool, p):
        return False
    pool.used[p] += 1
    pool.slot_of[e] = slot
    pool.expert_in[slot] = e
    on_insert(es, seen, e, i)
    after = np.int64(-1)
    left = np.int64(-1)
    if pool.used[p] == pool.lo[p + 1] - pool.lo[p]:
        v = leaving(es, pool, seen, tally, p)
        if n[ERROR]:
            return False
        if v < 0:
            on_evict(es, seen, e)
            pool.used[p] -= 1
            pool.slot_of[e] = -1
            pool.expert_in[slot] = -1
            return False
        after = let_go(es, seen, tally, v)
        hole = np.int64(pool.slot_of[v])
        pool.slot_of[v] = -1
        pool.expert_in[slot] = -1
        pool.used[p] -= 1
        its = place
        if hole != slot:
            its = np.int64(misses.place[hole])
            pool.slot_of[e] = hole
            pool.expert_in[hole] = e
        if place >= 0:
            leave_place(misses, its, after)
            misses.place[hole] = place
            return True
        place = its
        left = v
        misses.place[hole] = place
    elif place >= 0:
        misses.place[slot] = place
        return True
    else:
        place = np.int64(take_place(misses))
        after = misses.after[place]
        misses.after[place] = -1
        misses.place[slot] = place
    queue_copy(tally, out, e, kind, after, place, left)
    return True


def all_in_use(pool, p):
    """Nobody of the pool may leave now."""
    for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
        if pool.pin[pool.expert_in[slot]] != pool.stamp[0]:
            return False
    return True


def queue_copy(tally, out, e, kind, after, place, left):
    """Queue a copy of ``e`` to a place in device memory that ``left`` lost for it."""
    c = tally.n[COPIES]
    out.copy_expert[c] = e
    out.copy_kind[c] = kind
    out.copy_after[c] = after
    out.copy_slot[c] = place
    out.copy_victim[c] = left
    tally.n[COPIES] = c + 1


def get_slot(es, pool, seen, tally, out, misses, e, i, kind, write_back):
    """A slot for ``e`` by the rules of the pool; False where no expert may leave."""
    if SPARE:
        return enter_slot(es, pool, seen, tally, out, misses, e, i, kind, np.int64(-1))
    return take_slot(es, pool, seen, tally, out, e, i, kind, write_back)


def place_of(pool, misses, e):
    """Where the bytes of a resident expert lie."""
    slot = pool.slot_of[e]
    if SPARE:
        return misses.place[slot]
    return slot


def to_scratch(tally, out, misses, e):
    """Queue the copy of ``e`` to a scratch place, which is returned."""
    place = np.int64(take_place(misses))
    queue_copy(tally, out, e, DEMAND, misses.after[place], place, np.int64(-1))
    misses.after[place] = -1
    misses.n[LEFT] -= 1
    return place


def take_offers(es, pool, seen, tally, out, misses, stream, a, end):
    """Offered experts of a wave that is computed enter, one after the other, and the victims leave."""
    pool.stamp[0] += 1  # nobody is in use any more
    for j in range(a, end):
        if misses.action[j] != OFFER:
            continue
        e = stream.ids[j]
        pool.clock[ACCESS] = j
        on_access(es, seen, e, j, False)
        place = np.int64(out.slot[j])
        if not enter_slot(es, pool, seen, tally, out, misses, e, j, DEMAND, place):
            if tally.n[ERROR] == 0:
                tally.n[ERROR] = NO_VICTIM
            return False
    for j in range(a, end):
        pool.pin[stream.ids[j]] = pool.stamp[0]
    return True


def event_of(stream, n, i, lo, hi):
    """What hooks see of event ``i``; ``n``: `Tally.n`."""
    scores = stream.scores[:0]
    if len(stream.scores):
        scores = stream.scores[stream.row_lo[i] : stream.row_lo[i + 1]]
    guesses, ranks = stream.row_guesses[:0], stream.row_guess_scores[:0]
    if len(stream.row_guesses):
        guesses = stream.row_guesses[stream.row_lo[i] : stream.row_lo[i + 1]]
        ranks = stream.row_guess_scores[stream.row_lo[i] : stream.row_lo[i + 1]]
    return Event(
        np.int64(stream.event_layer[i]),
        n[STEPS] + stream.event_step[i],
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


def plan_events(first, last, stream, pool, tally, es, ps, out, write_back, most, misses):
    """Serve events ``first`` .. ``last - 1``; returns the number of the first one not served.

    Stops early where ``out`` might not hold another event, or at an error (see ``tally.n``).
    ``most`` is the most experts one prefetch call may ask for.
    """
    n = tally.n
    seen = seen_by_hooks(pool)
    narrowest = pool.lo[1] - pool.lo[0]
    if n[LIMIT] > 0:
        narrowest = min(narrowest, n[LIMIT])
        if not shrink(es, pool, seen, tally):
            return first
    for p in range(len(pool.used)):
        narrowest = min(narrowest, pool.lo[p + 1] - pool.lo[p])
    if SPARE:
        narrowest -= 1
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
        pool.clock[EVENT] = n[EVENTS] + i
        pool.clock[STEP] = n[STEPS] + step
        pool.clock[LAYER] = layer
        pool.clock[ACCESS] = n[ACCESSES] + lo
        if SEES_EVENTS:
            ev = event_of(stream, n, i, lo, hi)
            eviction_on_event(es, seen, ev)
            prefetch_on_event(ps, seen, ev)
        kept = True
        if BYPASSES:
            kept = not bypasses(es, seen, ev)
        a = lo
        beside = len(misses.free)
        while True:
            end = min(a + narrowest, hi) if kept else hi
            pool.stamp[0] += 1
            for j in range(a, end):
                pool.pin[stream.ids[j]] = pool.stamp[0]
            if SPARE:
                begin_wave(misses)
            if SPLITS and kept:
                split_wave(stream, pool.slot_of, misses, i, layer, a, end)
            offered = False
            for j in range(a, end):
                e = stream.ids[j]
                pool.clock[ACCESS] = n[ACCESSES] + j
                found = pool.slot_of[e] >= 0
                action = np.int64(INSERT)
                if CHOOSES and kept and not found:
                    if (
                        SPARE
                        and misses.n[LEFT] == 0
                        and not (SPLITS and misses.action[j] != INSERT)
                    ):
                        end = j
                        break
                    action = chosen(es, seen, misses, e, j)
                    if action < 0 or action >= len(misses.by):
                        n[ERROR] = BAD_ACTION
                        n[CULPRIT] = action
                        return i
                    misses.action[j] = action
                    misses.by[action] += 1
                if action == OFFER:
                    offered = True  # touched when it enters
                elif kept:
                    on_access(es, seen, e, n[ACCESSES] + j, found)
                else:
                    n[BYPASSED] += 1
                    n[BYPASSED_HITS] += found
                if found:
                    out.hit[j] = 1
                    n[HITS] += 1
                    tally.layer_hits[phase, layer] += 1
                    if tally.fresh[e]:
                        n[USED] += tally.fresh[e] == AHEAD
                        tally.fresh[e] = 0
                        out.waits[n[WAITS]] = tally.brought_by[e]
                        out.wait_slot[n[WAITS]] = place_of(pool, misses, e)
                        n[WAITS] += 1
                    out.slot[j] = place_of(pool, misses, e)
                else:
                    out.hit[j] = 0
                    if not kept:
                        queue_copy(tally, out, e, DEMAND, np.int64(-1), beside, np.int64(-1))
                        out.slot[j] = beside
                        beside += 1
                    elif action in (OFFER, SCRATCH):
                        if not SPARE:
                            n[ERROR] = NO_SCRATCH
                            return i
                        place = to_scratch(tally, out, misses, e)
                        out.slot[j] = place
                        if action == SCRATCH:
                            leave_place(misses, place, np.int64(-1))
                    elif action == CPU:
                        out.slot[j] = -1
                    else:
                        kind = DEMAND if action == INSERT else PREFETCH
                        if not get_slot(
                            es, pool, seen, tally, out, misses, e, n[ACCESSES] + j, kind, write_back
                        ):
                            if n[ERROR] == 0:
                                n[ERROR] = NO_VICTIM
                            return i
                        out.slot[j] = place_of(pool, misses, e)
                        if action == CPU_BEHIND:
                            out.slot[j] = -1
                            tally.fresh[e] = BEHIND
                            tally.brought_by[e] = n[BASE] + n[COPIES] - 1
                tally.layer_accesses[phase, layer] += 1
            if SPARE and offered:
                done = take_offers(es, pool, seen, tally, out, misses, stream, a, end)
                if not done:
                    return i
            if PREFETCHES and kept and end == hi:
                asked = prefetch(ps, seen, event_of(stream, n, i, lo, hi), out.wanted)
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
                    if not get_slot(
                        es,
                        pool,
                        seen,
                        tally,
                        out,
                        misses,
                        e,
                        n[ACCESSES] + hi - 1,
                        PREFETCH,
                        write_back,
                    ):
                        pool.pin[e] = 0
                        if n[ERROR]:
                            return i
                        continue
                    n[ISSUED] += 1
                    tally.fresh[e] = AHEAD
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
        if SPLITS:
            rested(misses.split, i)
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
        np.zeros(17, np.int64),
        np.zeros((2, n_layers), np.int64),
        np.zeros((2, n_layers), np.int64),
        np.zeros(total, np.uint8),
        np.zeros(total, np.int64),
    )
