"""The compiled paging driver against `naive_driver`: counters, memory, list order, every end time."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import defaultdict

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_driver import PAGES, Driver, Kernel, Machine, Space, Wave
from naive_pages import Twin
from naive_pages_moe import TWINS

from traces.files.schema import DECODE, PREFILL
from uvmsim.clocks import des_paging
from uvmsim.machine.hardware import Hardware, UvmCosts
from uvmsim.paging import tables as t
from uvmsim.paging.drive import Setup, run_paging
from uvmsim.paging.kernels import Kernels
from uvmsim.policies.pages.registry import parse_pages

POLICIES = (
    "default",
    "prefetch_always_max+eviction_mru",
    "prefetch_none",
    "prefetch_pid_tree+eviction_fifo_chance",
    "prefetch_stride:threshold=1:pages=3+eviction_lfu",
    "prefetch_stride_multiblock:blocks=3:strides=1:cpus=2",
)
"""Few: each pair of classes compiles for some seconds when its cache is cold."""
COUNTERS = {
    "batches": t.BATCHES, "faults": t.FAULTS, "services": t.SERVICES, "activated": t.ACTIVATED,
    "evicted": t.EVICTED, "in": t.PAGES_IN, "out": t.PAGES_OUT, "copies": t.COPIES,
    "zeroed": t.ZEROED, "remote": t.REMOTE, "migrated": t.MIGRATED, "entries": t.ENTRIES,
}  # fmt: skip


@functools.cache
def plain_hardware() -> Hardware:
    return Hardware.load("h100")


def hardware(m: Machine) -> Hardware:
    """Nothing of a preset's paging constants is left."""
    uvm = UvmCosts(
        sm_count=4, ctas_per_sm=2, batch_ns=m.batch, entry_ns=m.entry,
        first_touch_ns=m.first_touch, evict_ns=m.evict, copy_ns=m.copy, h2d_bytes_per_s=m.h2d,
        d2h_bytes_per_s=m.d2h, duplex=m.duplex, service_ns=m.service, push_ns=m.push,
        look_entries=m.look,
    )  # fmt: skip
    return dataclasses.replace(
        plain_hardware(), uvm=uvm, duplex_factor=m.permille / 1000,
        zero_copy_bytes_per_s=m.remote, pageable_h2d_bytes_per_s=m.explicit,
    )  # fmt: skip


def arrays(kernels: list[Kernel]) -> Kernels:
    waves = [w for k in kernels for w in k.waves]
    touches = [x for w in waves for x in w.touches]
    i64 = np.int64
    return Kernels(
        np.array([k.step for k in kernels], np.int32),
        np.array([k.compute for k in kernels], i64),
        np.cumsum([len(k.waves) for k in kernels], dtype=i64),
        np.array([k.copy_bytes for k in kernels], i64),
        np.zeros(len(kernels), np.int8),
        np.array([k.tail for k in kernels], i64),
        np.cumsum([len(w.touches) for w in waves], dtype=i64),
        np.array([w.burst for w in waves], np.int8),
        np.array([w.fetched for w in waves], np.int16),
        np.array([w.limit for w in waves], np.int32),
        np.array([w.looks for w in waves], np.int8),
        np.array([a for a, _ in touches], i64),
        np.array([b for _, b in touches], i64),
    )


def setup_for(space: Space, kernels: list[Kernel], phase: list[int], threshold: int) -> Setup:
    return Setup(
        arrays(kernels), np.array(space.n_pages, np.int32), np.array(space.tenant, np.int8),
        np.array(space.advice, np.uint8), np.array(space.populated, np.uint8), space.n_chunks,
        np.array(phase, np.uint8), np.array(space.boundaries, np.int64), threshold,
    )  # fmt: skip


def twins_of(text: str, world) -> tuple[Twin, Twin]:
    """The prefetch and the order twin of a policy's text."""
    made = []
    for part in text.split("+"):
        name, *options = part.split(":")
        values = {k: int(v) for k, v in (o.split("=") for o in options)}
        twin = TWINS[name](world, **values)
        for table in ("chance", "freq"):  # the other phase's policy may have let a frame in
            if hasattr(twin, table):
                setattr(twin, table, defaultdict(int))
        made.append(twin)
    return (made[0], made[0]) if len(made) == 1 else (made[0], made[1])


