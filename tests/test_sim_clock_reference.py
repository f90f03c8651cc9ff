"""The timeline's rules a third time, as plainly as they can be put: nanosecond by nanosecond.

`tick` walks through time one nanosecond after the other. Both engines must agree with it on random
plans, and with the examples below that can be checked with a pencil.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uvmsim.clocks import des, fast
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK, Counters, Plan
from uvmsim.runs.timeline import Timeline

ENGINES = pytest.mark.parametrize("engine", [des, fast], ids=["des", "fast"])


def tick(plan: Plan) -> Timeline:
    """The specification.

    At every nanosecond: copies that are over arrive; then the GPU goes as far as it can (its steps
    may take no time at all); then each engine that is free takes the head of its demand queue if
    that may start, else the head of its prefetch queue if that may start. A copy may start when the
    copy it follows has arrived.

    With ``piece_ns`` a prefetch goes back to the head of its queue after each piece; and as a wave
    opens, prefetches that it needs, and those that copies it needs must follow, leave that queue for
    one that goes before it: the followed first.
    """
    n = len(plan.copy_ns)
    left = plan.copy_ns.tolist()
    awaited: list[int] = []

    def need(copy: int) -> None:
        if plan.copy_after[copy] >= 0:
            need(int(plan.copy_after[copy]))
        if copy in queues["h2d"][PREFETCH]:
            queues["h2d"][PREFETCH].remove(copy)
            awaited.append(copy)

    start, done = [None] * n, [None] * n
    opened, ready = [None] * len(plan.pre_ns), [None] * len(plan.pre_ns)
    queues = {"h2d": {DEMAND: [], PREFETCH: []}, "d2h": {WRITEBACK: [], PREFETCH: []}}
    moving: dict[str, int | None] = {"h2d": None, "d2h": None}
    until_piece = {"h2d": 0, "d2h": 0}
    wave_lo = [0, *plan.wave_copy_hi]
    wait_lo = [0, *plan.wave_wait_hi]
    wave, stage, until = 0, "dense", int(plan.pre_ns[0]) if len(plan.pre_ns) else 0
    step_end = [None] * len(plan.step_wave_hi)
    now = 0
    while wave < len(plan.pre_ns) or any(d is None for d in done):
        for engine, copy in moving.items():
            if copy is not None and now == until_piece[engine]:
                moving[engine] = None
                if not left[copy]:
                    done[copy] = now
        while wave < len(plan.pre_ns):
            mine = range(wave_lo[wave], wave_lo[wave + 1])
            if stage == "dense" and now >= until:
                opened[wave] = now
                for copy in mine:
                    kind = plan.copy_kind[copy]
                    queues["d2h" if kind == WRITEBACK else "h2d"][kind].append(copy)
                if plan.piece_ns:
                    for copy in mine:
                        if plan.copy_kind[copy] == DEMAND:
                            need(copy)
                    for copy in plan.waits[wait_lo[wave] : wait_lo[wave + 1]].tolist():
                        need(copy)
                stage, until = "cpu", now + int(plan.cpu_ns[wave])
            elif stage == "cpu" and now >= until:
                stage = "wait"
            elif stage == "wait":
                needed = [c for c in mine if plan.copy_kind[c] == DEMAND]
                needed += [int(c) for c in plan.waits[wait_lo[wave] : wait_lo[wave + 1]]]
                if any(done[c] is None for c in needed):
                    break
                ready[wave] = now
                stage, until = "compute", now + int(plan.compute_ns[wave])
            elif stage == "compute" and now >= until:
                for s, last in enumerate(plan.step_wave_hi):
                    if last == wave + 1:
                        step_end[s] = now
                wave += 1
                if wave < len(plan.pre_ns):
                    stage, until = "dense", now + int(plan.pre_ns[wave])
            else:
                break
        for engine, by_kind in queues.items():
            if moving[engine] is not None:
                continue
            guesses = by_kind[PREFETCH]
            urgent = [q for kind, q in by_kind.items() if kind != PREFETCH]
            for queue in (*urgent, *([awaited] if engine == "h2d" else ()), guesses):
                after = int(plan.copy_after[queue[0]]) if queue else -1
                if queue and (after < 0 or done[after] is not None):
                    copy = queue[0]
                    cut = plan.piece_ns and queue is guesses
                    part = min(plan.piece_ns, left[copy]) if cut else left[copy]
                    left[copy] -= part
                    if start[copy] is None:
                        start[copy] = now
                    moving[engine], until_piece[engine] = copy, now + part
                    if not left[copy]:
                        queue.pop(0)
                    break
        now += 1
    return Timeline(*(np.array(x, np.int64) for x in (step_end, opened, ready, start, done)))


def make(waves, steps=None, piece=0) -> Plan:
    """A plan from ``(pre, cpu, compute, copies, waits)`` a wave; a copy is ``(kind, after, ns)``."""
    copies = [c for w in waves for c in w[3]]

    def upto(part):
        return np.cumsum([len(w[part]) for w in waves]).astype(np.int64)

    def column(values, dtype=np.int64):
        return np.array(list(values), dtype)

    return Plan(
        wave_event=np.arange(len(waves), dtype=np.int32), wave_hi=upto(3),
        pre_ns=column(w[0] for w in waves), cpu_ns=column(w[1] for w in waves),
        compute_ns=column(w[2] for w in waves), wave_copy_hi=upto(3), wave_wait_hi=upto(4),
        copy_bytes=column(1 for _ in copies), copy_kind=column((c[0] for c in copies), np.int8),
        copy_after=column(c[1] for c in copies), copy_ns=column(c[2] for c in copies),
        waits=column(x for w in waves for x in w[4]),
        step_wave_hi=column(steps if steps is not None else range(1, len(waves) + 1)),
        hit=np.zeros(0, np.uint8), counters=Counters(), piece_ns=piece,
    )  # fmt: skip


def random_plan(seed: int, waves: int, longest: int, prefetchy: float, piece: int = 0) -> Plan:
    """Any plan the rules allow, realistic or not; many zeros, so that events coincide."""
    r = random.Random(seed)
    kinds: list[int] = []
    unawaited: list[int] = []
    out = []
    for _ in range(waves):
        waits = [c for c in unawaited if r.random() < 0.4]
        unawaited = [c for c in unawaited if c not in waits]
        copies = []
        for _ in range(r.choice((0, 0, 1, 2, 4))):
            kind = r.choice((DEMAND, WRITEBACK)) if r.random() > prefetchy else PREFETCH
            number = len(kinds)
            after = r.randrange(number) if number and r.random() < 0.5 else -1
            if kind == PREFETCH:
                unawaited.append(number)
            kinds.append(kind)
            copies.append((kind, after, r.randint(1, longest)))
        durations = [r.choice((0, 0, r.randint(0, longest))) for _ in range(3)]
        out.append((*durations, copies, waits))
    # Some waves share a step.
    steps = sorted({waves, *(w for w in range(1, waves) if r.random() < 0.5)})
    return make(out, steps, piece)


def same(a: Timeline, b: Timeline) -> None:
    for name in a.__dataclass_fields__:
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name


@settings(max_examples=400, deadline=None)
@example(11975, 3, 9, 0.8, 1)  # the head of the queue changes lines while the link rests
@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.sampled_from((1, 3, 9, 30)),
    st.sampled_from((0.0, 0.4, 0.8)),
    st.sampled_from((0, 0, 1, 2, 5, 12, 1000)),
)
def test_both_engines_equal_the_tick_by_tick_reference(seed, waves, longest, prefetchy, piece):
    plan = random_plan(seed, waves, longest, prefetchy, piece)
    want = tick(plan)
    same(fast.run(plan), want)
    same(des.run(plan), want)


# ---- examples to check with a pencil; copies take 100 ns ------------------------------------------


@ENGINES
def test_one_miss(engine):
    """10 ns dense, the copy 10..110, 5 ns of experts: the step ends at 115."""
    t = engine.run(make([(10, 0, 5, [(DEMAND, -1, 100)], [])]))
    assert (t.wave_open[0], t.copy_start[0], t.copy_done[0]) == (10, 10, 110)
    assert (t.wave_ready[0], t.step_end[0]) == (110, 115)


@ENGINES
def test_two_misses_queue(engine):
    """One link: the second copy waits for the first, and the GPU for both."""
    t = engine.run(make([(10, 0, 5, [(DEMAND, -1, 100), (DEMAND, -1, 100)], [])]))
    assert t.copy_start.tolist() == [10, 110]
    assert t.step_end.tolist() == [215]


@ENGINES
def test_an_early_prefetch_costs_nothing(engine):
    """Queued at 10, there at 110; the next wave opens at 10 + 5 + 200 = 215 and finds it."""
    waves = [(10, 0, 5, [(PREFETCH, -1, 100)], []), (200, 0, 5, [], [0])]
    t = engine.run(make(waves))
    assert t.copy_done.tolist() == [110]
    assert (t.wave_open[1], t.wave_ready[1], t.step_end[1]) == (215, 215, 220)


@ENGINES
def test_a_late_prefetch_is_waited_for(engine):
    """The next wave opens at 10 + 5 + 20 = 35 and waits for the rest of the copy, until 110."""
    waves = [(10, 0, 5, [(PREFETCH, -1, 100)], []), (20, 0, 5, [], [0])]
    t = engine.run(make(waves))
    assert (t.wave_open[1], t.wave_ready[1], t.step_end[1]) == (35, 110, 115)


@ENGINES
def test_a_demand_overtakes_queued_prefetches(engine):
    """Three prefetches queued at 10; the first is moving when the miss comes at 35. The miss goes
    second (110..210), not fourth, and is not allowed to interrupt the first."""
    three = [(PREFETCH, -1, 100)] * 3
    t = engine.run(make([(10, 0, 5, three, []), (20, 0, 5, [(DEMAND, -1, 100)], [])]))
    assert t.copy_start.tolist() == [10, 210, 310, 110]
    assert t.step_end.tolist() == [15, 215]


@ENGINES
def test_a_demand_that_comes_as_the_link_falls_free_goes_first(engine):
    """The first prefetch is over at 110, the very moment the miss is queued: the miss goes next."""
    two = [(PREFETCH, -1, 100)] * 2
    t = engine.run(make([(10, 0, 5, two, []), (95, 0, 5, [(DEMAND, -1, 100)], [])]))
    assert t.copy_start.tolist() == [10, 210, 110]


@ENGINES
def test_write_back_before_reuse(engine):
    """The slot's old expert goes out first (10..110, other direction), then the new one comes in."""
    t = engine.run(make([(10, 0, 5, [(WRITEBACK, -1, 100), (DEMAND, 0, 100)], [])]))
    assert t.copy_start.tolist() == [10, 110]
    assert t.step_end.tolist() == [215]


