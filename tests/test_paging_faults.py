"""What the fault buffer and the handler's clock do, case by case, each number worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from naive_driver import PAGES, Driver, Kernel, Machine, Space, Wave
from test_paging_driver import hardware, setup_for, twins_of, used_list

from traces.errors import InputError
from traces.files.schema import PREFILL
from uvmsim.machine.hardware import Hardware
from uvmsim.paging import tables as t
from uvmsim.paging.drive import run_paging
from uvmsim.policies.pages.registry import parse_pages

RATE = 4096 * 10**6
"""Bytes a second: a page takes 1,000 ns."""
MACHINE = Machine(
    batch=50_000, entry=700, first_touch=0, evict=0, copy=0, h2d=RATE, d2h=RATE, remote=RATE,
    explicit=RATE, duplex=False, permille=500, threshold=51,
)  # fmt: skip


def run(kernels, blocks=4, chunks=4, policy="prefetch_none", **machine):
    """One run, held against the slow driver."""
    space = Space([PAGES] * blocks, [0] * blocks, [0] * blocks, [True] * blocks, chunks)
    m = dataclasses.replace(MACHINE, **machine)
    setup = setup_for(space, kernels, [PREFILL], 51)
    got = run_paging(setup, hardware(m), parse_pages(policy), record=True)
    slow = Driver(space, m)
    twins = twins_of(policy, slow.world)
    slow.run(kernels, lambda step: twins)
    assert got.ends.tolist() == slow.ends
    assert used_list(got.tables.driver) == slow.world.used
    return got


def one(touches, **wave) -> list[Kernel]:
    return [Kernel([Wave(touches, **wave)])]


def test_duplicates_cost_what_first_entries_do():
    alone = run(one([(0, 3)]))
    shared = run(one([(0, 3), (0, 3), (1, 3)]))
    assert (alone.total(t.FAULTS), alone.total(t.ENTRIES)) == (3, 3)
    assert (shared.total(t.FAULTS), shared.total(t.ENTRIES)) == (3, 8)
    assert alone.ends[-1] == 50_000 + 3 * 700 + 3 * 1000
    assert shared.ends[-1] == 50_000 + 8 * 700 + 3 * 1000


def test_a_batch_has_256_entries_and_fewer_where_fewer_are_in_the_buffer():
    assert run(one([(0, 300)], burst=100)).total(t.BATCHES) == 2
    assert run(one([(0, 300)], burst=100, fetched=32)).total(t.BATCHES) == 10
    assert run(one([(0, 300)], burst=100, fetched=999)).total(t.BATCHES) == 2


def test_host_pages_are_mapped_for_the_copy_engines_once():
    """Blocks 0 and 1 take turns in one frame; each is mapped at its first visit only."""
    visits = [Kernel([Wave([(b * PAGES, b * PAGES + 1)])]) for b in (0, 1, 0, 1)]
    fresh, known = (run(visits, 2, 1, first_touch=ns) for ns in (9_000, 0))
    assert fresh.total(t.EVICTED) == 3
    assert fresh.ends[-1] - known.ends[-1] == 2 * 9_000


def test_a_copy_in_waits_for_the_way_out_of_its_frame():
    fill, other = (Kernel([Wave([(b * PAGES, b * PAGES + 1)])]) for b in (0, 1))
    for duplex in (False, True):
        got = run([fill, other], 2, 1, "prefetch_always_max", duplex=duplex)
        first, second = got.ends.tolist()
        assert first == 50_000 + 700 + 512_000
        assert second - first == 50_000 + 700 + 2 * 512_000


def test_ways_in_and_out_of_a_batch_side_by_side():
    """Two evicting blocks: one engine takes four copies in a row, two engines overlap the second
    block's way out with the first one's way in, both then at half speed."""
    fill = Kernel([Wave([(0, 1), (PAGES, PAGES + 1)])])
    swap = Kernel([Wave([(2 * PAGES, 2 * PAGES + 1), (3 * PAGES, 3 * PAGES + 1)])])
    ns = {}
    for duplex in (False, True):
        got = run([fill, swap], 4, 2, "prefetch_always_max", duplex=duplex)
        ns[duplex] = int(got.ends[1] - got.ends[0]) - 50_000 - 2 * 700
    assert ns[False] == 4 * 512_000
    assert ns[True] == 512_000 + 1_024_000 + 1_024_000


def test_a_wave_comes_back_for_what_was_evicted_meanwhile():
    """Block 0 is there, 1 and 2 come in over it: the second strip misses block 0 again."""
    fill = Kernel([Wave([(0, 1), (3 * PAGES, 3 * PAGES + 1)], limit=1)])
    touches = [(0, 1), (PAGES, PAGES + 1)]
    once, twice = (run([fill, Kernel([Wave(touches, looks=n)])], 4, 2) for n in (1, 2))
    assert once.total(t.ACTIVATED) == 3
    assert twice.total(t.ACTIVATED) == 4
    many = run([fill, Kernel([Wave(touches, looks=12)])], 4, 2)
    assert many.counts.tolist() == twice.counts.tolist(), "nothing more is lost"


def test_the_next_block_of_a_batch_may_take_the_last_ones_frame():
    """With every new chunk at the head, a batch keeps its last block only, and the rest faults anew;
    in the driver's own order nothing of the kind happens."""
    fill = Kernel([Wave([(4 * PAGES + i * PAGES, 4 * PAGES + i * PAGES + 1) for i in range(3)])])
    touches = [(b * PAGES, b * PAGES + 1) for b in range(3)]
    plain = run([fill, *one(touches)], 7, 3)
    head = run([fill, *one(touches)], 7, 3, "prefetch_none+eviction_lfu")
    assert plain.total(t.BATCHES) == 2 and plain.total(t.ACTIVATED) == 3 + 3
    assert head.total(t.BATCHES) == 1 + 3
    assert head.total(t.ACTIVATED) == 3 + 3 + 2 + 1