def used_list(d) -> list[int]:
    end, out = len(d.next) - 1, []
    at = int(d.next[end])
    while at != end:
        out.append(at)
        at = int(d.next[at])
    return out


def bits(d, block: int) -> set[int]:
    words = d.resident[block]
    return {p for p in range(PAGES) if int(words[p // 64]) >> (p % 64) & 1}


@st.composite
def machines(draw) -> Machine:
    ns = st.sampled_from([0, 1, 37, 500, 2000, 40_000])
    rate = st.sampled_from([10**8, 999_999_937, 13_700_000_000, 54_700_000_000])
    return Machine(
        *(draw(ns) for _ in range(5)), *(draw(rate) for _ in range(4)),
        duplex=draw(st.booleans()), permille=draw(st.sampled_from([1000, 760, 333])),
        threshold=draw(st.sampled_from([51, 51, 1, 25, 75, 100])),
        service=draw(st.sampled_from([0, 0, 11_000])), push=draw(st.sampled_from([0, 0, 390])),
        look=draw(st.sampled_from([0, 0, 1, 20, 146, 999])),
    )  # fmt: skip


@st.composite
def spaces(draw) -> Space:
    n = draw(st.integers(1, 40))
    whole = st.sampled_from([512, 512, 512, 512, 511, 100, 16, 1])
    advice = st.sampled_from([0, 0, 0, 0, 1, 2, 4, 8, 6])
    return Space(
        n_pages=[draw(whole) for _ in range(n)],
        tenant=[draw(st.integers(0, 3)) for _ in range(n)],
        advice=[draw(advice) for _ in range(n)],
        populated=[draw(st.sampled_from([True, True, True, False])) for _ in range(n)],
        n_chunks=draw(st.integers(1, 20)),
        boundaries=[0, n],
    )


def touch(rng: random.Random, space: Space) -> tuple[int, int]:
    """A run of pages: within a block, or over the ends of whole ones."""
    b = rng.randrange(len(space.n_pages))
    n = space.n_pages[b]
    first = rng.randrange(n)
    last = rng.choice([first, first + 1, min(first + 20, n), n, n])
    start = b * PAGES + first
    while last == PAGES and b + 1 < len(space.n_pages) and rng.random() < 0.6:
        b += 1
        last = min(space.n_pages[b], rng.choice([1, 200, PAGES, PAGES]))
    return start, b * PAGES + last


@st.composite
def programs(draw, space: Space) -> tuple[list[Kernel], list[int]]:
    """Kernels in steps, and each step's phase."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    phase = draw(st.lists(st.sampled_from([PREFILL, DECODE]), min_size=1, max_size=4))
    most = draw(st.sampled_from([2, 6, 20]))
    kernels = []
    for step in range(len(phase)):
        for _ in range(rng.randint(0, 3)):
            waves = [
                Wave(
                    [touch(rng, space) for _ in range(rng.randint(0, most))],
                    burst=rng.choice([1, 3, 16, 100]),
                    fetched=rng.choice([0, 0, 1, 12, 32, 999]),
                    limit=rng.choice([0, 0, 1, 3]),
                    looks=rng.choice([1, 1, 2, 12]),
                )
                for _ in range(rng.randint(0, 3))
            ]
            kernels.append(
                Kernel(
                    waves, step, rng.choice([0, 10, 3_000_000]),
                    rng.choice([0, 0, 0, 4096, 3_333_333]), rng.choice([0, 777]),
                )
            )  # fmt: skip
    return kernels, phase


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_driver_equals_the_slow_one(data):
    space, machine = data.draw(spaces(), "space"), data.draw(machines(), "machine")
    kernels, phase = data.draw(programs(space), "kernels")
    names = [data.draw(st.sampled_from(POLICIES)), data.draw(st.sampled_from(POLICIES))]
    if data.draw(st.booleans()):
        names[1] = names[0]
    specs = [parse_pages(n) for n in names]
    if names[0] == names[1]:
        specs[1] = specs[0]
    setup = setup_for(space, kernels, phase, machine.threshold)
    hw = hardware(machine)
    run = run_paging(setup, hw, specs[0], specs[1], record=True)

    slow = Driver(space, machine)
    first = twins_of(names[0], slow.world)
    second = first if names[0] == names[1] else twins_of(names[1], slow.world)
    counts = slow.run(kernels, lambda step: first if phase[step] == PREFILL else second)
    for step, expected in enumerate(counts):
        got = {name: int(run.counts[step, at]) for name, at in COUNTERS.items()}
        assert got == {name: expected[name] for name in COUNTERS}
    assert run.ends.tolist() == slow.ends
    d = run.tables.driver
    assert used_list(d) == slow.world.used
    assert {b: int(c) for b, c in enumerate(d.chunk_of) if c >= 0} == slow.chunk_of
    assert all(bits(d, b) == slow.resident[b] for b in range(len(space.n_pages)))
    assert run.program is not None
    clock = des_paging.Machine(run.program, len(kernels), machine.duplex)
    assert clock.play().tolist() == slow.ends
    assert clock.row_done == run.program.clock_ns.tolist()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_recording_changes_nothing_and_runs_repeat(data):
    space, machine = data.draw(spaces()), data.draw(machines())
    kernels, phase = data.draw(programs(space))
    setup = setup_for(space, kernels, phase, machine.threshold)
    hw, spec = hardware(machine), parse_pages("default")
    runs = [run_paging(setup, hw, spec, record=r) for r in (False, True, False)]
    for other in runs[1:]:
        assert np.array_equal(other.counts, runs[0].counts)
        assert np.array_equal(other.ends, runs[0].ends)
        assert used_list(other.tables.driver) == used_list(runs[0].tables.driver)
    assert runs[0].program is None
    program = runs[1].program
    assert program.n[0] == len(program.kind)
    assert (program.kind == t.ROW_SERVICE).sum() == runs[1].total(t.SERVICES)
    assert (program.kind == t.ROW_BATCH).sum() == runs[1].total(t.BATCHES)
    assert (program.victim[program.kind == t.ROW_SERVICE] >= 0).sum() == runs[1].total(t.EVICTED)


def test_every_frame_held_by_the_batch_does_not_stop_the_driver():
    """Block 0 has none, all frames belong to blocks that fault in the same batch."""
    n = 6
    space = Space([PAGES] * n, [0] * n, [0] * n, [True] * n, n_chunks=n - 1)
    machine = Machine(1, 1, 1, 1, 1, *[10**9] * 4, True, 1000, 51)
    half = [(b * PAGES, b * PAGES + 100) for b in range(1, n)]
    rest = [(b * PAGES + 100, b * PAGES + 200) for b in range(1, n)]
    kernels = [Kernel([Wave(half)]), Kernel([Wave([(0, 50), *rest])])]
    setup = setup_for(space, kernels, [PREFILL], 51)
    run = run_paging(setup, hardware(machine), parse_pages("prefetch_none"), record=True)
    slow = Driver(space, machine)
    twins = twins_of("prefetch_none", slow.world)
    counts = slow.run(kernels, lambda step: twins)
    assert run.total(t.EVICTED) == counts[0]["evicted"] > 0
    assert run.ends.tolist() == slow.ends


def test_remote_pages_behind_a_missing_one_are_counted():
    space = Space([PAGES] * 3, [0] * 3, [1, 0, 1], [True] * 3, n_chunks=2)
    machine = Machine(1, 1, 1, 1, 1, *[10**9] * 4, True, 1000, 51)
    setup = setup_for(space, [Kernel([Wave([(500, 2 * PAGES + 7)])])], [DECODE], 51)
    run = run_paging(setup, hardware(machine), parse_pages("default"), record=True)
    assert run.total(t.REMOTE) == 12 + 7
    assert run.total(t.PAGES_IN) == PAGES