@ENGINES
def test_both_directions_move_at_once(engine):
    """A second write-back leaves while the first miss comes in."""
    pair = [(WRITEBACK, -1, 100), (DEMAND, 0, 100), (WRITEBACK, -1, 100), (DEMAND, 2, 100)]
    t = engine.run(make([(10, 0, 5, pair, [])]))
    assert t.copy_start.tolist() == [10, 110, 110, 210]
    assert t.step_end.tolist() == [315]


@ENGINES
def test_a_slot_is_not_reused_before_its_wasted_prefetch_has_arrived(engine):
    """Prefetch 0 is evicted unused while it still moves (10..110): the miss follows it."""
    waves = [(10, 0, 5, [(PREFETCH, -1, 100)], []), (20, 0, 5, [(DEMAND, 0, 100)], [])]
    t = engine.run(make(waves))
    assert t.copy_start.tolist() == [10, 110]
    assert t.step_end.tolist() == [15, 215]


@ENGINES
def test_cpu_work_and_copies_overlap(engine):
    """150 ns on the CPU beside a copy of 100 ns: the wave waits for the longer one."""
    t = engine.run(make([(10, 150, 5, [(DEMAND, -1, 100)], [])]))
    assert (t.wave_ready[0], t.step_end[0]) == (160, 165)


