"""What becomes of misses, once more, slow and obvious: the rules of docs/policies.md in dicts and
lists.

Beside `naive`, whose policies and traces it uses: a miss may be inserted, offered, read from a scratch
place, computed on the CPU, or that and copied in behind. Written from the rules, not from the code
under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import naive


@dataclass
class Split:
    """Whole ns. ``idle``: the link's rest after each event of the run; None: nothing comes behind."""

    copy: list[int]
    cpu: Callable[[int, int], int]
    sync: int
    idle: list[int] | None = None

    def serve(self, layer: int, misses: list, tokens: dict, owed: int, idle: int | None):
        """The CPU's experts, those of them that are copied in behind, and what the link owes once the
        wave is served. ``owed``: before it; ``idle``: the link's rest after it, None: nothing comes
        behind."""
        copy = self.copy[layer]
        order = sorted(misses, key=lambda e: (tokens[e], -misses.index(e)))

        def done(n: int) -> int:
            """When CPU and link are done if the CPU has ``n``: every number of them is tried."""
            cpu = self.sync + sum(self.cpu(layer, tokens[e]) for e in order[:n]) if n else 0
            link = owed + (len(order) - n) * copy if n < len(order) else 0
            return max(cpu, link)

        best = min(range(len(order) + 1), key=lambda n: (done(n), n))
        share, demanded = order[:best], len(order) - best
        if idle is None or not misses:
            return share, set(), owed
        spare = max(0, done(best) - demanded * copy)
        behind = set()
        for e in reversed(share):
            # In the link's time that is not this wave's own copies'.
            begins, ends = owed, owed + copy
            in_time = ends <= spare + idle if demanded else begins < spare + idle
            if not in_time:
                break
            owed = ends
            behind.add(e)
        return share, behind, max(0, owed - spare)


@dataclass
class Outcome(naive.Outcome):
    by: dict[str, int] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    """By access; "" for hits."""
    reads: list[int | None] = field(default_factory=list)
    """By access: the place it reads; None: the CPU computes it."""
    places: list[int] = field(default_factory=list)
    """By copy: the place it fills."""


