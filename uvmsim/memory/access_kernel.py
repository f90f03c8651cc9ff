"""One access at a time and no clock: what plain cache simulators do, for the same policies.

`replay` is a template like `uvmsim.memory.pool.plan_events`: `uvmsim.engine.bind.bind_access` gives
it a policy's hooks. The constants say what the hooks look at, so that what nobody reads is not kept:
``READS_CLOCK``, ``READS_SLOTS`` (who is in which slot), ``SEES_EVENTS``.
"""

# mypy: ignore-errors
# ruff: noqa: F821
from __future__ import annotations

import numpy as np

from uvmsim.memory.constant import Ones, Zeros
from uvmsim.policies.base import ACCESS, EVENT, STEP, Event, Pool

MISSES, CULPRIT = 0, 1


def replay(ids, pool, es, ones, no_scores, out):
    """Serve ``ids``, each an event and a forward pass of its own; a miss evicts, then inserts.

    ``ids`` int or uint [accesses]; ``out`` int64 [2] gets the misses and, at an error, the bad
    victim. Returns the number of accesses served: all of them, unless a victim was bad.
    """
    misses = 0
    used = 0
    capacity = pool.lo[1]
    for j in range(len(ids)):
        e = ids[j]
        if READS_CLOCK:
            pool.clock[EVENT] = j
            pool.clock[STEP] = j
            pool.clock[ACCESS] = j
        if SEES_EVENTS:
            now = ids[j : j + 1]
            on_event(es, pool, Event(np.int64(0), np.int64(j), np.int64(1), now, ones, no_scores))
        if pool.slot_of[e] >= 0:
            on_access(es, pool, e, j, True)
            continue
        misses += 1
        on_access(es, pool, e, j, False)
        if used < capacity:
            slot = used
            used += 1
            pool.used[0] = used
        else:
            v = victim(es, pool, 0)
            if v < 0 or v >= pool.slot_of.size or pool.slot_of[v] < 0:
                out[MISSES] = misses
                out[CULPRIT] = v
                return j
            slot = np.int64(pool.slot_of[v])
            on_evict(es, pool, v)
            pool.slot_of[v] = -1
        if READS_SLOTS:
            pool.slot_of[e] = slot
            pool.expert_in[slot] = e
        else:
            pool.slot_of[e] = 0
        on_insert(es, pool, e, j)
    out[MISSES] = misses
    return len(ids)


def never_in_use(pool, e):
    """`uvmsim.policies.base.in_use` here: the one expert in use is missing when a victim is sought."""
    return False


def new_access_pool(n: int, capacity: int, with_slots: bool) -> Pool:
    """An empty pool of ``capacity`` slots for ids below ``n``. Where nobody reads slots, ``slot_of``
    only says who is resident (0 or -1) and takes a byte, which keeps it in the caches.

    There is one pool and one layer, and nobody is in use while a victim is sought: constants.
    """
    return Pool(
        np.full(n, -1, np.int32 if with_slots else np.int8),
        np.full(capacity if with_slots else 0, -1, np.int32),
        Zeros(n),
        Ones(1),
        np.zeros(4, np.int64),
        np.array([0, capacity], np.int64),
        np.zeros(1, np.int64),
        Zeros(n),
        Zeros(n),
        1,
        n,
    )
