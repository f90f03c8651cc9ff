"""A governor of prefetching: what was asked for, was it of use? Too little, and less is asked for.

A prefetched expert is judged at its layer's next turn: used, or not. Where the share of bytes of use
falls below what is wanted, the least probability rises; above, it falls back, and so it does while
nothing is asked for, so that a trace that becomes predictable is noticed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Context
from uvmsim.policies.lists import inner

MEMORY = 0.98
"""What is left of the counts of used and unused after each judgement."""
STEP, REST = 0.02, 0.0005
"""How far the threshold moves at a judgement, and at an event without one."""
ASKED, USED, UNUSED, THETA, LEAST, WANTED = range(6)


class Governor(NamedTuple):
    """asked: bool [n_total], prefetched and not judged; size: float64 [layers], bytes of an expert;
    at: float64 [6], judgements so far, used and unused bytes, faded, the threshold now, its least
    value, the wanted share (0: the threshold never moves)."""

    asked: np.ndarray
    size: np.ndarray
    at: np.ndarray


def new_governor(ctx: Context, theta: float, useful: float) -> Governor:
    """``theta``: the least threshold; ``useful``: the wanted share of bytes of use, 0: no governor."""
    at = np.array([0.0, 0.0, 0.0, theta, theta, useful])
    return Governor(np.zeros(ctx.n_total, np.bool_), ctx.expert_bytes.astype(np.float64), at)


@inner
def asks_for(g, chance):
    """Whether an expert of this probability is to be fetched."""
    return chance >= g.at[THETA] and chance > 0


@inner
def ask(g, e):
    """Expert ``e`` is prefetched."""
    g.asked[e] = True


@inner
def judge(g, pool, ev):
    """A layer has its turn: what was fetched for it was of use, or was not."""
    at = g.at
    if at[WANTED] == 0:
        return
    first, size = ev.layer * pool.n_experts, g.size[ev.layer]
    used = unused = 0.0
    for j in range(len(ev.experts)):
        if g.asked[ev.experts[j]]:
            g.asked[ev.experts[j]] = False
            used += size
    for e in range(first, first + pool.n_experts):
        if g.asked[e]:
            g.asked[e] = False
            unused += size
    if used + unused == 0:
        at[THETA] = max(at[LEAST], at[THETA] - REST)
        return
    at[ASKED] += 1
    at[USED] = at[USED] * MEMORY + used
    at[UNUSED] = at[UNUSED] * MEMORY + unused
    if at[USED] < at[WANTED] * (at[USED] + at[UNUSED]):
        at[THETA] = min(1.0, at[THETA] + STEP)
    else:
        at[THETA] = max(at[LEAST], at[THETA] - STEP)
