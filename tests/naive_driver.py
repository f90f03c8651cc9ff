"""The paging driver once more, slow and obvious: sets of pages, lists, dictionaries.

Follows the rules written down in `uvmsim.paging.driver` and shares no code with it. Policies are the
twins of `naive_pages`. A kernel is a dictionary (see `kernel`), a page a number over all blocks.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from naive_pages import Twin, World

PAGES = 512
BIG = 16
BATCH_ENTRIES = 256
OVERTAKING = 4
LOOK_BURST, ENTRY_TENTHS = 2, 34
MIGRATE_ROOM = 16
CPU_PREFERRED, READ_MOSTLY, GPU_PREFERRED, ACCESSED_BY = 1, 2, 4, 8


@dataclass
class Wave:
    touches: list[tuple[int, int]]
    burst: int = 16
    fetched: int = 0
    limit: int = 0
    looks: int = 1


@dataclass
class Kernel:
    waves: list[Wave]
    step: int = 0
    compute: int = 0
    copy_bytes: int = 0
    tail: int = 0


@dataclass
class Machine:
    """Costs in ns and bytes a second."""

    batch: int
    entry: int
    first_touch: int
    evict: int
    copy: int
    h2d: int
    d2h: int
    remote: int
    explicit: int
    duplex: bool
    permille: int
    threshold: int
    service: int = 0
    push: int = 0
    look: int = 0

    def way_in(self, pages: int, operations: int) -> int:
        return operations * self.copy + pages * round(4096 * 10**12 / self.h2d) // 1000

    def way_out(self, pages: int) -> int:
        return self.copy + pages * round(4096 * 10**12 / self.d2h) // 1000 if pages else 0


@dataclass
class Space:
    n_pages: list[int]
    tenant: list[int]
    advice: list[int]
    populated: list[bool]
    n_chunks: int
    boundaries: list[int] = field(default_factory=lambda: [0, 0])

    def __post_init__(self) -> None:
        self.populated = list(self.populated)


class Driver:
    """Memory, counters and clock; ``world`` is what the policies see of it."""

    def __init__(self, space: Space, machine: Machine):
        self.space, self.m = space, machine
        self.world = World(len(space.n_pages), space.n_chunks, space.tenant, space.boundaries)
        self.world.room = MIGRATE_ROOM
        self.free = list(range(space.n_chunks))
        self.chunk_of: dict[int, int] = {}
        self.resident: dict[int, set[int]] = {b: set() for b in range(len(space.n_pages))}
        self.arrival: dict[int, int] = {}
        self.mapped: set[int] = set()
        self.prefetch = self.order = Twin(self.world)
        self.stream = self.handler = self.number = 0
        self.engine_free = {"in": 0, "out": 0}
        self.count: Counter[str] = Counter()
        self.ends: list[int] = []

    # ---- time ----------------------------------------------------------------------------------

    def copy(self, way: str, at: int, ns: int) -> int:
        """Queue a copy at a time; when it is done."""
        engines = [way] if self.m.duplex else ["in", "out"]
        done = max(at, *(self.engine_free[e] for e in engines)) + ns
        for e in engines:
            self.engine_free[e] = done
        return done

    def both_ways(self, out_ns: int, in_ns: int) -> int:
        done = self.handler
        if out_ns:
            done = max(done, self.copy("out", self.handler, out_ns))
        if in_ns:
            done = self.copy("in", done, in_ns)
        return done

    # ---- kernels -------------------------------------------------------------------------------

    def run(self, kernels: list[Kernel], twins) -> list[Counter[str]]:
        """``twins``: step -> (prefetch, order) twins. Returns counters of each step."""
        steps = max((k.step for k in kernels), default=-1) + 1
        counts: list[Counter[str]] = [Counter() for _ in range(steps)]
        for k in kernels:
            self.count = counts[k.step]
            self.prefetch, self.order = twins(k.step)
            self.kernel(k)
        return counts

    def kernel(self, k: Kernel) -> None:
        start = self.stream
        if k.copy_bytes:
            per_1024 = round(1024 * 10**12 / self.m.explicit)
            start = self.copy("in", start, k.copy_bytes * per_1024 // 1024 // 1000)
        self.handler = start
        remote = self.count["remote"]
        for wave in k.waves:
            if self.wave(wave):
                self.handler += k.tail
        remote = self.count["remote"] - remote
        compute = k.compute
        if remote:
            link = remote * round(4096 * 10**12 / self.m.remote) // 1000
            compute = max(compute, link)
        self.stream = max(start + compute, self.handler)
        self.ends.append(self.stream)

    def is_remote(self, block: int) -> bool:
        advice = self.space.advice[block]
        return bool(advice & CPU_PREFERRED or (advice & ACCESSED_BY and block not in self.chunk_of))

    def is_missing(self, page: int) -> bool:
        block, i = divmod(page, PAGES)
        return not self.is_remote(block) and i not in self.resident[block]

    def wave(self, wave: Wave) -> bool:
        any_fault = False
        for look in range(wave.looks):
            waiting = []
            for first, last in wave.touches:
                self.await_blocks(first, last)
                pages = list(range(first, last))
                if look == 0:
                    self.count["remote"] += sum(self.is_remote(p // PAGES) for p in pages)
                pages = self.from_first_missing(pages)
                if pages:
                    waiting.append(pages)
            any_fault = any_fault or bool(waiting)
            stuck = False
            while waiting:
                active = waiting[: wave.limit] if wave.limit else waiting
                tenant = self.batch(active, wave, stuck)
                after = [self.from_first_missing(pages) for pages in waiting]
                stuck = after == waiting
                self.migrations(tenant)
                waiting = [p for p in map(self.from_first_missing, after) if p]
        if any_fault:
            for first, last in wave.touches:
                self.await_blocks(first, last)
        return any_fault

    def await_blocks(self, first: int, last: int) -> None:
        """Pages on their way must arrive before they are used."""
        for block in sorted({p // PAGES for p in range(first, last)}):
            if block in self.arrival:
                self.handler = max(self.handler, self.arrival.pop(block))

    def from_first_missing(self, pages: list[int]) -> list[int]:
        """What a touch still needs; the pages before its first missing one were used."""
        for i, p in enumerate(pages):
            if self.is_missing(p):
                return pages[i:]
        return []

    # ---- a fault batch -------------------------------------------------------------------------

    def batch(self, active: list[list[int]], wave: Wave, stuck: bool) -> int:
        """One batch, of a single entry where the last one helped nobody; whose faults they were."""
        queues = [deque(p for p in pages if self.is_missing(p)) for pages in active]
        self.number += 1
        faults: list[int] = []
        burst = wave.burst
        room = min(wave.fetched or BATCH_ENTRIES, BATCH_ENTRIES)
        if self.m.look:
            burst = min(burst, LOOK_BURST)
            room = max(min(self.m.look, BATCH_ENTRIES) * 10 // ENTRY_TENTHS, 1)
            in_order = self.scattered(queues)
        else:
            in_order = []
            for at in range(0, len(queues), OVERTAKING):
                group = queues[at : at + OVERTAKING]
                first = self.number % len(group)
                in_order += group[first:] + group[:first]
        room = 1 if stuck else room
        while len(faults) < room and any(queues):
            for q in in_order:
                for _ in range(burst):
                    if q and len(faults) < room:
                        faults.append(q.popleft())
        pages = sorted(set(faults))
        self.count["batches"] += 1
        self.world.batch += 1
        self.count["faults"] += len(pages)
        entries = len(faults) * ENTRY_TENTHS // 10 if self.m.look else len(faults)
        self.count["entries"] += entries
        self.handler += self.m.batch + entries * self.m.entry
        self.world.now = self.handler
        blocks = sorted({p // PAGES for p in pages})
        last = self.handler
        for i, block in enumerate(blocks):
            faulted = {p % PAGES for p in pages if p // PAGES == block}
            wanted = faulted | self.region(block, faulted)
            moved, operations, fresh, back, evicted = self.make_resident(block, wanted)
            self.handler += self.m.service + moved * self.m.push
            self.handler += fresh * self.m.first_touch + evicted * self.m.evict
            out_ns, in_ns = self.m.way_out(back), self.m.way_in(moved, operations)
            if self.m.duplex and i > 0 and back > 0:
                out_ns, in_ns = out_ns * 1000 // self.m.permille, in_ns * 1000 // self.m.permille
            last = max(last, self.both_ways(out_ns, in_ns))
        self.handler = max(self.handler, last)
        return self.space.tenant[faults[0] // PAGES]

    def scattered(self, queues: list) -> list:
        """All of them, each as far from the one before as 0.618 of their number, or the next number
        after that which has no divisor in common with it."""
        n = len(queues)
        step = max(n * 618 // 1000, 1)
        while math.gcd(step, n) != 1:
            step += 1
        first = self.number * 2654435761 % n
        return [queues[(first + i * step) % n] for i in range(n)]

    def migrations(self, tenant: int) -> None:
        """What the policy asked for in the batch, if it is the faulting process's."""
        for block in self.world.wanted:
            if self.space.tenant[block] == tenant:
                self.ahead(block)
        self.world.wanted = []

    def ahead(self, block: int) -> None:
        """A block that a policy asked for."""
        n = self.space.n_pages[block]
        if (
            len(self.resident[block]) == n
            or not self.space.populated[block]
            or self.space.advice[block] & CPU_PREFERRED
        ):
            return
        moved, operations, _, back, _ = self.make_resident(block, set(range(n)))
        self.count["migrated"] += 1
        done = self.both_ways(self.m.way_out(back), self.m.way_in(moved, operations))
        self.arrival[block] = done

    def region(self, block: int, faulted: set[int]) -> set[int]:
        """Pages to bring in with those that faulted."""
        n = self.space.n_pages[block]
        if not self.space.populated[block] and self.space.advice[block] & GPU_PREFERRED:
            return set(range(n))
        accessed = self.resident[block] | faulted
        for p in faulted:
            big = p // BIG * BIG
            accessed |= set(range(big, min(big + BIG, n)))
        out: set[int] = set()
        for page in sorted(faulted):
            first, outer = self.one_region(block, page, n, accessed)
            out |= set(range(first, outer))
            if outer == n and outer > first:
                break
        return out

    def one_region(self, block: int, page: int, n: int, accessed: set[int]) -> tuple[int, int]:
        answer = self.prefetch.prefetch(block, page, 0, n)
        if answer not in ("default", "loop"):
            return clamp(answer, n)
        best = (page, page) if answer == "default" else (0, 0)
        size = 1
        while True:
            first = page // size * size
            outer = min(first + size, n)
            counter = sum(1 for p in range(first, outer) if p in accessed)
            if answer == "loop":
                told = self.prefetch.tree(block, first, outer, counter)
                best = clamp(told, n) if told else best
            elif counter * 100 > (outer - first) * self.m.threshold:
                best = (first, outer)
            if size >= n:
                return best
            size *= 2

    def make_resident(self, block: int, wanted: set[int]):
        """(pages copied, copies, whether its host pages were new, pages back, whether evicted)."""
        back = evicted = 0
        new_here = block not in self.chunk_of
        if new_here:
            chunk, back, evicted = self.frame()
            self.chunk_of[block] = chunk
            self.world.block_of[chunk] = block
            self.count["activated"] += 1
            self.world.activates += 1
            self.world.used.append(chunk)
            self.order.activate(chunk)
        chunk = self.chunk_of[block]
        new = wanted - self.resident[block]
        self.resident[block] |= new
        moved = len(new)
        operations = len([p for p in new if p - 1 not in new or p % BIG == 0])
        fresh = self.space.populated[block] and block not in self.mapped
        self.mapped.add(block)
        if not self.space.populated[block]:
            self.space.populated[block] = True
            self.count["zeroed"] += moved
            moved = operations = 0
        if not new_here and self.order.access(chunk):
            self.world.tail(chunk)
        self.count["services"] += 1
        self.count["in"] += moved
        self.count["copies"] += operations
        return moved, operations, int(fresh), back, evicted

    def frame(self):
        """(chunk, pages to copy back, 1 if a block lost it)."""
        if self.free:
            return self.free.pop(0), 0, 0
        self.order.prepare()
        chunk = self.world.used[0]
        block = self.world.block_of[chunk]
        back = 0 if self.space.advice[block] & READ_MOSTLY else len(self.resident[block])
        self.world.used.remove(chunk)
        del self.chunk_of[block]
        self.resident[block] = set()
        self.count["evicted"] += 1
        self.count["out"] += back
        return chunk, back, 1


def clamp(region: tuple[int, int], n: int) -> tuple[int, int]:
    first = max(region[0], 0)
    return first, max(min(region[1], n), first)
