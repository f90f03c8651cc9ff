"""A first-in, first-out link as a prefetcher sees it, in bytes and layers, without a clock.

While a layer computes, the link moves `budget` bytes. A layer that misses waits for its copies, which
wait for all that was queued before, so after a miss nothing is queued. A copy for a layer some layers
ahead is in time if all that is queued, with it, takes no longer than these layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Context
from uvmsim.policies.lists import inner


class Link(NamedTuple):
    """queued: float64 [1], bytes; budget: float64 [1], bytes a layer, 0: no limit; size: float64
    [layers], bytes of an expert."""

    queued: np.ndarray
    budget: np.ndarray
    size: np.ndarray


def new_link(ctx: Context, budget: float) -> Link:
    """Nothing queued."""
    return Link(np.zeros(1), np.array([float(budget)]), ctx.expert_bytes.astype(np.float64))


@inner
def pass_event(k, pool, ev):
    """A layer's experts are known; nothing is served yet."""
    k.queued[0] = max(0.0, k.queued[0] - k.budget[0])
    for j in range(len(ev.experts)):
        if pool.slot_of[ev.experts[j]] < 0:
            k.queued[0] = 0.0


@inner
def fits(k, layer, ahead):
    """Whether an expert of a layer that comes in ``ahead`` layers would be there in time."""
    return k.budget[0] == 0 or k.queued[0] + k.size[layer] <= ahead * k.budget[0]


@inner
def queue_copy(k, layer):
    """An expert of a layer is asked for."""
    k.queued[0] += k.size[layer]
