"""One run of the paging driver: jobs in, counters and times out."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL
from uvmsim.core.bind import Bound, explain
from uvmsim.machine.hardware import Hardware, UvmCosts
from uvmsim.paging import tables as t
from uvmsim.paging.bind import bind
from uvmsim.paging.kernels import Kernels
from uvmsim.paging.layout import PAGE
from uvmsim.paging.tables import Costs, Program, States, Tables
from uvmsim.policies.pages.base import PHASE, REFUSED, PageContext, PagePolicy
from uvmsim.policies.pages.registry import PagePolicySpec

BATCH_ENTRIES = 256
"""uvm_perf_fault_batch_count"""
THRESHOLD = 51
"""uvm_perf_prefetch_threshold"""
MIGRATE_REQUESTS = 1024
"""Blocks a policy can ask for ahead in one batch."""
PICO = 10**12


@dataclass(frozen=True)
class Setup:
    """What the driver runs on: memory of ``n_chunks`` frames, blocks, kernels, advice."""

    kernels: Kernels
    n_pages: np.ndarray
    """int32 [B]"""
    tenant_of: np.ndarray
    """int8 [B]"""
    advice: np.ndarray
    """uint8 [B], see `uvmsim.paging.tables`."""
    populated: np.ndarray
    """uint8 [B]: blocks whose data lies in host memory at the start."""
    n_chunks: int
    phase: np.ndarray
    """uint8 [steps]"""
    boundaries: np.ndarray
    """int64: see `PageContext`."""
    threshold: int = THRESHOLD
    seed: int = 0


@dataclass
class PagedRun:
    """What happened. S steps, K kernels."""

    counts: np.ndarray
    """int64 [S, COUNTERS], places as in `uvmsim.paging.tables`."""
    ends: np.ndarray
    """int64 [K]: when each kernel ended, ns."""
    program: Program | None
    tables: Tables
    notes: list[str] = field(default_factory=list)

    def total(self, counter: int) -> int:
        """One counter over all steps."""
        return int(self.counts[:, counter].sum())


def costs_of(hw: Hardware, threshold: int) -> Costs:
    """The driver's constants on a machine. Raises `InputError` where it has none."""
    u = uvm_of(hw)
    # Experts copied explicitly come from a mapped file.
    explicit = hw.link_bytes_per_s("h2d", pinned=False)
    return Costs(
        u.batch_ns, u.entry_ns, u.first_touch_ns, u.evict_ns, u.copy_ns,
        round(PAGE * PICO / u.h2d_bytes_per_s), round(PAGE * PICO / u.d2h_bytes_per_s),
        round(PAGE * PICO / hw.zero_copy_bytes_per_s), round(1024 * PICO / explicit),
        int(u.duplex), round(1000 * hw.duplex_factor), BATCH_ENTRIES, threshold,
        u.service_ns, u.look_entries, u.push_ns,
    )  # fmt: skip


def uvm_of(hw: Hardware) -> UvmCosts:
    """The paging constants of a machine; raises `InputError` where it has none."""
    if hw.uvm is None:
        raise InputError(
            f"hardware {hw.name} has no [uvm] constants for paging by the driver; "
            "take another machine (`uvmsim hardware`), or add them to its TOML file"
        )
    return hw.uvm


def run_paging(
    setup: Setup,
    hw: Hardware,
    prefill: PagePolicySpec,
    decode: PagePolicySpec | None = None,
    *,
    record: bool = False,
) -> PagedRun:
    """Run all kernels; ``decode`` is the policy of decode steps where it is another one.

    ``record``: keep the program, for the SimPy clock and for export. Each phase's policy has its own
    state, and the driver's memory is one.
    """
    decode = decode or prefill
    if not record:
        return _run(setup, hw, prefill, decode, 0)
    counted = _run(setup, hw, prefill, decode, -1).program
    assert counted is not None
    return _run(setup, hw, prefill, decode, int(counted.n[0]) or -1)


