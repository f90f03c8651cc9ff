"""The simulator's rules once more, slow and obvious: dicts, lists, linear searches.

Written from the specification and the papers, not from the code under test, and sharing none of it.
Start at `simulate`. A trace is a list of `Row`; an event is a layer of a forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Row:
    """One token in one layer. ``experts`` is None where the routing is not known."""

    seq: int
    pos: int
    step: int
    phase: int
    layer: int
    experts: list[int] | None
    scores: list[float] | None = None
    guesses: list[tuple[list[int], list[float]] | None] = field(
        default_factory=lambda: [None, None]
    )
    """What the routers of the next layer and the one after it make of the token: experts, best first,
    and what ranks them."""


@dataclass
class Ev:
    """One event: ``experts`` are (layer, expert) pairs in the order they are touched."""

    layer: int
    step: int
    seq: int
    experts: list[tuple[int, int]]
    scores: list[list[float]]
    tokens: int = 1
    """Tokens whose routing is known."""
    choices: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """(sequence, position, experts in rank order) of each of them."""
    guesses: list[list[tuple[list[int], list[float]] | None]] = field(default_factory=list)
    """`Row.guesses` of each of them."""


@dataclass
class Outcome:
    hit: list[int] = field(default_factory=list)
    evictions: int = 0
    inserted: int = 0
    issued: int = 0
    used: int = 0
    wasted: int = 0
    resident: int = 0
    most_resident: int = 0
    copies: list[tuple[str, tuple[int, int], int]] = field(default_factory=list)
    """(kind, expert, number of the copy that must be done first or -1)"""
    waves: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """(accesses so far, copies so far, prefetch copies awaited) after each wave"""


# ---- a trace as events ---------------------------------------------------------------------------


def events_of(rows: list[Row], unit: str) -> list[Ev]:
    """Layers are renumbered 0, 1, ... and so are forward passes."""
    layers = sorted({r.layer for r in rows})
    steps: list[int] = []
    first_seq: dict[int, int] = {}
    groups: list[tuple[int, int, list[Row]]] = []
    for r in rows:
        if r.step not in steps:
            steps.append(r.step)
            first_seq[r.step] = r.seq
        if not groups or groups[-1][:2] != (r.step, r.layer):
            groups.append((r.step, r.layer, []))
        groups[-1][2].append(r)
    events = []
    for step, layer, members in groups:
        index = layers.index(layer)
        number, seq = steps.index(step), first_seq[step]
        known = [r for r in members if r.experts is not None]
        if unit == "access":
            if not known:
                events.append(Ev(index, number, seq, [], [], 0))
            for r in known:
                for e in r.experts:
                    one = [(r.seq, r.pos, [e])]
                    events.append(Ev(index, number, seq, [(index, e)], [], 1, one))
            continue
        distinct = []
        for r in known:
            for e in r.experts:
                if (index, e) not in distinct:
                    distinct.append((index, e))
        scores = [r.scores for r in known if r.scores]
        choices = [(r.seq, r.pos, r.experts) for r in known]
        guesses = [r.guesses for r in known]
        events.append(Ev(index, number, seq, distinct, scores, len(known), choices, guesses))
    return events


# ---- who leaves ----------------------------------------------------------------------------------


class Evict:
    """Hooks; ``victim`` gets the experts that may leave, in slot order, and never none."""

    def __init__(self, world: World):
        self.world = world

    def event(self, ev: Ev) -> None: ...

    def bypasses(self, ev: Ev) -> bool:
        return False

    def touch(self, e, hit: bool) -> None: ...

    def insert(self, e) -> None: ...

    def evict(self, e) -> None: ...

    def victim(self, free: list) -> Any:
        raise NotImplementedError


class Fifo(Evict):
    def __init__(self, world):
        super().__init__(world)
        self.order = []

    def insert(self, e):
        self.order.append(e)

    def evict(self, e):
        self.order.remove(e)

    def victim(self, free):
        return next(e for e in self.order if e in free)


class Lru(Fifo):
    def touch(self, e, hit):
        if hit:
            self.order.remove(e)
            self.order.append(e)


class Mru(Lru):
    def victim(self, free):
        return [e for e in self.order if e in free][-1]


class ClockHand(Fifo):
    def __init__(self, world):
        super().__init__(world)
        self.referenced = set()

    def touch(self, e, hit):
        if hit:
            self.referenced.add(e)

    def evict(self, e):
        super().evict(e)
        self.referenced.discard(e)

    def victim(self, free):
        while True:
            e = super().victim(free)
            if e not in self.referenced:
                return e
            self.referenced.remove(e)
            self.order.remove(e)
            self.order.append(e)


class Lfu(Evict):
    def __init__(self, world):
        super().__init__(world)
        self.uses, self.key, self.since, self.now = {}, {}, {}, 0

    def age(self, e):
        return 0

    def _rank(self, e):
        self.now += 1
        self.since[e] = self.now
        self.key[e] = self.uses[e] + self.age(e)

    def touch(self, e, hit):
        if hit:
            self.uses[e] += 1
            self._rank(e)

    def insert(self, e):
        self.uses[e] = 1
        self._rank(e)

    def victim(self, free):
        return min(free, key=lambda e: (self.key[e], self.since[e]))


class Lfuda(Lfu):
    def __init__(self, world):
        super().__init__(world)
        self.last_rank = {}

    def age(self, e):
        return self.last_rank.get(self.world.pool_of(e), 0)

    def evict(self, e):
        self.last_rank[self.world.pool_of(e)] = self.key[e]


def link_ns(nbytes: int) -> int:
    """One expert over the link of the machine that tests run on."""
    return int(np.rint(nbytes / LINK["bytes_per_s"] * 1e9)) + LINK["latency_ns"]


LINK = {"bytes_per_s": 1.0, "latency_ns": 0}
"""Set by who builds jobs."""


class Gdsf(Lfuda):
    """GreedyDual-Size with frequency: what a victim was worth is where the others start from."""

    def _rank(self, e):
        self.now += 1
        self.since[e] = self.now
        sizes = self.world.bytes_of
        most = max(link_ns(n) / n for n in sizes)
        worth = link_ns(sizes[e[0]]) / sizes[e[0]] / most
        self.key[e] = self.age(e) + self.uses[e] * worth


class RandomChoice(Evict):
    """xorshift64* (Vigna 2016) in Python's integers; the top 31 bits choose."""

    def __init__(self, world):
        super().__init__(world)
        self.x = int(np.random.SeedSequence(world.seed).generate_state(1, np.uint64)[0]) | 1

    def victim(self, free):
        mask = (1 << 64) - 1
        self.x ^= self.x >> 12
        self.x ^= (self.x << 25) & mask
        self.x ^= self.x >> 27
        return free[((self.x * 2685821657736338717) & mask) // 2**33 % len(free)]


class Pin(Lru):
    def __init__(self, world):
        super().__init__(world)
        scratch = world.options.get("scratch", 0) or world.top_k
        uses = world.profile_uses()
        self.keep = set()
        for p in range(world.n_pools):
            mine = [e for e in world.all_experts() if world.pool_of(e) == p]
            mine.sort(key=lambda e: -uses.get(e, 0))
            self.keep |= set(mine[: max(world.capacity - scratch, 0)])

    def victim(self, free):
        loose = [e for e in self.order if e in free and e not in self.keep]
        return loose[0] if loose else super().victim(free)


class LayerLru(Evict):
    def __init__(self, world):
        super().__init__(world)
        self.turns = dict.fromkeys(range(world.n_layers), 0)
        self.used, self.last, self.now, self.here = {}, {}, 0, 0

    def event(self, ev):
        self.turns[ev.layer] += 1
        self.here = ev.layer

    def touch(self, e, hit):
        self.now += 1
        self.last[e] = self.now
        self.used[e] = self.turns[e[0]]

    def insert(self, e):
        self.used[e] = self.turns[e[0]]

    def victim(self, free):
        def badness(e):
            missed = self.turns[e[0]] - self.used[e]
            until_its_turn = (e[0] - self.here - 1) % self.world.n_layers
            return (missed, until_its_turn, -self.last.get(e, 0))

        return max(free, key=badness)


class LeastStale(Evict):
    def __init__(self, world):
        super().__init__(world)
        self.pass_of, self.last, self.now = {}, {}, 0

    def touch(self, e, hit):
        self.pass_of[e] = self.world.step
        self.insert(e)

    def insert(self, e):
        self.now += 1
        self.last[e] = self.now

    def victim(self, free):
        def order(e):
            if e[0] > self.world.layer:
                kind = 2
            elif self.pass_of.get(e) == self.world.step:
                kind = 1
            else:
                kind = 0
            return (kind, self.last[e])

        return min(free, key=order)


class Min(Evict):
    """Belady's MIN: looks through the rest of the accesses every time."""

    def next_use(self, e):
        for i in range(self.world.access + 1, len(self.world.future)):
            if self.world.future[i][0] == e:
                return i
        return math.inf

    def victim(self, free):
        return max(free, key=lambda e: (self.next_use(e), -e[0], -e[1]))  # then the lowest id


class MinHorizon(Min):
    def __init__(self, world):
        super().__init__(world)
        self.horizon = world.options.get("horizon", 4)
        self.last = {}

    def touch(self, e, hit):
        self.last[e] = self.world.access

    def victim(self, free):
        seen = self.world.step + self.horizon
        beyond = [
            e
            for e in free
            if self.next_use(e) == math.inf or self.world.future[self.next_use(e)][1] > seen
        ]
        if beyond:
            return min(beyond, key=lambda e: self.last.get(e, -1))
        return super().victim(free)


class Lrfu(Evict):
    """Every use ever, at the token of its layer, fading by half in ``half_life`` tokens."""

    def __init__(self, world):
        super().__init__(world)
        self.half_life = world.options.get("half_life", 12.0)
        self.uses: dict = {}
        self.tokens = [0] * world.n_layers

    def event(self, ev):
        for _, _, experts in ev.choices:
            self.tokens[ev.layer] += 1
            for e in experts:
                self.uses.setdefault((ev.layer, e), []).append(self.tokens[ev.layer])

    def victim(self, free):
        def left(e):
            n, layer = self.world.n_layers, e[0]
            wait = (layer - self.world.layer - 1) % n / n
            ages = [self.tokens[layer] + wait - t for t in self.uses.get(e, [])]
            return sum(0.5 ** (age / self.half_life) for age in ages)

        return min(free, key=lambda e: (left(e), e))


class LlamaCpp(Evict):
    """`moe_cache_lru` of llama.cpp: whole events; slots from the least to the most recently used."""

    def __init__(self, world):
        super().__init__(world)
        self.order = []
        self.misses = []

    def bypasses(self, ev):
        at_most = min(ev.tokens * self.world.top_k, self.world.n_experts)
        return ev.tokens > 32 or at_most > self.world.capacity

    def event(self, ev):
        self.misses = []
        if not self.bypasses(ev):
            for e in ev.experts:
                if e in self.world.resident:
                    self.order.remove(e)
                    self.order.append(e)

    def insert(self, e):
        # llama.cpp sorts the misses first; here they come one by one.
        self.order = [x for x in self.order if x not in self.misses]
        self.misses = sorted([*self.misses, e])
        self.order += self.misses

    def evict(self, e):
        self.order.remove(e)

    def victim(self, free):
        mine = self.world.pool_of(free[0])
        return next(e for e in self.order if e in free and self.world.pool_of(e) == mine)


EVICT = {
    "lru": Lru,
    "llama-cpp-lru": LlamaCpp,
    "fifo": Fifo,
    "mru": Mru,
    "clock": ClockHand,
    "lfu": Lfu,
    "lfuda": Lfuda,
    "gdsf": Gdsf,
    "random": RandomChoice,
    "static-pin": Pin,
    "layer-lru": LayerLru,
    "lrfu": Lrfu,
    "least-stale": LeastStale,
    "belady": Min,
    "belady-horizon": MinHorizon,
}


# ---- who is fetched early ------------------------------------------------------------------------


class Fetch:
    def __init__(self, world: World):
        self.world = world
        self.n = world.prefetch_options.get("n", 0) or world.top_k

    def event(self, ev: Ev) -> None: ...

    def wanted(self, ev: Ev) -> list:
        return []


class NextLayer(Fetch):
    """Counted transitions: experts of an event vote for those seen right after them."""

    def __init__(self, world):
        super().__init__(world)
        self.online = world.prefetch_options.get("online", True)
        self.count = dict(world.profile_transitions())
        self.last = None

    def event(self, ev):
        follows = self.last and (self.last.layer + 1) % self.world.n_layers == ev.layer
        if self.online and follows:
            for a in self.last.experts:
                for b in ev.experts:
                    self.count[a, b] = self.count.get((a, b), 0) + 1
        self.last = ev

    def wanted(self, ev):
        layer = (ev.layer + 1) % self.world.n_layers
        votes = {}
        for j in range(self.world.n_experts):
            votes[layer, j] = sum(self.count.get((a, (layer, j)), 0) for a in ev.experts)
        best = sorted((e for e in votes if votes[e] > 0), key=lambda e: (-votes[e], e))
        return best[: min(self.n, self.world.n_experts)]


class PreviousToken(Fetch):
    def __init__(self, world):
        super().__init__(world)
        self.last = {}

    def event(self, ev):
        self.last[ev.layer] = ev.experts[: min(self.n, self.world.n_experts)]

    def wanted(self, ev):
        return list(self.last.get((ev.layer + 1) % self.world.n_layers, []))


class ScoreRank(Fetch):
    """Scores of the last micro-batch, summed; nothing where none of its tokens is known."""

    def __init__(self, world):
        super().__init__(world)
        k = world.top_k
        self.n = world.prefetch_options.get("n", 0) or k + math.ceil(k / 2)
        self.last = {}

    def event(self, ev):
        total = [0.0] * self.world.n_experts
        for token in ev.scores:
            total = [t + s for t, s in zip(total, token, strict=True)]
        self.last[ev.layer] = total if ev.scores else None

    def wanted(self, ev):
        layer = (ev.layer + 1) % self.world.n_layers
        scores = self.last.get(layer)
        if scores is None:
            return []
        ranked = sorted(range(self.world.n_experts), key=lambda j: (-scores[j], j))
        return [(layer, j) for j in ranked[: self.n]]


class Oracle(Fetch):
    """The next events' experts that are missing, each paid for once, until the budget is spent."""

    def wanted(self, ev):
        horizon = self.world.prefetch_options.get("horizon", 1)
        budget = self.world.prefetch_options.get("budget", 0)
        spent, out = 0, []
        for event in self.world.coming[:horizon]:
            for e in event.experts:
                if e in self.world.resident or e in out:
                    continue
                spent += self.world.bytes_of[e[0]]
                if budget and spent > budget:
                    return out
                out.append(e)
        return out


class Window(Fetch):
    """A prefetcher whose bytes fetched and not used yet stay within a window that adapts."""

    def __init__(self, world, other: Fetch, start: int):
        super().__init__(world)
        self.other, self.window, self.start = other, start, start
        self.under_way: set = set()
        self.used = self.unused = 0

    def size(self, experts) -> int:
        return sum(self.world.bytes_of[e[0]] for e in experts)

    def event(self, ev):
        used = self.under_way & set(ev.experts)
        lost = {e for e in self.under_way - used if e not in self.world.resident}
        self.under_way -= used | lost
        self.used += self.size(used)
        self.unused += self.size(lost)
        if self.used + self.unused >= self.start // 8:
            good = self.used >= self.unused
            step = self.start // 8 if good else -(self.start // 8)
            self.window = self.window + step if good else max(self.start // 4, self.window + step)
            self.used = self.unused = 0
        self.other.event(ev)

    def wanted(self, ev):
        out = []
        for e in self.other.wanted(ev):
            if e not in self.world.resident and e not in self.under_way:
                if self.size(self.under_way | {e}) > self.window:
                    continue
                self.under_way.add(e)
            out.append(e)
        return out


def fetcher(name: str | None, world) -> Fetch | None:
    """The prefetcher of that name, with its window if it has one."""
    made = FETCH[name](world) if name else None
    start = world.prefetch_options.get("window", 0)
    return Window(world, made, start) if made and start else made


FETCH = {
    "next-layer": NextLayer,
    "previous-token": PreviousToken,
    "score-rank": ScoreRank,
    "oracle": Oracle,
}


# ---- the pool ------------------------------------------------------------------------------------


@dataclass
class World:
    """What policies may look at."""

    n_layers: int
    n_experts: int
    top_k: int
    n_pools: int
    capacity: int
    """Slots of each pool."""
    seed: int
    options: dict
    prefetch_options: dict
    profile: list[Ev]
    bytes_of: list[int]
    future: list[tuple] = field(default_factory=list)
    """(expert, forward pass) of all accesses of the segment."""
    coming: list[Ev] = field(default_factory=list)
    access: int = -1
    step: int = 0
    layer: int = 0
    resident: set = field(default_factory=set)

    def pool_of(self, e) -> int:
        return e[0] if self.n_pools > 1 else 0

    def all_experts(self):
        return [(layer, e) for layer in range(self.n_layers) for e in range(self.n_experts)]

    def profile_uses(self):
        """Tokens that used each expert (``profile`` has one event an access)."""
        uses: dict = {}
        for ev in self.profile_accesses:
            for e in ev.experts:
                uses[e] = uses.get(e, 0) + 1
        return uses

    profile_accesses: list[Ev] = field(default_factory=list)

    def profile_transitions(self):
        count: dict = {}
        for one, two in zip(self.profile[:-1], self.profile[1:], strict=True):
            if (one.layer + 1) % self.n_layers == two.layer:
                for a in one.experts:
                    for b in two.experts:
                        count[a, b] = count.get((a, b), 0) + 1
        return count


def simulate(
    rows: list[Row],
    evict: str,
    fetch: str | None = None,
    *,
    n_experts: int,
    top_k: int,
    slots: int,
    pool: str = "global",
    unit: str = "event",
    reset: str = "never",
    write_back: bool = False,
    seed: int = 0,
    options: dict | None = None,
    prefetch_options: dict | None = None,
    profile: list[Row] | None = None,
    bytes_of: list[int] | None = None,
) -> Outcome:
    """Serve a whole trace; ``slots`` is the number of all pools together."""
    events = events_of(rows, unit)
    n_layers = len({r.layer for r in rows})
    n_pools = n_layers if pool == "per-layer" else 1
    capacity = min(slots // n_layers, n_experts) if pool == "per-layer" else slots
    capacity = min(capacity, n_layers * n_experts)
    out = Outcome()
    for segment in segments(events, reset):
        world = World(
            n_layers, n_experts, top_k, n_pools, capacity, seed, options or {},
            prefetch_options or {}, events_of(profile, "event") if profile else [],
            bytes_of or [1] * n_layers,
        )  # fmt: skip
        world.profile_accesses = events_of(profile, "access") if profile else []
        run_segment(world, segment, EVICT[evict](world), fetcher(fetch, world), out, write_back)
    return out


def segments(events: list[Ev], reset: str) -> list[list[Ev]]:
    if reset == "never":
        return [events]
    out: list[list[Ev]] = []
    for ev in events:
        if not out or out[-1][-1].seq != ev.seq:
            out.append([])
        out[-1].append(ev)
    return out


def run_segment(world, segment, policy, prefetcher, out: Outcome, write_back: bool) -> None:
    pools: list[list] = [[] for _ in range(world.n_pools)]  # experts by slot
    unused: dict = {}  # prefetched and not used yet -> number of the copy that brought it
    served_before = len(out.hit)
    world.future = [(e, ev.step) for ev in segment for e in ev.experts]

    def give_slot(e, kind, protected) -> bool:
        slots = pools[world.pool_of(e)]
        after = -1
        if len(slots) < world.capacity:
            slots.append(e)
        else:
            free = [x for x in slots if x not in protected]
            if not free:
                return False
            v = policy.victim(free)
            assert v in free
            policy.evict(v)
            slots[slots.index(v)] = e
            world.resident.remove(v)
            out.evictions += 1
            if v in unused:
                after = unused.pop(v)
                out.wasted += 1
            if write_back:
                out.copies.append(("writeback", v, after))
                after = len(out.copies) - 1
        world.resident.add(e)
        policy.insert(e)
        out.inserted += 1
        out.copies.append((kind, e, after))
        out.most_resident = max(out.most_resident, len(world.resident))
        return True

    for number, ev in enumerate(segment):
        world.step, world.layer = ev.step, ev.layer
        world.coming = segment[number + 1 :]
        policy.event(ev)
        if prefetcher:
            prefetcher.event(ev)
        n = world.capacity
        if policy.bypasses(ev):
            awaited = []
            for e in ev.experts:
                out.hit.append(int(e in world.resident))
                if e in unused:
                    awaited.append(unused.pop(e))
                    out.used += 1
                if e not in world.resident:
                    out.copies.append(("demand", e, -1))
            out.waves.append((len(out.hit), len(out.copies), awaited))
            continue
        waves = [ev.experts[i : i + n] for i in range(0, len(ev.experts), n)] or [[]]
        for wave in waves:
            before = set(world.resident)
            awaited = []
            for e in wave:
                world.access = len(out.hit) - served_before
                hit = e in before
                policy.touch(e, hit)
                if hit:
                    assert e in world.resident
                    if e in unused:
                        awaited.append(unused.pop(e))
                        out.used += 1
                else:
                    assert give_slot(e, "demand", set(wave))
                out.hit.append(int(hit))
            if prefetcher and wave is waves[-1]:
                wanted = list(prefetcher.wanted(ev))
                protected = set(wave) | {e for e in wanted if e in world.resident}
                for e in wanted:
                    if e in world.resident:
                        continue
                    if give_slot(e, "prefetch", protected):
                        protected.add(e)
                        out.issued += 1
                        unused[e] = len(out.copies) - 1
            out.waves.append((len(out.hit), len(out.copies), awaited))
    out.wasted += len(unused)
    out.resident = len(world.resident)
