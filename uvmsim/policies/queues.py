"""Several counted queues a pool over one pair of link arrays: the parts most policies are made of.

An expert is in one queue or in none; a queue may hold experts that are not resident (a ghost queue).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Context, pool_of
from uvmsim.policies.lists import (
    Lists,
    end_of,
    inner,
    new_lists,
    oldest_free,
    push_tail,
    to_tail,
    unlink,
)

NOWHERE = 255


class Queues(NamedTuple):
    """links: see `Lists`; where: uint8 [n_total], queue an expert is in; size: int64 [kinds, pools]."""

    links: Lists
    where: np.ndarray
    size: np.ndarray


def new_queues(ctx: Context, kinds: int) -> Queues:
    """Empty queues 0 .. kinds - 1 for every pool."""
    return Queues(
        new_lists(ctx, kinds),
        np.full(ctx.n_total, NOWHERE, np.uint8),
        np.zeros((kinds, len(ctx.capacity)), np.int64),
    )


@inner
def put(q, pool, kind, e):
    """Make ``e`` the newest of queue ``kind`` of its pool, out of whichever it is in."""
    p = pool_of(pool, e)
    old = q.where[e]
    if old == kind:
        to_tail(q.links, end_of(pool, kind, p), e)
        return
    if old != NOWHERE:
        unlink(q.links, e)
        q.size[old, p] -= 1
    q.where[e] = kind
    q.size[kind, p] += 1
    push_tail(q.links, end_of(pool, kind, p), e)


@inner
def drop(q, pool, e):
    """Take ``e`` out of its queue, if it is in one."""
    old = q.where[e]
    if old != NOWHERE:
        unlink(q.links, e)
        q.size[old, pool_of(pool, e)] -= 1
        q.where[e] = NOWHERE


@inner
def head(q, pool, kind, p):
    """The oldest of queue ``kind``, which must not be empty."""
    return q.links.next[end_of(pool, kind, p)]


@inner
def first_free(q, pool, kind, p):
    """The oldest of queue ``kind`` that is not in use by the current event; -1 if there is none."""
    return oldest_free(q.links, pool, end_of(pool, kind, p))