def _run(
    setup: Setup, hw: Hardware, prefill: PagePolicySpec, decode: PagePolicySpec, rows: int
) -> PagedRun:
    """``rows``: of the program, 0 for none, -1 to count them."""
    made = _tables(setup, hw, max(rows, 0))
    ctx = PageContext(
        len(setup.n_pages), setup.n_chunks, int(setup.tenant_of.max(initial=0)) + 1,
        setup.boundaries, setup.seed,
    )  # fmt: skip
    notes: list[str] = []
    loaded: dict[int, tuple[Bound, States]] = {}
    for phase, spec in ((PREFILL, prefill), (DECODE, decode)):
        same = phase == DECODE and spec is prefill
        loaded[phase] = (
            loaded[PREFILL] if same else _load(spec, ctx, rows != 0, made, setup.kernels)
        )
    for lo, hi, phase in _segments(setup.phase[setup.kernels.step]):
        bound, states = loaded[phase]
        spec = prefill if phase == PREFILL else decode
        made.driver.n[PHASE] = phase
        try:
            bound.run(made, states, setup.kernels, lo, hi)
        except NumbaError as err:
            if not spec.files:
                raise
            raise InputError(
                f"policy {spec.name}: does not compile: {explain(err)}; hooks are Numba's subset of "
                "Python (docs/page-policies.md)"
            ) from err
        except Exception as err:
            if not spec.files:
                raise
            raise InputError(f"policy {spec.name}: {_why(spec, states, err)}") from err
    for phase, spec in ((PREFILL, prefill), (DECODE, decode)):
        for told in _notes(spec, loaded[phase][1]):
            if told not in notes:
                notes.append(told)
    if made.driver.n[REFUSED]:
        notes.append(
            f"{int(made.driver.n[REFUSED]):,} moves of other chunks than the current one, or of free "
            "ones, were refused"
        )
    check(made)
    return PagedRun(made.counts, made.ends, made.time.program if rows else None, made, notes)


def _parts(spec: PagePolicySpec, states: States) -> list[tuple[PagePolicy, Any]]:
    """A policy, or two, with their states."""
    parts = [(spec.prefetch, states.prefetch), (spec.order, states.order)]
    return parts[:1] if spec.order is spec.prefetch else parts


def _why(spec: PagePolicySpec, states: States, err: Exception) -> str:
    """What an error of a hook means to the policy whose it is."""
    plain = f"{type(err).__name__}: {err}"
    told = (policy.explain(state, err) for policy, state in _parts(spec, states))
    return next((t for t in told if t != plain), plain)


def _notes(spec: PagePolicySpec, states: States) -> list[str]:
    return [n for policy, state in _parts(spec, states) for n in policy.notes(state)]


def _tables(setup: Setup, hw: Hardware, rows: int) -> Tables:
    """A driver at rest, with room for ``rows`` rows of program."""
    k = setup.kernels
    widest = int(np.diff(k.touch_hi, prepend=0).max(initial=1))
    return Tables(
        t.new_driver(setup.n_pages, setup.tenant_of, setup.n_chunks, MIGRATE_REQUESTS),
        t.new_pages(setup.advice, setup.populated, setup.n_chunks),
        t.new_scratch(BATCH_ENTRIES, widest),
        t.Time(costs_of(hw, setup.threshold), np.zeros(4, np.int64), t.new_program(rows)),
        np.zeros((len(setup.phase), t.COUNTERS), np.int64),
        np.zeros(len(k.step), np.int64),
    )


def _load(
    spec: PagePolicySpec, ctx: PageContext, record: bool, made: Tables, kernels: Kernels
) -> tuple[Bound, States]:
    """The driver with a policy's hooks, and the states of its two halves."""
    classes = type(spec.prefetch), type(spec.order)
    try:
        sp = spec.prefetch.state(ctx)
        sl = sp if spec.order is spec.prefetch else spec.order.state(ctx)
    except Exception as err:
        if not spec.files or isinstance(err, InputError):
            raise
        raise InputError(f"policy {spec.name}, state(): {type(err).__name__}: {err}") from err
    states = States(sp, sl)
    return bind(*classes, record, (made, states, kernels)), states


def _segments(phase: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of kernels of one phase."""
    cuts = np.flatnonzero(np.diff(phase)) + 1
    edges = [0, *cuts.tolist(), len(phase)]
    return [(lo, hi, int(phase[lo])) for lo, hi in pairwise(edges) if hi > lo]


def check(made: Tables) -> None:
    """Invariants of a finished run, asserted on real work too (INVARIANTS.md)."""
    d = made.driver
    held = np.flatnonzero(d.chunk_of >= 0)
    if not np.array_equal(d.block_of[d.chunk_of[held]], held):
        raise AssertionError("block table and chunk table disagree")
    if (d.n_resident[d.chunk_of < 0] != 0).any():
        raise AssertionError("pages are resident without a chunk")
    bits = np.unpackbits(d.resident.view(np.uint8), axis=1).sum(axis=1)
    if not np.array_equal(bits, d.n_resident):
        raise AssertionError("resident pages and their count disagree")
    total = made.counts.sum(axis=0)
    if total[t.ACTIVATED] - total[t.EVICTED] != len(held):
        raise AssertionError("chunks in less chunks out are not the chunks held")
    end = len(d.next) - 1
    listed, at = 0, int(d.next[end])
    while at != end and listed <= len(d.block_of):
        listed, at = listed + 1, int(d.next[at])
    if listed != len(held):
        raise AssertionError("the used list does not hold the chunks in use")
