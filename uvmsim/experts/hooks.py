"""What the kernels of this package ask a policy. These ask nobody and decide nothing;
`uvmsim.core.bind` puts a policy's own in their place, and sets the switches, so that what a policy does
not use is not compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from uvmsim.policies.base import INSERT, Event, Number, Pool

SEES_EVENTS = False
"""A policy looks at events before they are served."""
BYPASSES = False
"""It may serve events beside the pool."""
PREFETCHES = False
CHOOSES = False
"""Something else than an insertion may become of a miss."""
OFFERS = False
"""`uvmsim.policies.base.Eviction.bypass`."""
SPARE = False
"""There are scratch places, and a slot more in each pool than it may fill."""
SPLITS = False
"""Misses are split between the link and the CPU (`uvmsim.experts.misses`)."""
READS_CLOCK = True
"""`uvmsim.experts.access_kernel`: a hook reads ``pool.clock``."""
READS_SLOTS = True
"""The same for who is in which slot."""


def eviction_on_event(s: Any, pool: Pool, ev: Event) -> None:
    """`uvmsim.policies.base.Policy.on_event` of the eviction policy."""


def prefetch_on_event(s: Any, pool: Pool, ev: Event) -> None:
    """The same of the prefetch policy."""


def bypasses(s: Any, pool: Pool, ev: Event) -> bool:
    """`uvmsim.policies.base.Eviction.bypasses`, and so on."""
    return False


def on_access(s: Any, pool: Pool, e: Number, i: Number, hit: bool) -> None:
    pass


def on_miss(s: Any, pool: Pool, e: Number, i: Number) -> Number:
    return INSERT


def on_insert(s: Any, pool: Pool, e: Number, i: Number) -> None:
    pass


def on_evict(s: Any, pool: Pool, e: Number) -> None:
    pass


def victim(s: Any, pool: Pool, p: Number) -> Number:
    return -1


def prefetch(s: Any, pool: Pool, ev: Event, out: np.ndarray) -> Number:
    return 0
