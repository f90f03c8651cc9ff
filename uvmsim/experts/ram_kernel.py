"""Host memory as a cache of experts above a disk: the copies to the device are its accesses.

`serve` is a template like `uvmsim.experts.access_kernel.replay`, but for two things: it goes on from
where it stopped, and it says of each access where its expert lies. Each access is an event of one
token of its own.
"""

from __future__ import annotations

import numpy as np

from traces.jit import compiled
from uvmsim.core.read_only import read_only
from uvmsim.experts.hooks import (
    SEES_EVENTS,
    eviction_on_event,
    on_access,
    on_evict,
    on_insert,
    victim,
)
from uvmsim.experts.pool import seen_by_hooks
from uvmsim.policies.base import ACCESS, EVENT, LAYER, STEP, Event

CULPRIT = 0


def serve(
    ids, first, pool, es, ones, no_scores, no_guesses, no_ranks, one_choice, place, hit, slot, out
):
    """Serve ``ids`` (int32 [accesses]), which are number ``first`` and on. ``hit`` uint8 and ``slot``
    int32 [accesses] are filled; ``out`` int64 [1] gets a bad victim. Returns how many were served."""
    capacity = pool.lo[1]
    seen = seen_by_hooks(pool)
    for j in range(len(ids)):
        e = ids[j]
        i = first + j
        layer = e // pool.n_experts
        pool.clock[EVENT] = i
        pool.clock[STEP] = i
        pool.clock[ACCESS] = i
        pool.clock[LAYER] = layer
        if SEES_EVENTS:
            one_choice[0, 0] = e - layer * pool.n_experts
            place[0] = i
            eviction_on_event(
                es, seen,
                Event(
                    np.int64(layer), np.int64(i), np.int64(1), read_only(ids[j : j + 1]), ones,
                    no_scores, read_only(one_choice), ones, read_only(place), no_guesses, no_ranks,
                ),
            )  # fmt: skip
        if pool.slot_of[e] >= 0:
            hit[j] = 1
            slot[j] = pool.slot_of[e]
            on_access(es, seen, e, i, True)
            continue
        on_access(es, seen, e, i, False)
        if pool.used[0] < capacity:
            at = pool.used[0]
            pool.used[0] += 1
        else:
            v = victim(es, seen, 0)
            if v < 0 or v >= pool.slot_of.size or pool.slot_of[v] < 0:
                out[CULPRIT] = v
                return j
            at = np.int64(pool.slot_of[v])
            on_evict(es, seen, v)
            pool.slot_of[v] = -1
        pool.slot_of[e] = at
        pool.expert_in[at] = e
        slot[j] = at
        on_insert(es, seen, e, i)
    return len(ids)


@compiled(nogil=True)
def reads_of(copy, ids, prefetch, hit, slot, brought, last, of_copy, read_copy, after, base):
    """The reads that copies need: ``copy`` int64 (their numbers), ``ids``, ``prefetch`` uint8, ``hit``,
    ``slot``, one an access. State: ``brought`` int64 [experts], the read that brought an expert, and
    ``last`` int64 [slots, 2], the last demand copy and prefetch out of a slot. Fills ``of_copy``
    [accesses], ``read_copy`` and ``after``; returns how many reads there are, the first being number
    ``base``."""
    n = 0
    for j in range(len(ids)):
        e, s = ids[j], slot[j]
        if not hit[j]:
            read_copy[n] = copy[j]
            after[n, 0] = last[s, 0]
            after[n, 1] = last[s, 1]
            last[s, 0] = -1
            last[s, 1] = -1
            brought[e] = base + n
            n += 1
        of_copy[j] = brought[e]
        last[s, prefetch[j]] = copy[j]
    return n
