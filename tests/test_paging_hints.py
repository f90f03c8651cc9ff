"""Prefetches to the device and to the host, between kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_driver import PAGES, Kernel, Wave
from test_paging_driver import hardware, setup_for
from test_paging_mechanics import MACHINE, space_of, whole

from traces.files.schema import PREFILL
from uvmsim.clocks import des_paging
from uvmsim.paging import tables as t
from uvmsim.paging.drive import run_paging
from uvmsim.paging.hints import with_prefetch
from uvmsim.policies.pages.registry import parse_pages

BLOCKS = 8


def run(hints, touched, chunks=16, policy="default"):
    """One kernel a touched block; hints as (before, first block, last block, to host)."""
    kernels = [Kernel([Wave([w])]) for w in whole(touched)]
    setup = setup_for(space_of(BLOCKS, chunks), kernels, [PREFILL], 51)
    k = setup.kernels
    for before, first, last, to_host in sorted(hints, reverse=True):
        k = with_prefetch(k, before, first * PAGES, last * PAGES, to_host)
    setup = dataclasses.replace(setup, kernels=k)
    hw = hardware(MACHINE)
    made = run_paging(setup, hw, parse_pages(policy), record=True)
    clock = des_paging.Machine(made.program, len(made.ends), hw.duplex)
    np.testing.assert_array_equal(clock.play(), made.ends)
    np.testing.assert_array_equal(clock.row_done, made.program.clock_ns)
    return made


def test_what_was_prefetched_does_not_fault():
    made = run([(0, 0, 4, False)], range(4))
    assert made.total(t.FAULTS) == made.total(t.BATCHES) == 0
    assert made.total(t.PAGES_IN) == 4 * PAGES
    assert made.total(t.SERVICES) == made.total(t.ACTIVATED) == 4


def test_room_made_in_advance_is_found_free():
    without = run([], [*range(4), *range(4, 8)], chunks=4)
    assert without.total(t.EVICTED) == 4
    made = run([(4, 0, 4, True)], [*range(4), *range(4, 8)], chunks=4)
    assert made.total(t.EVICTED) == 4  # all of them by the hint
    assert made.total(t.PAGES_OUT) == 4 * PAGES
    assert (made.tables.driver.chunk_of[4:] >= 0).all()


def test_a_range_larger_than_memory_keeps_its_end():
    made = run([(0, 0, 8, False)], [7], chunks=3)
    assert made.total(t.EVICTED) == 5
    np.testing.assert_array_equal(np.flatnonzero(made.tables.driver.chunk_of >= 0), [5, 6, 7])


hint = st.tuples(
    st.integers(0, 5), st.integers(0, BLOCKS - 1), st.integers(1, 4), st.booleans()
).map(lambda h: (h[0], h[1], min(h[1] + h[2], BLOCKS), h[3]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(hint, max_size=4), st.lists(st.integers(0, BLOCKS - 1), min_size=6, max_size=6),
    st.integers(1, 9),
)  # fmt: skip
def test_any_hints_keep_the_tables_and_the_clocks_equal(hints, touched, chunks):
    """`run_paging` asserts the tables; the SimPy clock must agree; every touched page was there."""
    made = run(hints, touched, chunks)
    plain = run([], touched, chunks)
    assert made.total(t.PAGES_IN) >= len(set(touched)) * PAGES
    assert plain.total(t.PAGES_IN) >= len(set(touched)) * PAGES


def test_a_hint_needs_a_kernel_and_a_range():
    with pytest.raises(ValueError, match="no kernel 9"):
        run([(9, 0, 1, False)], [0])
    with pytest.raises(ValueError, match="no range"):
        run([(0, 1, 1, False)], [0])