# ---- prefetches in pieces --------------------------------------------------------------------------


@ENGINES
def test_a_demand_waits_for_a_piece_at_most(engine):
    """Pieces 10..40, 40..70; the miss comes at 45, moves 70..170; the guess's other 40 after it."""
    waves = [(10, 0, 5, [(PREFETCH, -1, 100)], []), (30, 0, 5, [(DEMAND, -1, 100)], [])]
    t = engine.run(make(waves, piece=30))
    assert t.copy_start.tolist() == [10, 70]
    assert t.copy_done.tolist() == [210, 170]
    assert t.step_end.tolist() == [15, 175]


@ENGINES
def test_an_awaited_prefetch_goes_before_other_guesses(engine):
    """Two guesses queued at 10; the second is wanted at 25, while the first moves its piece 10..40.
    It goes next, as a whole, 40..140; then what is left of the first."""
    waves = [(10, 0, 5, [(PREFETCH, -1, 100)] * 2, []), (10, 0, 5, [], [1])]
    t = engine.run(make(waves, piece=30))
    assert t.copy_start.tolist() == [10, 40]
    assert t.copy_done.tolist() == [210, 140]
    assert t.step_end.tolist() == [15, 145]


@ENGINES
def test_a_guess_in_the_way_of_a_demand_is_no_guess_any_more(engine):
    """The miss at 25 takes the slot of the second guess: that goes next (40..140), then the miss
    (140..240), then the first guess's other 70."""
    waves = [(10, 0, 5, [(PREFETCH, -1, 100)] * 2, []), (10, 0, 5, [(DEMAND, 1, 100)], [])]
    t = engine.run(make(waves, piece=30))
    assert t.copy_start.tolist() == [10, 40, 140]
    assert t.copy_done.tolist() == [310, 140, 240]


@ENGINES
def test_guesses_cost_a_wave_a_piece_at_most(engine):
    """However many there are, if nobody waits for them: against the same run without any."""
    for seed in range(40):
        r = random.Random(seed)
        with_guesses, without = [], []
        for _ in range(12):
            misses = [(DEMAND, -1, r.randint(1, 30)) for _ in range(r.randint(0, 2))]
            guesses = [(PREFETCH, -1, r.randint(1, 30)) for _ in range(r.randint(0, 4))]
            durations = [r.randint(0, 20) for _ in range(3)]
            with_guesses.append((*durations, misses + guesses, []))
            without.append((*durations, misses, []))
        late = [engine.run(make(w, piece=4)).step_end for w in (with_guesses, without)]
        assert (np.diff(late[0] - late[1], prepend=0) <= 4).all()
