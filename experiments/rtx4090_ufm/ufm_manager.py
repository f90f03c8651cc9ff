"""UFM's list of modules, replayed: why its pool overshoots its own target.

A pool of slots cannot overshoot, so this is no mechanism of the simulator. It is the shortest list
discipline that does what the report saw (its source was not at hand when this was written): every
module enters the list when it is registered, room is made `TRIES` times before a load, and making
room takes the oldest entry off the list and gives up where that one is not in device memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

TRIES = 2
"""Inferred from the peak at 144 experts: 1 would give 144 experts resident, 3 would give 128."""


class Replay(NamedTuple):
    hits: list[bool]
    """An entry an access."""
    peak: int
    """Most experts in device memory at once."""
    resident: set[int]
    """Experts in device memory at the end."""


def replay(accesses: Sequence[int], n_experts: int, target: int, tries: int = TRIES) -> Replay:
    """``accesses``: expert ids in the order of the calls; ``target``: experts the pool may hold."""
    listed = OrderedDict.fromkeys(range(n_experts))
    resident: set[int] = set()
    hits, peak = [], 0
    for e in accesses:
        hits.append(e in resident)
        if e not in resident:
            for _ in range(tries):
                _make_room(listed, resident, target)
            resident.add(e)
            peak = max(peak, len(resident))
        listed[e] = None
        listed.move_to_end(e)
    return Replay(hits, peak, resident)


def _make_room(listed: OrderedDict[int, None], resident: set[int], target: int) -> None:
    while len(resident) + 1 > target and listed:
        victim, _ = listed.popitem(last=False)
        if victim not in resident:
            return  # the fault: a stale entry ends the attempt, and the load goes on regardless
        resident.discard(victim)
