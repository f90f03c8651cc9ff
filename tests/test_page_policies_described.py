"""gpu_ext's programs by what their descriptions say, a case each, beside the twins of `naive_pages`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_page_policies import BOUNDARIES, N_BLOCKS, N_CHUNKS, Op, Subject, used
from test_paging_driver import hardware, setup_for
from test_paging_mechanics import MACHINE, abab, page_run, space_of

from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL
from uvmsim.paging import tables as t
from uvmsim.paging.drive import run_paging
from uvmsim.policies.pages import base
from uvmsim.policies.pages.base import PAGES, PageContext
from uvmsim.policies.pages.registry import parse_pages

SAME = {
    "prefetch_always_max": [
        "prefetch_always_max_cycle_moe",
        "prefetch_max_passive_mru",
        "prefetch_template_belady",
        "prefetch_reuse_dist",
        "prefetch_always_max_xcoord",
        "prefetch_always_max_qos",
        "prefetch_llama_phase:decode=max",
    ],
    "default": ["eviction_cycle_moe"],
    "prefetch_cross_block_v2:evict=lru": [
        "prefetch_cross_block_v2:evict=passive_mru",
        "prefetch_cross_block_v2:evict=cycle_moe",
        "prefetch_cooperative",
        "prefetch_cooperative:ring=100:radius=100",
    ],
}


def subject(text: str) -> Subject:
    spec = parse_pages(text)
    return Subject(spec.order if text.startswith("eviction") else spec.prefetch)


def fault(s: Subject, block: int, page: int = 0, wait: int = 0):
    """(what the hook answered, region) of a fault in a new batch ``wait`` ns later."""
    return s.run(Op(block, page, wait, True, False, 0))[0]


def asked(s: Subject, block: int, same_batch: bool = False, wait: int = 0) -> list[int]:
    """Blocks waiting to be migrated after a fault in ``block``."""
    return s.run(Op(block, 0, wait, True, False, 0, same_batch=same_batch))[-1]


def serve(s: Subject, block: int) -> list[int]:
    """Blocks from the head to the tail after a service of ``block``."""
    s.run(Op(block, 0, 0, False, True, 0))
    return [int(s.d.block_of[c]) for c in used(s.d)]


def test_windows_beside_a_fault():
    def window(text, page):
        region = fault(subject(f"prefetch_direction:{text}"), 3, page)[1]
        return min(region), max(region)

    assert window("direction=backward:pages=5", 100) == (95, 99)
    assert window("direction=around:pages=16", 100) == (84, 115)
    assert window("direction=around:pages=16", 10) == (0, 25)
    assert window("direction=forward:pages=5", 100) == (101, 105)
    assert window("direction=backward", 100) == (0, 99)


def test_a_stride_of_zero_is_as_if_nothing_happened():
    s = subject("prefetch_stride")
    pages = [10, 13, 13, 16, 16, 16, 19]
    found = [sorted(fault(s, 3, p)[1]) for p in pages]
    assert found == [[], [], [], [], [], [], [22, 23]]


def test_a_stride_too_wide_only_costs_confidence():
    s = subject("prefetch_stride")
    for page in (10, 13, 16, 19, 22):
        fault(s, 3, page)  # confidence 3
    assert fault(s, 3, 222) == (base.BYPASS, set())  # 2, and no prefetch although that is enough
    assert fault(s, 3, 225)[1] == {228, 229}  # stride 3 is still the one expected: 3
    assert fault(s, 3, 400) == (base.BYPASS, set())


@pytest.mark.parametrize(("cpus", "first"), [(1, 3), (2, 5), (3, 7)])
def test_counts_are_kept_by_cpu(cpus, first):
    """The handler takes the CPUs in turn: one of them has to count a frame three times."""
    s = subject(f"eviction_cycle_moe:cpus={cpus}")
    for block in range(N_CHUNKS):
        serve(s, block)
    s.s.uses[:] = 0
    moved = []
    for batch in range(first):
        s.d.n[base.BATCH], s.d.n[base.CURRENT] = batch, 0
        base.move_head(s.d, 0)
        s.call("block_activate", 0, current=0)
        moved.append(used(s.d)[-1] == 0)
    assert moved == [False] * (first - 1) + [True]


@pytest.mark.parametrize(("plain", "text"), [(a, b) for a, same in SAME.items() for b in same])
def test_policies_that_do_nothing_beside_another(plain, text):
    """What they ask for is the driver's own move, to the tail, or is asked at accesses, of which whole
    blocks have none."""
    runs = [page_run(abab(12, 4), space_of(12, 9), policy) for policy in (plain, text)]
    assert runs[0].total(t.EVICTED) > 0
    assert (runs[0].counts == runs[1].counts).all()
    assert runs[0].ends.tolist() == runs[1].ends.tolist()


def test_a_counter_goes_when_its_chunk_is_about_to_leave():
    s = subject("eviction_freq_pid_decay:high=3:low=3:other=3")
    for block in (0, 1, 1, 2, 3):  # newcomers go before the tail here, see `link_before_tail`
        serve(s, block)
    # Block 1 was accessed twice and is at the head. 4 gets its frame: a first access, not a third.
    assert serve(s, 4) == [2, 3, 4, 0]


@pytest.mark.parametrize(
    "text", ["prefetch_cross_block_v2", "prefetch_throttled_xb", "prefetch_cooperative"]
)
def test_a_request_of_the_same_batch_is_overwritten(text):
    s = subject(text)
    assert [asked(s, b, same_batch=True) for b in (2, 4, 5, 9)] == [[], [], [6], [10]]
    assert asked(s, 10) == [11]


def test_few_faults_in_a_millisecond_may_ask_for_the_next_block():
    s = subject("prefetch_throttled_xb")
    for _ in range(47):
        asked(s, 2)
    assert [asked(s, b) for b in (3, 4, 5)] == [[], [5], [6]]  # 48, 49, 50
    assert asked(s, 6) == []  # the 51st
    assert asked(s, 7, wait=1_000_000) == [8]


def test_confidence_widens_what_a_stride_brings():
    s = subject("prefetch_stride_multiblock")
    s.d = s.d._replace(chunk_of=np.full(100, -1, np.int32), wanted=np.zeros(16, np.int64))

    def ask(block):
        s.d.n[base.ASKED] = 0
        s.call("page_prefetch", block, 0, np.array([0, 0, 0, PAGES], np.int64))
        return s.d.wanted[: s.d.n[base.ASKED]].tolist()

    assert [len(ask(3 * i)) for i in range(10)] == [0, 0, 0, 0, 1, 3, 4, 6, 6, 6]
    assert ask(30) == [33, 36, 39, 42, 45, 48]
    assert ask(90) == []  # confidence 10 - 2
    assert [len(ask(b)) for b in (91, 92, 93)] == [0, 0, 0]  # 6, 4, 2
    assert ask(94) == [95, 96]  # four equal ones: 3


def test_a_token_begins_where_addresses_fall_back_after_ten_faults():
    s = subject("prefetch_proactive_layer")
    first = BOUNDARIES
    assert asked(s, first[0]) == [4, 5]
    assert asked(s, first[1]) == [7, 8]
    assert asked(s, first[0]) == asked(s, first[1]) == []  # four faults: no token has begun
    for _ in range(7):
        assert asked(s, first[1]) == []
    assert asked(s, first[0]) == [4, 5]  # after eleven
    assert asked(s, first[3]) == [2, 3]  # after the last layer the first


def test_many_faults_make_it_greedy():
    s = subject("prefetch_serving_adaptive")
    assert [fault(s, 2)[0] for _ in range(51)] == [base.DEFAULT] * 50 + [base.BYPASS]
    assert fault(s, 2)[1] == set(range(PAGES))
    assert fault(s, 2, wait=10_000_000)[0] == base.DEFAULT


def test_the_others_pay_while_the_favoured_process_faults_too_often():
    s = subject("prefetch_always_max_qos")
    high, low = 0, 1  # blocks of the tests' processes 0 and 1

    def period(faults):
        """What a low fault gets after 100 ms in which the favoured process faulted."""
        for _ in range(faults):
            assert fault(s, high)[0] == base.BYPASS
        return fault(s, low, wait=100_000_000)[0]

    assert period(20) == base.BYPASS  # 200 a second is the target
    assert period(30) == base.DEFAULT  # integral 10 x 100
    assert s.s.h[2] == 1000
    assert period(20) == base.DEFAULT  # three quarters of it are left
    assert s.s.h[2] == 750
    assert period(12) == base.BYPASS  # 80 too few: 563 - 800


@pytest.mark.parametrize(
    ("mode", "plain"),
    [
        ("max", "prefetch_always_max"),
        ("around:radius=9", "prefetch_direction:direction=around:pages=9"),
        ("default", "default"),
        ("forward", "prefetch_direction"),
    ],
)
def test_phases_are_two_policies(mode, plain):
    kernels = [dataclasses.replace(k, step=i) for i, k in enumerate(abab(12, 3))]
    setup = setup_for(
        space_of(12, 9), kernels, [PREFILL, PREFILL, DECODE, DECODE, PREFILL, DECODE], 51
    )
    one = parse_pages(f"prefetch_llama_phase:decode={mode}")
    two = parse_pages("prefetch_always_max"), parse_pages(plain)
    runs = [run_paging(setup, hardware(MACHINE), *which) for which in ((one,), two)]
    assert (runs[0].counts == runs[1].counts).all()
    assert runs[0].ends.tolist() == runs[1].ends.tolist()
    assert (runs[0].counts[:, t.SERVICES] > 0).all()


@pytest.mark.parametrize(
    "setting",
    [
        "prefetch_cooperative:ring=0",
        f"prefetch_cooperative:ring={1 << 62}",
        f"prefetch_throttled_xb:window_us={1 << 70}",
        f"prefetch_throttled_xb:max_faults={1 << 70}",
        "prefetch_stride_multiblock:blocks=7",
        "prefetch_proactive_layer:ahead=4",
        "prefetch_llama_phase:radius=513",
        "prefetch_always_max_qos:decay=63",
        "eviction_cycle_moe:cpus=0",
        f"eviction_cycle_moe:t1={1 << 70}",
        f"eviction_freq_pid_decay:low={1 << 70}",
        "prefetch_stride:pages=513",
        f"prefetch_stride_lfu:threshold={1 << 70}",
        f"prefetch_reuse_dist:near_ms={1 << 62}",
        "prefetch_direction:pages=-1",
    ],
)
def test_a_number_out_of_range_is_one_line(setting):
    name, _, key = setting.partition(":")
    policy = parse_pages(setting).order
    ctx = PageContext(N_BLOCKS, N_CHUNKS, 1, np.array(BOUNDARIES, np.int64), 0)
    with pytest.raises(InputError, match=rf"^policy '{name}': {key}; expected [\d,]+ to [\d,]+$"):
        policy.state(ctx)