def test_a_new_chunk_is_not_accessed_at_the_service_that_allocates_it():
    """It is pinned then: MRU, which sends what is accessed to the head, leaves it at the tail."""
    visits = [Kernel([Wave([(b * PAGES, b * PAGES + 1)])]) for b in (0, 1, 2)]
    again = Kernel([Wave([(2 * PAGES + 9, 2 * PAGES + 10)])])
    policy = "prefetch_none+eviction_mru"
    for kernels, order in ((visits, [0, 1, 2]), ([*visits, again], [2, 0, 1])):
        d = run(kernels, policy=policy).tables.driver
        assert [int(d.block_of[c]) for c in used_list(d)] == order


def test_a_warp_gets_on_where_a_batch_helps_nobody():
    """One frame, a touch over two blocks: the second takes the frame of the first in every batch."""
    got = run(one([(PAGES - 2, PAGES + 2)], burst=100), 2, 1)
    assert got.total(t.FAULTS) >= 4
    assert got.total(t.BATCHES) < 10


def test_neighbours_overtake():
    """Of four touches of which one fills a batch, the first batch is the second one's: the buffer is
    not in the order of the SMs."""
    touches = [(b * PAGES, b * PAGES + 100) for b in range(4)]
    program = run(one(touches, burst=100, fetched=100), 4, 4).program
    assert program is not None
    served = program.block[program.kind == t.ROW_SERVICE].tolist()
    assert served[0] == 1 and sorted(served) == [0, 1, 2, 3] != served


@pytest.mark.parametrize("key", ["page_ns", "map_ns", "replay_ns", "burst_pages"])
def test_a_constant_of_before_names_its_heir(tmp_path, key):
    value = '"1 us"' if key.endswith("_ns") else "24"
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "rtx5090"\n[uvm.{key}]\nvalue = {value}\nsource = "mine"\n')
    with pytest.raises(InputError, match=f"{key} is no longer a constant; in its place: ") as e:
        Hardware.load(str(path))
    assert "\n" not in str(e.value)
