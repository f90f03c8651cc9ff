"""One access at a time and no clock: what plain cache simulators do, for the same policies.

`replay` is a template like `uvmsim.memory.pool.plan_events`: `uvmsim.engine.bind.bind_access` gives
it a policy's hooks. The constants say what the hooks look at, so that what nobody reads is not kept:
``READS_CLOCK``, ``READS_SLOTS`` (who is in which slot), ``SEES_EVENTS``.
"""

# mypy: ignore-errors
# ruff: noqa: F821
from __future__ import annotations

import numpy as np

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
            on_event(es, pool, Event(np.int64(0), np.int64(j), np.int64(1), ids[j : j + 1], ones, no_scores))
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


def new_access_pool(n: int, capacity: int) -> Pool:
    """An empty pool of ``capacity`` slots for ids below ``n``.

    No expert is ever in use while a victim is sought and there is one pool and one layer, so these
    arrays are a single element seen n times (stride 0): no memory, and always in the first cache.
    """
    nothing = np.broadcast_to(np.zeros(1, np.int32), n)
    return Pool(
        np.full(n, -1, np.int32),
        np.full(capacity, -1, np.int32),
        np.broadcast_to(np.zeros(1, np.int64), n),
        np.ones(1, np.int64),
        np.zeros(4, np.int64),
        np.array([0, capacity], np.int64),
        np.zeros(1, np.int64),
        nothing,
        nothing,
        1,
        n,
    )
