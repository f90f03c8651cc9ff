"""What the driver is known to do, case by case."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from naive_driver import PAGES, Kernel, Machine, Space, Wave
from small_model import COSTS, pages_of, small_hardware, small_model
from test_paging_driver import bits, hardware, setup_for, used_list

from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms.uvm import co_locate, setup_of
from uvmsim.paging import tables as t
from uvmsim.paging.drive import run_paging
from uvmsim.paging.layout import PAGE, layout
from uvmsim.policies.pages.phases import parse_phased
from uvmsim.policies.pages.registry import parse_pages
from uvmsim.runs.job import Job
from uvmsim.studies.llamabench.workload import bench
from uvmsim.studies.simulate import simulate

MACHINE = Machine(9000, 300, 800, 900, 600, *[2 * 10**10] * 4, True, 800, 51)
CPU, READ_MOSTLY, GPU, ACCESSED_BY = 1, 2, 4, 8
USER = Path(__file__).parent / "user_page_policies.py"
AHEAD = "prefetch_stride_multiblock:blocks=3:strides=1"
WIDTHS = ("default", "prefetch_always_max", "prefetch_none")


def space_of(blocks: int, chunks: int, advice: int = 0, populated: bool = True) -> Space:
    return Space(
        [PAGES] * blocks, [0] * blocks, [advice] * blocks, [populated] * blocks, chunks, [0, blocks]
    )


def page_run(kernels, space, policy="default", threshold=51, phase=None, machine=MACHINE):
    setup = setup_for(space, kernels, phase or [PREFILL], threshold)
    return run_paging(setup, hardware(machine), parse_pages(policy), record=True)


def together(*pages: int) -> list[Kernel]:
    """Faults of one batch."""
    return [Kernel([Wave([(p, p + 1) for p in pages])])]


def in_turn(pages) -> list[Kernel]:
    """One fault a batch."""
    return [Kernel([Wave([(p, p + 1) for p in pages], limit=1)])]


def whole(blocks) -> list[tuple[int, int]]:
    return [(b * PAGES, (b + 1) * PAGES) for b in blocks]


# ---- the density tree ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("big_pages", "brought_in"),
    [
        ([3], [3]),
        ([2, 3], [2, 3]),
        ([1, 2], [1, 2]),  # neighbours, not siblings
        ([0, 2], [0, 2]),
        ([0, 2, 3], range(4)),
        (range(0, 8, 2), range(0, 8, 2)),
        ([*range(0, 8, 2), 7], range(8)),
        (range(0, 16, 2), range(0, 16, 2)),
        ([*range(0, 16, 2), 5], range(16)),
        (range(0, 32, 2), range(0, 32, 2)),
        ([*range(0, 32, 2), 9], range(32)),
    ],
)
def test_the_tree_grows_where_more_than_half_is_there(big_pages, brought_in):
    faults = [16 * g + 5 for g in big_pages]
    expected = {p for g in brought_in for p in range(16 * g, 16 * g + 16)}
    run = page_run(together(*faults), space_of(1, 1))
    assert bits(run.tables.driver, 0) == expected
    assert run.total(t.SERVICES) == 1
    # resident pages count as the faulted ones do
    run = page_run(in_turn(faults), space_of(1, 1))
    assert expected <= bits(run.tables.driver, 0)


def test_a_sequential_walk_takes_six_services_a_chunk():
    run = page_run(in_turn(range(5 * PAGES)), space_of(5, 5))
    assert run.total(t.SERVICES) == run.total(t.BATCHES) == 6 * 5
    assert run.total(t.FAULTS) == 30
    assert run.total(t.PAGES_IN) == 5 * PAGES
    one = page_run(in_turn(range(5 * PAGES)), space_of(5, 5), "prefetch_always_max")
    assert one.total(t.SERVICES) == one.total(t.ACTIVATED) == 5
    none = page_run(in_turn(range(PAGES)), space_of(1, 1), "prefetch_none")
    assert none.total(t.SERVICES) == none.total(t.PAGES_IN) == PAGES


@pytest.mark.parametrize("threshold", [1, 24, 25, 49, 51, 75, 99])
def test_a_lower_threshold_takes_fewer_services(threshold):
    run = page_run(in_turn(range(PAGES)), space_of(1, 1), threshold=threshold)
    assert run.total(t.PAGES_IN) == PAGES
    assert run.total(t.SERVICES) == walk(threshold)
    assert (walk(1), walk(51), walk(99)) == (1, 6, 32)


def walk(threshold: int) -> int:
    """Services of a sequential walk over a block, in big pages."""
    there, services = 0, 0
    while there < 32:
        services += 1
        page, new = there, there + 1
        for size in (2, 4, 8, 16, 32):
            first = page // size * size
            if (there + 1 - first) * 100 > size * threshold and first <= page:
                new = max(new, first + size)
        there = new
    return services


def test_first_touch_at_the_preferred_location_fills_the_block():
    run = page_run(together(70), space_of(1, 1, GPU, populated=False))
    assert bits(run.tables.driver, 0) == set(range(PAGES))
    assert (run.total(t.ZEROED), run.total(t.PAGES_IN)) == (PAGES, 0)
    run = page_run(together(70), space_of(1, 1, GPU))  # its data are in host memory
    assert bits(run.tables.driver, 0) == set(range(64, 80))
    run = page_run(together(70), space_of(1, 1, 0, populated=False))
    assert bits(run.tables.driver, 0) == set(range(64, 80))
    assert (run.total(t.ZEROED), run.total(t.PAGES_IN)) == (16, 0)


# ---- order and eviction ----------------------------------------------------------------------------


def test_hits_do_not_move_the_list():
    """Block 0, touched all the time, goes first."""
    scan = [Kernel([Wave(whole([b]))]) for b in (0, 1, 2)]
    hits = [Kernel([Wave(whole([0, 0]))]) for _ in range(5)]
    run = page_run([*scan, *hits], space_of(4, 3))
    d = run.tables.driver
    assert [int(d.block_of[c]) for c in used_list(d)] == [0, 1, 2]
    assert run.counts[0].tolist() == page_run(scan, space_of(4, 3)).counts[0].tolist()
    run = page_run([*scan, *hits, Kernel([Wave(whole([3]))])], space_of(4, 3))
    d = run.tables.driver
    assert [int(d.block_of[c]) for c in used_list(d)] == [1, 2, 3]


def abab(n: int, rounds: int = 2) -> list[Kernel]:
    """A-B-A-B: the halves of n blocks, one kernel each, in order of address, few at a time."""
    halves = [range(n // 2), range(n // 2, n)]
    waves = [[Wave(whole(h[i : i + 5])) for i in range(0, len(h), 5)] for h in halves]
    return [Kernel(w) for _ in range(rounds) for w in waves]


@pytest.mark.parametrize("policy", ["default", "prefetch_always_max"])
def test_cyclic_scan_over_a_list_that_is_a_little_too_short(policy):
    """N = 4,301 blocks, C = 4,096 chunks (the A30's 1.05x): everything misses, 2N - C leave."""
    n, c = 4301, 4096
    run = page_run(abab(n), space_of(n, c), policy)
    assert run.total(t.ACTIVATED) == 2 * n
    assert run.total(t.EVICTED) == 2 * n - c == 4506
    assert run.total(t.PAGES_IN) == 2 * n * PAGES
    assert run.total(t.PAGES_OUT) == 4506 * PAGES
    fits = page_run(abab(3891), space_of(3891, c), policy)  # 0.95x
    assert (fits.total(t.ACTIVATED), fits.total(t.EVICTED)) == (3891, 0)


def test_chunk_misses_do_not_depend_on_the_prefetch_width():
    runs = [page_run(abab(30, 4), space_of(30, 20), p) for p in WIDTHS]
    assert {r.total(t.ACTIVATED) for r in runs} == {120}
    assert {r.total(t.EVICTED) for r in runs} == {100}
    services = [r.total(t.SERVICES) for r in runs]
    assert services[1] < services[0] < services[2]


def test_policies_that_move_nothing_change_nothing():
    kernels = abab(30, 3)
    plain = page_run(kernels, space_of(30, 20))
    watched = page_run(kernels, space_of(30, 20), f"{USER}:Watch")
    assert np.array_equal(watched.counts, plain.counts)
    assert np.array_equal(watched.ends, plain.ends)
    assert used_list(watched.tables.driver) == used_list(plain.tables.driver)


def test_users_mistakes_are_refused():
    kernels, space = abab(30, 3), space_of(30, 20)
    with pytest.raises(InputError, match=r"Watch.*IndexError") as e:
        page_run(kernels, space, f"{USER}:Watch:reach=1000000")
    assert "\n" not in str(e.value)
    far = page_run(kernels, space, f"{USER}:Watch:stray=1000000")
    assert np.array_equal(far.counts, page_run(kernels, space).counts)
    assert "refused" in far.notes[0]


def test_conservation():
    run = page_run(abab(30, 3), space_of(30, 20))
    held = sum(len(bits(run.tables.driver, b)) for b in range(30))
    assert run.total(t.PAGES_IN) - run.total(t.PAGES_OUT) == held == 20 * PAGES
    assert (np.diff(run.ends) >= 0).all()


# ---- advice ----------------------------------------------------------------------------------------


def test_read_mostly_evictions_copy_nothing():
    plain, copies = (page_run(abab(30, 3), space_of(30, 20, a)) for a in (0, READ_MOSTLY))
    assert copies.total(t.PAGES_OUT) == 0 < plain.total(t.PAGES_OUT)
    assert copies.total(t.EVICTED) == plain.total(t.EVICTED)
    assert copies.ends[-1] <= plain.ends[-1]


@pytest.mark.parametrize("advice", [CPU, ACCESSED_BY])
def test_remote_blocks_are_read_across_the_link_and_never_migrate(advice):
    run = page_run(abab(30, 3), space_of(30, 20, advice))
    assert run.total(t.REMOTE) == 3 * 30 * PAGES
    for counter in (t.BATCHES, t.ACTIVATED, t.PAGES_IN):
        assert run.total(counter) == 0
    each = 15 * PAGES * round(4096 * 10**12 / MACHINE.remote) // 1000
    assert run.ends.tolist() == [each * (i + 1) for i in range(6)]


def test_pages_are_not_used_before_they_arrive():
    """A wave takes its own blocks ahead: they still have to come over the link."""
    kernels = [Kernel([Wave(whole(range(12)), limit=1)])]
    run = page_run(kernels, space_of(12, 12), AHEAD)
    assert run.total(t.MIGRATED) > 0
    assert run.total(t.PAGES_IN) == 12 * PAGES
    assert run.ends[-1] >= run.tables.pages.arrival.max() > 0


# ---- several processes -----------------------------------------------------------------------------


def scans(n: int, chunks: int, phase: int = DECODE):
    steps = [dataclasses.replace(k, step=i) for i, k in enumerate(abab(n, 4))]
    return setup_for(space_of(n, chunks), steps, [phase] * len(steps), 51)


def by_tenant(run, steps: int) -> list[np.ndarray]:
    return [run.counts[i : i + steps].sum(axis=0) for i in range(0, len(run.counts), steps)]


def test_tenants_add_up():
    hw = hardware(MACHINE)
    roomy = [scans(20, 60), scans(30, 60)]
    alone = [run_paging(s, hw, parse_pages("default"), record=True) for s in roomy]
    both = run_paging(co_locate(roomy), hw, parse_pages("default"), record=True)
    assert np.array_equal(both.counts, np.concatenate([a.counts for a in alone]))
    assert both.ends[-1] == sum(a.ends[-1] for a in alone)
    tight = co_locate([scans(20, 25), scans(20, 25)])
    run = run_paging(tight, hw, parse_pages("default"), record=True)
    first, second = by_tenant(run, 8)
    assert first[t.ACTIVATED] == second[t.ACTIVATED] == 80
    assert run.total(t.ACTIVATED) - run.total(t.EVICTED) == 25
    owner = run.tables.driver
    assert {int(owner.tenant_of[b]) for b in owner.block_of} <= {0, 1}


def test_policies_by_process_change_who_suffers():
    tight = co_locate([scans(20, 30), scans(20, 30)])
    hw = hardware(MACHINE)
    favoured = "prefetch_pid_tree:high={}:low={}+eviction_fifo_chance:high={}:low={}"
    one = run_paging(tight, hw, parse_pages(favoured.format(20, 80, 3, 0)), record=True)
    other = run_paging(tight, hw, parse_pages(favoured.format(80, 20, 0, 3)), record=True)
    (a, b), (c, d) = by_tenant(one, 8), by_tenant(other, 8)
    assert a[t.ACTIVATED] < b[t.ACTIVATED]
    assert c[t.ACTIVATED] > d[t.ACTIVATED]
    assert a[t.SERVICES] / a[t.ACTIVATED] < b[t.SERVICES] / b[t.ACTIVATED]


# ---- a model's layout and kernels ------------------------------------------------------------------


@pytest.mark.shared_data
def test_layout_is_the_published_one(shared_data):
    path = shared_data / "gpu_ext" / "gptoss120b_cuda_buffer_layout.csv"
    made = layout(Model.load("gpt-oss-120b"))
    with path.open() as f:
        rows = list(csv.DictReader(f))
    want = [(r["tensor"], int(r["offset"]), int(r["nbytes"])) for r in rows]
    assert [(p.name, p.offset, p.nbytes) for p in made.tensors] == want
    assert made.nbytes == int(rows[-1]["offset"]) + int(rows[-1]["alloc_bytes"])
    for p, r in zip(made.tensors, rows, strict=True):
        assert p.offset // (2 << 20) == int(r["first_2MB_chunk"])
        assert (p.offset + p.nbytes - 1) // (2 << 20) == int(r["last_2MB_chunk"])


def small_job(folder, chunks=400, prompt=40, generate=3, **uvm):
    model = small_model(folder)
    made = bench(model, prompt, generate, 1, 3)
    return made, Job(made.workload, model, small_hardware(chunks, **uvm))


def weight_pages(job: Job, space, step: int) -> set[int]:
    """Pages of all dense tensors, and of the experts that the step's tokens chose."""
    w, out = job.workload, []
    chosen: dict[int, set[int]] = {}
    for ev in range(w.n_events):
        if w.event_step[ev] == step:
            ids = w.ids[w.event_lo[ev] : w.event_lo[ev + 1]] % w.n_experts
            chosen[int(job.model.moe_layers[w.event_layer[ev]])] = set(ids.tolist())
    for p in space.layout.tensors:
        each = p.nbytes // p.experts
        for e in range(p.experts):
            if p.experts == 1 or e in chosen[p.block]:
                out.append((p.offset + e * each, p.offset + (e + 1) * each))
    return {q for a, b in out for q in range(a // PAGE, -(-b // PAGE))}


@pytest.mark.parametrize("uvm", [{}, {"sm_count": 7, "ctas_per_sm": 1}])
def test_kernels_touch_what_is_used_and_nothing_else(tmp_path, uvm):
    made, job = small_job(tmp_path, **uvm)
    setup, space = setup_of(job, False)
    k = setup.kernels
    assert (k.burst >= 1).all() and (k.looks >= 1).all() and (k.last > k.first).all()
    touch_step = k.step[np.searchsorted(k.wave_hi, np.arange(len(k.touch_hi)), side="right")]
    touch_step = np.repeat(touch_step, np.diff(k.touch_hi, prepend=0))
    kv, compute = space.kv_block * PAGES, space.compute_block * PAGES
    assert set(touch_step.tolist()) == set(range(job.workload.n_steps))
    for step in range(job.workload.n_steps):
        mine = touch_step == step
        touched = pages_of(k.first[mine], k.last[mine])
        assert {p for p in touched if p < kv} == weight_pages(job, space, step)
        assert {p for p in touched if kv <= p < compute}
        assert {p for p in touched if p >= compute}
        assert max(touched) < compute + -(-space.compute_bytes // PAGE)
    assert (setup.n_pages[:-1] > 0).all()
    assert {made.tests[i] for i in made.step_test} == {"pp40", "tg3"}


def test_an_expert_shared_by_token_tiles_is_still_all_touched(tmp_path):
    """More tokens than one tile holds, in two micro-batches."""
    _, job = small_job(tmp_path, prompt=700, generate=0)
    setup, space = setup_of(job, False)
    k = setup.kernels
    touched = pages_of(k.first, k.last)
    steps = [weight_pages(job, space, s) for s in range(job.workload.n_steps)]
    assert {p for p in touched if p < space.kv_block * PAGES} == set().union(*steps)


# ---- policies by phase -----------------------------------------------------------------------------


def test_copy_used_copies_the_used_experts_bytes(tmp_path):
    _, job = small_job(tmp_path, 300)
    w, m = job.workload, job.model
    policy = parse_phased("phase:copy-used,prefetch_always_max")
    result = simulate(dataclasses.replace(job, policy=policy), "uvm", record=True)
    k = result.trail.setup.kernels
    used = np.diff(w.event_lo)
    for step in range(w.n_steps):
        events = np.flatnonzero(w.event_step == step)
        want = sum(int(used[e]) * m.expert_bytes[w.event_layer[e]] for e in events)
        copied = int(k.copy_bytes[k.step == step].sum())
        assert copied == (want if w.step_phase[step] == PREFILL else 0)
    paged = simulate(
        dataclasses.replace(job, policy=parse_phased("prefetch_always_max")), "uvm",
        record=True,
    )  # fmt: skip
    prefill = w.step_phase == PREFILL
    by = [r.trail.run.counts[prefill].sum(axis=0)[t.PAGES_IN] for r in (result, paged)]
    assert by[0] < by[1]


def test_one_policy_for_both_phases_is_that_policy(tmp_path):
    _, job = small_job(tmp_path, 140, generate=6)
    names = ("default", "phase:default,default", "phase:prefetch_always_max,default")
    runs = [
        simulate(dataclasses.replace(job, policy=parse_phased(n)), "uvm", record=True)
        for n in names
    ]
    assert np.array_equal(runs[0].trail.run.counts, runs[1].trail.run.counts)
    assert runs[0].trail.run.total(t.SERVICES) > runs[2].trail.run.total(t.SERVICES)


# ---- descriptions ----------------------------------------------------------------------------------


def test_unknown_paging_constants_are_refused(tmp_path):
    from uvmsim.machine.descriptions import preset_paths

    text = preset_paths("hardware")["rtx5090"].read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("[uvm.entry_ns]", "[uvm.entri_ns]"))
    with pytest.raises(InputError, match="entri_ns") as e:
        Hardware.load(str(path))
    assert "\n" not in str(e.value)
    path.write_text(text[: text.index("[uvm.")])
    bare = Hardware.load(str(path))
    with pytest.raises(InputError, match=r"no \[uvm\] constants") as e:
        _, job = small_job(tmp_path)
        simulate(dataclasses.replace(job, hardware=bare), "uvm")
    assert "\n" not in str(e.value)


def test_too_little_memory_is_refused(tmp_path):
    _, job = small_job(tmp_path, 63)
    assert job.hardware.uvm == COSTS
    with pytest.raises(InputError, match="too few") as e:
        simulate(job, "uvm")
    assert "\n" not in str(e.value)
