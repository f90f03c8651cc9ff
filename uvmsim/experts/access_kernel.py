"""One access at a time and no clock: what plain cache simulators do, for the same policies.

`replay` is a template like `uvmsim.experts.pool.plan_events`. What no hook reads (`Policy.reads`) is
not kept.
"""

from __future__ import annotations

import numpy as np

from uvmsim.core.read_only import read_only
from uvmsim.experts.hooks import (
    READS_CLOCK,
    READS_SLOTS,
    SEES_EVENTS,
    eviction_on_event,
    on_access,
    on_evict,
    on_insert,
    victim,
)
from uvmsim.experts.pool import seen_by_hooks
from uvmsim.policies.base import ACCESS, EVENT, STEP, Event, Pool

MISSES, CULPRIT = 0, 1


def replay(ids, pool, es, ones, no_scores, no_guesses, no_ranks, one_choice, place, out):
    """Serve ``ids``, each an event and a forward pass of its own; a miss evicts, then inserts.

    ``ids`` int or uint [accesses]; ``no_*``: nothing, of an event's types; ``one_choice`` int32
    [1, 1] and ``place`` int32 [1]: scratch; ``out`` int64 [2] gets the misses and, at an error, the
    bad victim. Returns the number of accesses served: all of them, unless a victim was bad.
    """
    misses = 0
    used = 0
    capacity = pool.lo[1]
    seen = seen_by_hooks(pool)
    for j in range(len(ids)):
        e = ids[j]
        if READS_CLOCK:
            pool.clock[EVENT] = j
            pool.clock[STEP] = j
            pool.clock[ACCESS] = j
        if SEES_EVENTS:
            now = read_only(ids[j : j + 1])
            one_choice[0, 0] = e
            place[0] = j
            eviction_on_event(
                es, seen,
                Event(
                    np.int64(0), np.int64(j), np.int64(1), now, ones, no_scores,
                    read_only(one_choice), ones, read_only(place), no_guesses, no_ranks,
                ),
            )  # fmt: skip
        if pool.slot_of[e] >= 0:
            on_access(es, seen, e, j, True)
            continue
        misses += 1
        on_access(es, seen, e, j, False)
        if used < capacity:
            slot = used
            used += 1
            pool.used[0] = used
        else:
            v = victim(es, seen, 0)
            if v < 0 or v >= pool.slot_of.size or pool.slot_of[v] < 0:
                out[MISSES] = misses
                out[CULPRIT] = v
                return j
            slot = int(pool.slot_of[v])
            on_evict(es, seen, v)
            pool.slot_of[v] = -1
        if READS_SLOTS:
            pool.slot_of[e] = slot
            pool.expert_in[slot] = e
        else:
            pool.slot_of[e] = 0
        on_insert(es, seen, e, j)
    out[MISSES] = misses
    return len(ids)


def never_in_use(pool, e):
    """`uvmsim.policies.base.in_use` here: the one expert in use is missing when a victim is sought."""
    return False


def only_pool(pool, e):
    """`uvmsim.policies.base.pool_of` here."""
    return 0


def new_access_pool(n: int, capacity: int, with_slots: bool, with_clock: bool) -> Pool:
    """An empty pool of ``capacity`` slots for ids below ``n``. Where nobody reads slots, ``slot_of``
    only says who is resident (0 or -1) and takes a byte, which keeps it in the caches.

    There is one pool and one layer, and nobody is in use while a victim is sought: one element
    stands for all ids.
    """
    return Pool(
        np.full(n, -1, np.int32 if with_slots else np.int8),
        np.full(capacity if with_slots else 0, -1, np.int32),
        np.broadcast_to(np.zeros(1, np.int64), n),
        np.ones(1, np.int64),
        np.zeros(4 if with_clock else 0, np.int64),
        np.array([0, capacity], np.int64),
        np.zeros(1, np.int64),
        np.broadcast_to(np.zeros(1, np.int32), n),
        np.broadcast_to(np.zeros(1, np.int32), n),
        1,
        n,
    )
