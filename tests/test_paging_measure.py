"""Measuring a paging driver: a stand-in with known constants gives them back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_paging import FakePaging, brought, pieces
from hypothesis import given as supposing
from hypothesis import settings
from hypothesis import strategies as st

from replay.calibrate.profile import Measurements, to_toml
from replay.paging.counts import (
    PREFETCH,
    arrived_by_records,
    batch_rows,
    counts,
    inward,
    page_of,
    piece_histogram,
    wholeness,
)
from replay.paging.fit import fit
from replay.paging.microbench import measure, one
from replay.paging.service_check import check
from replay.paging.stage import paging_tables
from replay.paging.touches import PAGE, PAGES, Touches, patterns
from replay.paging.tree_check import Blocks, Brought, given_faults, observed, serve
from replay.paging.uvm_table import CROWDED, OWN, SHARED, table
from replay.paging.validation.traced import partial_blocks, seen_of
from traces.faults import open_faults
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.hardware_spec import UvmSpec

TRUE = {
    "batches": 21000.0, "entries": 1100.0, "pages": 300.0, "services": 5200.0,
    ("pieces", "huge"): 1100.0, ("moved", "huge"): 80.0,
    ("pieces", "ordered"): 900.0, ("moved", "ordered"): 160.0,
}  # fmt: skip
HOSTS = ("huge", "ordered")
SAMPLE = Path(__file__).parents[1] / "experiments" / "paging_driver" / "sample.faults.arrow"


def device(**more) -> FakePaging:
    return FakePaging(64 * PAGES, 132, TRUE, **more)


def given(seen, touches):
    """What the tree brings given the faults of a run of ``touches``."""
    blocks = Blocks()
    for first, last in touches.placed.tolist() if touches.placed is not None else ():
        blocks.place(seen.base // PAGE + first, seen.base // PAGE + last)
    batch = seen.faults["batch"].astype(np.int64)
    return given_faults(batch, page_of(seen.faults["address"]), blocks=blocks)


@pytest.fixture(scope="module")
def rows():
    return measure(device(), hosts=HOSTS, repetitions=1)


def test_the_fit_returns_the_constants(rows):
    found = fit(rows)
    for name in ("batches", "entries", "pages", "services"):
        assert found.shared[name] == pytest.approx(TRUE[name], rel=1e-6)
    for host in HOSTS:
        for name in ("pieces", "moved"):
            assert found.own[host][name] == pytest.approx(TRUE[name, host], rel=1e-6)
    assert found.error["worst"] < 1e-9
    assert found.time(rows[0]["counts"], "huge") == pytest.approx(rows[0]["median_ns"] - 2000)


def test_noise_moves_them_little_and_the_spread_says_how_much():
    found = fit(measure(device(noise=0.01), hosts=HOSTS, repetitions=3))
    assert found.shared["batches"] == pytest.approx(TRUE["batches"], rel=0.05)
    assert found.own["huge"]["moved"] == pytest.approx(TRUE["moved", "huge"], rel=0.15)
    for name, (low, high) in found.spread.items():
        assert low <= high, name
    low, high = found.spread["batches"]
    assert low * 0.97 < TRUE["batches"] < high * 1.03


def test_too_few_rows_are_refused(rows):
    with pytest.raises(ValueError, match="too few"):
        fit(rows[:3])


def test_counts_against_a_slow_count():
    d = device()
    for touches in patterns(d.pages, d.sms):
        _, seen = d.record(touches)
        by_batch: dict[int, set[int]] = {}
        for f in seen.faults:
            by_batch.setdefault(int(f["batch"]), set()).add(int(f["address"]) // PAGE)
        c = counts(seen)
        assert c.batches == len(by_batch) and c.entries == len(seen.faults)
        assert c.pages == sum(len(p) for p in by_batch.values())
        assert c.services == sum(len({q // PAGES for q in p}) for p in by_batch.values())
        assert c.moved == sum(int(m["bytes"]) // PAGE for m in seen.moves)
        assert c.demanded <= c.pages
        found = sum(sum(h.values()) for h in piece_histogram(seen).values())
        assert found == c.pieces == len(seen.moves)
        b = batch_rows(seen)
        assert b["entries"].sum() == c.entries and b["services"].sum() == c.services
        assert (b["replay_ns"] >= b["last_ns"]).all()


def test_what_is_touched_is_what_arrives_and_records_say_so():
    d = device()
    for touches in patterns(d.pages, d.sms):
        _, seen = d.record(touches)
        assert seen.arrived is not None and seen.arrived[touches.distinct].all()
        there = arrived_by_records(seen, d.pages)
        for first, last in touches.placed.tolist() if touches.placed is not None else ():
            there[first:last] = True
        assert (there == seen.arrived).all()
        whole = wholeness(seen)
        if touches.placed is None:
            assert whole["moved_bytes"] == whole["arrived_bytes"] and not whole["lost"]


def test_lost_events_are_seen():
    d = device(lost=4)
    _, seen = d.record(patterns(d.pages, d.sms)[1])
    whole = wholeness(seen)
    assert whole["lost"] == {"migration": 4}
    assert whole["moved_bytes"] < whole["arrived_bytes"]


def test_patterns_are_what_they_say():
    named = {t.name: t for t in patterns(64 * PAGES, 132)}
    assert len(named) == len(patterns(64 * PAGES, 132))
    assert len(named["one page"].distinct) == 1
    assert named["chain, one page a block"].blocks == 32
    assert named["132 SMs on one page"].pages.shape == (132, 1)
    assert len(named["132 SMs on one block"].distinct) == PAGES
    assert len(named["all pages, at random, wide"].distinct) == 64 * PAGES
    assert all(t.distinct.max() < 64 * PAGES for t in named.values())


@settings(max_examples=60)
@supposing(
    st.lists(st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=40), min_size=1, max_size=6),
    st.sampled_from([1, 25, 51, 75, 100]),
)
def test_the_tree_against_its_definition(batches, threshold):
    blocks, out, resident = Blocks(), Brought(), np.zeros(PAGES, bool)
    want: list[tuple[int, bool]] = []
    for pages in batches:
        faulted = np.zeros(PAGES, bool)
        faulted[pages] = True
        faulted &= ~resident  # uvm_va_block_page_is_gpu_authorized: passed over
        come = (brought(resident, faulted, threshold) | faulted) & ~resident
        want += [(n, own) for _, n, own in pieces(come, faulted)]
        resident |= come
        serve(blocks, 7, np.unique(pages), threshold, out)
    got = np.unpackbits(blocks.of(7).view(np.uint8), bitorder="little").astype(bool)
    assert (got == resident).all()
    assert out.pieces.tolist() == [sum(own for _, own in want), sum(not own for _, own in want)]
    assert out.pages.tolist() == [
        sum(n for n, own in want if own), sum(n for n, own in want if not own)
    ]  # fmt: skip


def test_given_the_faults_all_comes_out_exactly():
    d = device()
    for touches in patterns(d.pages, d.sms):
        _, seen = d.record(touches)
        m = inward(seen)
        made, _, services = given(seen, touches)
        came = observed(m["address"], m["bytes"].astype(np.int64), m["cause"] == PREFETCH)
        assert made.to_json() == came.to_json()
        assert services == counts(seen).services


def test_services_are_held_against_their_own_copies_and_missing_ones_are_counted():
    d = device()
    for touches in patterns(d.pages, d.sms):
        _, seen = d.record(touches)
        base, placed = seen.base // PAGE, touches.placed
        blocks = Blocks()
        for first, last in placed.tolist() if placed is not None else ():
            blocks.place(base + first, base + last)
        found = check(seen, blocks)
        assert found.recorded == found.equal == found.services == counts(seen).services
        assert found.model.to_json() == found.driver.to_json()


def test_a_channels_worth_of_copies_without_record_is_known_to_the_page():
    d = device()
    _, whole = d.record(next(t for t in patterns(d.pages, d.sms) if t.name.startswith("stride")))
    begins = np.unique(whole.moves["begin"])
    kept = whole.moves[~np.isin(whole.moves["begin"], begins[1:3])]
    found = check(replace(whole, moves=kept))
    lost = int(whole.moves["bytes"].sum() - kept["bytes"].sum())
    assert lost and int(found.missing.pages.sum()) * PAGE == lost
    assert found.equal == found.recorded < found.services
    found = check(replace(whole, moves=whole.moves[:0]))
    assert found.recorded == 0 and found.missing.to_json() == check(whole).model.to_json()


def test_a_fault_on_a_page_that_is_there_is_passed_over():
    blocks, out = Blocks(), Brought()
    serve(blocks, 0, np.array([0]), 25, out)
    assert serve(blocks, 0, np.array([0]), 25, out) == 0


def test_costs_do_not_fall_below_what_they_are_at_least(rows):
    found = fit(rows, floor={"moved": 500.0})
    assert min(x["moved"] for x in found.own.values()) >= 500


def test_a_block_that_is_not_whole():
    made, blocks, _ = given_faults(np.array([0]), np.array([3]), 51, Blocks({0: 8}))
    assert made.pages.tolist() == [1, 7] and blocks.n_pages(0) == 8


class Priced(FakePaging):
    """A stand-in whose times are sums of just those counts that the page model has keys for."""

    def _run(self, t: Touches):
        _, seen = super()._run(t)
        c = counts(seen).to_json()
        costs = {"batches": 9000, "entries": 700, "services": 4000}
        return 2000.0 + sum(costs[k] * c[k] for k in SHARED.values()) + 340 * c["moved"], seen


def test_the_table_has_every_key_of_the_page_model_and_its_costs():
    d = Priced(64 * PAGES, 132, TRUE)
    tables = paging_tables(d, True)
    found = table(tables["paging"], tables["paging_out"], tables["paging_device"][0], 52e9, 54e9)
    assert set(found) == set(UvmSpec.model_fields)
    want = {"batch_ns": 9000, "entry_ns": 700, "service_ns": 4000, "push_ns": 340}
    for key, ns in want.items():
        assert found[key][0] == pytest.approx(ns, abs=1), key
    assert found["copy_ns"][0] == 0
    assert found["h2d_bytes_per_s"][0] == 54_000_000_000
    crowds = [r for r in tables["paging"] if r.get("turn") in CROWDED and r["warps"] >= 4 * 132]
    each = [r["counts"]["entries"] / r["counts"]["batches"] for r in crowds]
    assert found["look_entries"][0] == round(sum(each) / len(each)) and len(each) >= 4
    assert set(OWN) <= set(found)
    assert found["sm_count"][0] == 132


def test_the_profile_has_the_table_and_the_page_model_runs_on_it(tmp_path):
    d = Priced(64 * PAGES, 132, TRUE)
    tables = paging_tables(d, True)
    made = table(tables["paging"], tables["paging_out"], tables["paging_device"][0], 52e9)
    m = Measurements("cuda", {"gpu": "stand-in", "driver": "580.1"}, "2026-01-01")
    m.fitted = {f"uvm.{k}": v for k, v in made.items()}
    (tmp_path / "mine.toml").write_text(to_toml(m, Hardware.load("h100"), "mine"))
    hw = Hardware.load(str(tmp_path / "mine.toml"))
    assert hw.uvm is not None
    for key, (value, _) in made.items():
        assert getattr(hw.uvm, key) == value
        assert hw.sources[f"uvm.{key}"].startswith("measured 2026-01-01, stand-in, driver 580.1: ")


def test_a_table_with_a_key_missing_is_the_bases(tmp_path):
    m = Measurements("cuda", {"gpu": "stand-in"}, "2026-01-01")
    m.fitted = {"uvm.batch_ns": (1, "guessed")}
    (tmp_path / "mine.toml").write_text(to_toml(m, Hardware.load("rtx5090"), "mine"))
    assert Hardware.load(str(tmp_path / "mine.toml")).uvm == Hardware.load("rtx5090").uvm


def test_a_row_says_what_it_is():
    d = device()
    r = one(d, patterns(d.pages, d.sms)[0], "huge", 1)
    assert r["counts"]["entries"] == 1 and r["entries_of_batch"]["p50"] == 1
    assert r["tree"]["model"] == r["tree"]["driver"]
    assert r["piece_ns"] and r["whole"]["lost"] == {}


def test_a_drivers_own_services_come_out_page_by_page():
    """A stretch of a recording on an H100 with driver 580 (experiments/paging_driver)."""
    t = open_faults(SAMPLE)
    found = check(seen_of(t), Blocks(partial_blocks(t)))
    assert found.recorded == found.equal > 60
    assert found.model.to_json() == found.driver.to_json()