def simulate(
    rows, evict, fetch=None, *, n_experts, top_k, slots, pool="global", unit="event", reset="never",
    seed=0, options=None, prefetch_options=None, profile=None, bytes_of=None,
    scratch=0, bypass=False, answer=None, split=None,
) -> Outcome:  # fmt: skip
    """As `naive.simulate`; ``answer(layer, expert, access)`` is what the policy says of a miss."""
    events = naive.events_of(rows, unit)
    n_layers = len({r.layer for r in rows})
    n_pools = n_layers if pool == "per-layer" else 1
    capacity = min(slots // n_layers, n_experts) if pool == "per-layer" else slots
    capacity = min(capacity, n_layers * n_experts)
    out, before = Outcome(), 0
    for segment in naive.segments(events, reset):
        world = naive.World(
            n_layers, n_experts, top_k, n_pools, capacity + (1 if scratch else 0), seed,
            options or {}, prefetch_options or {},
            naive.events_of(profile, "event") if profile else [], bytes_of or [1] * n_layers,
        )  # fmt: skip
        world.profile_accesses = naive.events_of(profile, "access") if profile else []
        run = Run(world, capacity, scratch, bypass, answer, split, out,
                  naive.EVICT[evict](world), naive.FETCH[fetch](world) if fetch else None)  # fmt: skip
        run.segment(segment, before)
        before += len(segment)
    return out


@dataclass
class Run:
    """One stretch between two times that the pool is emptied."""

    world: naive.World
    capacity: int
    scratch: int
    bypass: bool
    answer: Any
    split: Split | None
    out: Outcome
    policy: naive.Evict
    prefetcher: Any

    def segment(self, segment: list[naive.Ev], number: int) -> None:
        w, out = self.world, self.out
        self.pools: list[list] = [[] for _ in range(w.n_pools)]
        self.place: dict = {}
        total = self.capacity * w.n_pools + self.scratch
        self.free = list(range(total))[::-1]
        self.wait = dict.fromkeys(range(total), -1)
        self.fresh: dict = {}  # expert -> (who fetched it, number of the copy)
        self.queued = 0
        self.behind: set = set()
        start = len(out.hit)
        w.future = [(e, ev.step) for ev in segment for e in ev.experts]
        for i, ev in enumerate(segment):
            w.step, w.layer, w.coming = ev.step, ev.layer, segment[i + 1 :]
            self.policy.event(ev)
            if self.prefetcher:
                self.prefetcher.event(ev)
            todo = list(ev.experts)
            while True:
                todo = self.wave(ev, todo, start, number + i)
                if not todo:
                    break
        out.wasted += sum(who == "ahead" for who, _ in self.fresh.values())
        out.resident = len(w.resident)

    def wave(self, ev: naive.Ev, todo: list, start: int, number: int) -> list:
        """Serve as many of the event's experts as go together; returns the others."""
        w, out = self.world, self.out
        together = todo[: self.capacity]
        tokens = {e: sum(e[1] in chosen for _, _, chosen in ev.choices) for e in ev.experts}
        share = []
        if self.split:
            missing = [e for e in together if e not in w.resident]
            idle = None
            if self.split.idle:
                idle = self.split.idle[number] if len(together) == len(todo) else 0
            share, self.behind, self.queued = self.split.serve(
                ev.layer, missing, tokens, self.queued, idle
            )
        before, served, offered, awaited = set(w.resident), [], [], []
        used_now: list[int] = []
        left = self.scratch
        for e in together:
            if e not in before and self.scratch and left == 0 and e not in share:
                break
            served.append(e)
            w.access = len(out.hit) - start
            hit = e in before
            action = ""
            if hit:
                self.policy.touch(e, True)
                if e in self.fresh:
                    who, copy = self.fresh.pop(e)
                    awaited.append(copy)
                    out.used += who == "ahead"
                out.reads.append(self.place[e])
            else:
                action = self.action_of(e, share)
                out.by[action] = out.by.get(action, 0) + 1
                if action != "offer":
                    self.policy.touch(e, False)
                if action in ("offer", "scratch"):
                    place = self.free.pop()
                    left -= 1
                    self.copy("demand", e, place)
                    out.reads.append(place)
                    if action == "scratch":
                        used_now.append(place)
                    else:
                        offered.append((e, w.access, place))
                elif action == "cpu":
                    out.reads.append(None)
                else:
                    kind = "demand" if action == "insert" else "prefetch"
                    assert self.insert(e, kind, set(together))
                    if action == "cpu-behind":
                        self.fresh[e] = ("behind", len(out.copies) - 1)
                    out.reads.append(None if action == "cpu-behind" else self.place[e])
            out.hit.append(int(hit))
            out.actions.append(action)
        for e, access, place in offered:
            w.access = access
            self.policy.touch(e, False)
            w.access = len(out.hit) - 1 - start  # the whole wave has been
            freed = self.offer(e, place)
            used_now += [freed] if freed >= 0 else []
        rest = todo[len(served) :]
        if self.prefetcher and not rest:
            wanted = list(self.prefetcher.wanted(ev))
            protected = set(together) | {e for e in wanted if e in w.resident}
            for e in wanted:
                if e not in w.resident and self.insert(e, "prefetch", protected):
                    protected.add(e)
                    out.issued += 1
                    self.fresh[e] = ("ahead", len(out.copies) - 1)
        self.free += used_now
        out.waves.append((len(out.hit), len(out.copies), awaited))
        out.most_resident = max(out.most_resident, len(w.resident))
        assert all(len(p) <= self.capacity for p in self.pools)
        if self.split and self.split.idle and not rest:
            self.queued = max(0, self.queued - self.split.idle[number])
        return rest

    def action_of(self, e, share: list) -> str:
        if e in share:
            return "cpu-behind" if e in self.behind else "cpu"
        said = self.answer(e[0], e[1], len(self.out.hit)) if self.answer else "insert"
        return "offer" if self.bypass and said == "insert" else said

    def copy(self, kind: str, e, place: int) -> None:
        self.out.copies.append((kind, e, self.wait[place]))
        self.out.places.append(place)
        self.wait[place] = -1

    def leave(self, v, slots: list) -> int:
        """``v`` loses its slot; returns its place."""
        self.policy.evict(v)
        self.out.evictions += 1
        self.world.resident.remove(v)
        place = self.place.pop(v)
        if v in self.fresh:
            who, copy = self.fresh.pop(v)
            self.out.wasted += who == "ahead"
            self.wait[place] = copy
        return place

    def insert(self, e, kind: str, protected: set) -> bool:
        """``e`` gets a slot and its copy is queued; False where nobody may leave."""
        w = self.world
        slots = self.pools[w.pool_of(e)]
        if len(slots) < self.capacity:
            slots.append(e)
            w.resident.add(e)
            self.policy.insert(e)
            place = self.free.pop()
        elif self.scratch:  # it enters first
            free = [x for x in slots if x not in protected]
            if not free:
                return False
            slots.append(e)
            w.resident.add(e)
            self.policy.insert(e)
            v = self.policy.victim(free)
            place = self.leave(v, slots)
            slots[slots.index(v)] = e
            slots.pop()
        else:
            free = [x for x in slots if x not in protected]
            if not free:
                return False
            v = self.policy.victim(free)
            place = self.leave(v, slots)
            slots[slots.index(v)] = e
            w.resident.add(e)
            self.policy.insert(e)
        self.place[e] = place
        self.out.inserted += 1
        self.copy(kind, e, place)
        return True

    def offer(self, e, place: int) -> int:
        """``e``, which lies at a place already, enters, and somebody leaves; returns the place that is
        free after the wave."""
        w = self.world
        slots = self.pools[w.pool_of(e)]
        slots.append(e)
        w.resident.add(e)
        self.place[e] = place
        self.policy.insert(e)
        self.out.inserted += 1
        if len(slots) <= self.capacity:
            return -1
        v = self.policy.victim(list(slots))
        at = slots.index(v)
        freed = self.leave(v, slots)
        last = slots.pop()
        if last != v:
            slots[at] = last
        return freed
