"""Which way faults go from block to block, for the programs that reach into the next one."""

LAST, WAY, RUN = 0, 1, 2
"""Places in a walk, int64: block of the last fault (-1: none), +1 or -1, moves that way in a row."""


def same_way(walk, block, need, widest):
    """Follow a fault in ``block``: +1 or -1 where it is the ``need``-th move in a row up or down, none
    wider than ``widest`` blocks (0: any width); 0 else, and where the block is still the same."""
    step = block - walk[LAST]
    if step == 0:
        return 0
    way = 1 if step > 0 else -1
    if walk[LAST] < 0 or (widest > 0 and abs(step) > widest):
        way = 0
    walk[RUN] = walk[RUN] + 1 if way == walk[WAY] else 1
    walk[WAY], walk[LAST] = way, block
    return way if walk[RUN] >= need else 0
