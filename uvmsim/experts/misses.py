"""What becomes of misses: scratch places, and a wave's misses split between the link and the CPU.

A *place* is where an expert's bytes lie in device memory. There are as many as all pools may fill, and
some more, the scratch places; which of them are scratch changes all the time. A pool has one slot more
than it may fill: whoever comes enters it, then the policy's victim leaves, which may be the newcomer
itself. So a policy says who stays among the residents and a layer's misses without a word of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.experts.hooks import OFFERS, SPLITS, on_miss
from uvmsim.policies.base import ACTIONS, CPU, CPU_BEHIND, INSERT, OFFER

FREE, PENDING, LEFT, MOST = 0, 1, 2, 3
"""Places in ``Misses.n``: free places, places that are free after this wave, scratch places that this
wave has left, scratch places."""


class Split(NamedTuple):
    """What the CPU and the link take for a miss, ns; all empty where nothing is split."""

    copy_ns: np.ndarray
    """int64 [layers]: one expert over the link."""
    cpu_ns: np.ndarray
    """int64 [layers, tokens + 1]: one expert with so many tokens on the CPU."""
    sync_ns: np.ndarray
    """int64 [1]: to the CPU and back, once a wave that uses it."""
    idle_ns: np.ndarray
    """int64 [events]: how long the link rests before the next event asks, at least; empty where what
    the CPU computes is not copied in behind."""
    queued_ns: np.ndarray
    """int64 [1]: copies behind that have not had time to run: what the link still owes. A wave that is
    cut short for want of scratch places has counted those that it then did not copy."""
    order: np.ndarray
    """int64 [widest]: room for sorting."""


class Misses(NamedTuple):
    """Where experts lie, and what became of each miss."""

    action: np.ndarray
    """uint8 [A]: see `uvmsim.policies.base.ACTIONS`; `INSERT` for hits too."""
    by: np.ndarray
    """int64 [5]: misses by action."""
    place: np.ndarray
    """int32 [slots]: place of a slot's expert."""
    free: np.ndarray
    """int32 [places]: the first ``n[FREE]`` are free."""
    pending: np.ndarray
    """int32 [scratch]: the first ``n[PENDING]`` are in use by this wave and free after it."""
    after: np.ndarray
    """int64 [places]: copy that must be done before the next into a free place, -1 if none."""
    n: np.ndarray
    """int64 [4]"""
    split: Split


def no_split() -> Split:
    """Nothing is split."""
    none = np.zeros(0, np.int64)
    return Split(none, np.zeros((0, 0), np.int64), none, none, none, none)


def new_misses(accesses: int, slots: int, places: int, scratch: int, split: Split) -> Misses:
    """All places free. ``slots`` counts those of all pools, the extra one of each included."""
    made = Misses(
        np.zeros(accesses, np.uint8), np.zeros(len(ACTIONS), np.int64), np.zeros(slots, np.int32),
        np.zeros(places, np.int32), np.zeros(scratch, np.int32), np.zeros(places, np.int64),
        np.zeros(4, np.int64), split,
    )  # fmt: skip
    clear(made)
    return made


def clear(m: Misses) -> None:
    """The pools were emptied."""
    places = len(m.free)
    m.free[:] = np.arange(places)[::-1]  # the lowest number is taken first
    m.after[:] = -1
    m.n[FREE], m.n[PENDING], m.n[MOST] = places, 0, len(m.pending)
    m.n[LEFT] = m.n[MOST]
    m.split.queued_ns[:] = 0


def begin_wave(m):
    """What the wave before read may be overwritten now."""
    for k in range(m.n[PENDING]):
        m.free[m.n[FREE]] = m.pending[k]
        m.n[FREE] += 1
    m.n[PENDING] = 0
    m.n[LEFT] = m.n[MOST]


def take_place(m):
    """A free place."""
    m.n[FREE] -= 1
    return m.free[m.n[FREE]]


def leave_place(m, place, after):
    """A place is free once the wave is done; ``after``: the copy that still fills it, or -1."""
    m.pending[m.n[PENDING]] = place
    m.n[PENDING] += 1
    m.after[place] = after


def chosen(es, seen, m, e, j):
    """The action for a miss: the CPU's share, or what the policy says."""
    action = np.int64(m.action[j]) if SPLITS else np.int64(INSERT)
    if action == INSERT:
        action = np.int64(on_miss(es, seen, e, j))
        if OFFERS and action == INSERT:
            action = np.int64(OFFER)
    return action


def split_wave(stream, slot_of, m, event, layer, a, end):
    """Give the CPU its share of the misses among accesses ``a`` .. ``end - 1``: so many that the later
    of CPU and link is done first, of equals the fewer. It gets those of the fewest tokens, of equals
    those touched last. Where the share is copied in behind, the link first has to bring what it still
    owes from before (``queued_ns``), unless it brings nothing for this wave; `copy_behind` says which
    of the share are copied."""
    s = m.split
    n = 0
    for j in range(a, end):
        m.action[j] = INSERT
        if slot_of[stream.ids[j]] >= 0:
            continue
        k = n
        while k > 0 and stream.counts[s.order[k - 1]] >= stream.counts[j]:
            s.order[k] = s.order[k - 1]
            k -= 1
        s.order[k] = j
        n += 1
    if n == 0:
        return
    copy, owed = s.copy_ns[layer], s.queued_ns[0]
    best, least = 0, owed + n * copy
    cpu = s.sync_ns[0]
    for k in range(n):
        cpu += s.cpu_ns[layer, stream.counts[s.order[k]]]
        left = n - 1 - k
        link = owed + left * copy if left else np.int64(0)
        if max(cpu, link) < least:
            best, least = k + 1, max(cpu, link)
    for k in range(best):
        m.action[s.order[k]] = CPU
    if len(s.idle_ns) > 0:
        last = end == stream.event_lo[event + 1]
        idle = s.idle_ns[event] if last else np.int64(0)
        copy_behind(m, best, n - best, layer, max(np.int64(0), least - (n - best) * copy), idle)


def copy_behind(m, share, demanded, layer, spare, idle):
    """Which of the CPU's ``share`` are copied in behind: those of the most tokens, of equals those
    touched first, as long as the link has brought them by the time the next wave asks. It has
    ``spare`` ns while this wave is served, beside the ``demanded`` copies, and ``idle`` after it.
    Where nothing is demanded the last copy need only have begun: else a link slower than the CPU would
    never bring anything, and nothing would ever be hit."""
    s = m.split
    copy = s.copy_ns[layer]
    room = spare + idle
    if demanded == 0:
        room += copy - 1
    for k in range(share - 1, -1, -1):
        if s.queued_ns[0] + copy > room:
            break
        s.queued_ns[0] += copy
        m.action[s.order[k]] = CPU_BEHIND
    s.queued_ns[0] = max(np.int64(0), s.queued_ns[0] - spare)


def rested(s, event):
    """The link had its rest after an event: what was queued behind has gone on."""
    if len(s.idle_ns) > 0:
        s.queued_ns[0] = max(np.int64(0), s.queued_ns[0] - s.idle_ns[event])
