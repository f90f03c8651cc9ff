"""Caches once more, slow and obvious, one access at a time: ``policy(ids, capacity) -> misses``.

Written from the papers; shares nothing with the code under test.
"""

from __future__ import annotations

from collections import Counter, OrderedDict


def lfru(ids: list[int], capacity: int) -> int:
    """Half the cache is an LRU list; what it pushes out waits by use count (then by age)."""
    room = (capacity + 1) // 2
    privileged: list[int] = []
    rest: list[int] = []  # in the order they were pushed out
    uses: dict[int, int] = {}
    misses = 0
    for x in ids:
        if x in uses:
            uses[x] += 1
            (privileged if x in privileged else rest).remove(x)
        else:
            misses += 1
            if len(uses) == capacity:
                v = min(rest, key=lambda e: uses[e]) if rest else privileged[0]
                (rest if rest else privileged).remove(v)
                del uses[v]
            uses[x] = 1
        privileged.append(x)
        if len(privileged) > room:
            rest.append(privileged.pop(0))
    return misses


def w_tinylfu(ids: list[int], capacity: int) -> int:
    """Window, probation, protected; all counts halved by going through them."""
    n_window = max(capacity // 100, 1)
    n_protected = (capacity - n_window) * 4 // 5
    window: list[int] = []
    probation: list[int] = []
    protected: list[int] = []
    count: Counter[int] = Counter()
    sample = misses = 0
    for x in ids:
        count[x] = min(count[x] + 1, 15)
        sample += 1
        if sample >= 10 * capacity:
            sample //= 2
            for y in count:
                count[y] //= 2
        if x in window:
            window.remove(x)
            window.append(x)
        elif x in probation or x in protected:
            (probation if x in probation else protected).remove(x)
            protected.append(x)
            if len(protected) > n_protected:
                probation.append(protected.pop(0))
        else:
            misses += 1
            if len(window) + len(probation) + len(protected) == capacity:
                main = probation or protected
                keep_window = main and (len(window) < n_window or count[window[0]] > count[main[0]])
                (main if keep_window else window).pop(0)
            window.append(x)
            if len(window) > n_window:
                probation.append(window.pop(0))
    return misses


def lirs(ids: list[int], capacity: int, demote_on_hit: bool = False) -> int:
    """Jiang and Zhang's LIRS; ``demote_on_hit`` adds what libCacheSim does, see the test."""
    n_hir = max(capacity // 100, 1)
    n_lir = capacity - n_hir
    stack: OrderedDict[int, None] = OrderedDict()  # S, bottom first
    queue: OrderedDict[int, None] = OrderedDict()  # Q: resident HIR, oldest first
    ghosts: OrderedDict[int, None] = OrderedDict()
    low: set[int] = set()
    misses = 0

    def prune() -> None:
        while stack and next(iter(stack)) not in low:
            x, _ = stack.popitem(last=False)
            ghosts.pop(x, None)

    def evict() -> None:
        x, _ = queue.popitem(last=False)
        if x in stack:
            ghosts[x] = None

    def demote() -> None:
        x, _ = stack.popitem(last=False)
        low.remove(x)
        if len(queue) == n_hir:
            evict()
        queue[x] = None
        prune()

    for x in ids:
        returning = x in stack
        if returning:
            stack.move_to_end(x)
        if x in low:
            prune()
        elif x in queue and returning:
            del queue[x]
            low.add(x)
            if len(low) > n_lir:
                prune()
                demote()
        elif x in queue:
            queue.move_to_end(x)
            if demote_on_hit and len(low) == n_lir:
                demote()
            stack[x] = None
            prune()
        else:
            misses += 1
            if len(low) + len(queue) == capacity:
                evict()
            ghosts.pop(x, None)
            stack[x] = None
            if returning or len(low) < n_lir:
                low.add(x)
                if len(low) > n_lir:
                    prune()
                    demote()
            else:
                queue[x] = None
            prune()
        while len(stack) > 2 * capacity and ghosts:
            y, _ = ghosts.popitem(last=False)
            del stack[y]
    return misses
