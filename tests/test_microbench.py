"""Scans and page-stride walks: what is exact is tested exactly, what was published as an order."""

import json
from collections import OrderedDict

import pytest
from click.testing import CliRunner

from traces.errors import InputError
from uvmsim.commands.microbench import microbench
from uvmsim.machine.hardware import Hardware
from uvmsim.studies.microbench import patterns
from uvmsim.studies.microbench.table import Options, run

SMALL = "256MiB"


def rows(**given):
    return run(Options(**({"vram": SMALL} | given))).runs


def lru_misses(blocks, chunks, passes):
    """Half-passes over the two halves of an allocation against an LRU list, block by block."""
    held, misses, evictions = OrderedDict(), 0, 0
    half = -(-blocks // 2)
    for i in range(passes):
        for block in range(half) if i % 2 == 0 else range(half, blocks):
            if block in held:
                continue  # a hit is not seen by the driver
            misses += 1
            if len(held) == chunks:
                held.popitem(last=False)
                evictions += 1
            held[block] = True
    return misses, evictions


def test_the_published_scan_evicts_2n_less_c():
    (row,) = rows(ratios=(1.05,), vram="8GiB", policies=("prefetch_always_max",))
    n, c = row["blocks"], row["chunks"]
    assert (n, c) == (4301, 4096)
    assert row["evictions"] == 2 * n - c == 4506  # measured: 4,711 to 4,743
    assert row["activations"] == 2 * n
    assert row["services_per_chunk"] == 1
    assert row["total_ms"] == pytest.approx(2673, rel=0.02)  # fitted on this row


@pytest.mark.parametrize("passes", [1, 3, 6])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.3])
def test_misses_are_those_of_a_list(ratio, passes):
    (row,) = rows(ratios=(ratio,), passes=passes)
    expected = lru_misses(row["blocks"], row["chunks"], passes)
    assert (row["activations"], row["evictions"]) == expected
    assert len(row["pass_ms"]) == passes
    assert row["total_ms"] == pytest.approx(sum(row["pass_ms"]), abs=1e-4)


def test_prefetch_width_changes_time_and_not_misses():
    by = {r["policy"]: r for r in rows(
        ratios=(1.05,), policies=("default", "prefetch_always_max", "prefetch_none"),
    )}  # fmt: skip
    assert len({r["activations"] for r in by.values()}) == 1
    assert len({r["bytes_h2d"] for r in by.values()}) == 1
    wide, tree, none = (
        by[k]["total_ms"] for k in ("prefetch_always_max", "default", "prefetch_none")
    )
    assert wide < tree < none
    # A scan in order: 64 KiB, then twice as far each time (uvm_perf_prefetch.c, threshold 51).
    assert by["default"]["services_per_chunk"] == 6
    assert by["prefetch_none"]["faulted_pages"] == 512 * by["prefetch_none"]["activations"]


def test_a_resident_pass_runs_at_memory_speed():
    hw = Hardware.load("a30")
    (row,) = rows(ratios=(0.5,))
    half = row["blocks"] // 2 * (2 << 20)
    assert row["pass_ms"][2] == pytest.approx(hw.read_ns(2 * half) / 1e6, abs=1e-6)


@pytest.mark.parametrize(("ratio", "seq", "rand"), [(0.5, 0.570, 0.572), (0.75, 0.861, 0.864)])
def test_page_stride_that_fits(ratio, seq, rand):
    """gpu_ext microbench/memory, RTX 5090, medians; the constant is from the 0.5x row."""
    for pattern, published in (("seq", seq), ("rand", rand)):
        options = Options(pattern=pattern, hardware="rtx5090", ratios=(ratio,), passes=1)
        (row,) = run(options).runs
        assert row["evictions"] == row["activations"] == 0
        assert row["median_pass_ms"] == pytest.approx(published, rel=0.02)


def test_page_stride_that_just_does_not_fit_costs_a_hundredfold():
    for pattern in ("seq", "rand"):
        fits, over = rows(
            pattern=pattern, hardware="rtx5090", ratios=(0.75, 1.0), vram="4GiB", passes=2
        )
        assert over["median_pass_ms"] > 10 * fits["median_pass_ms"]
        missing = over["blocks"] - over["chunks"]
        assert missing > 0
        assert over["activations"] >= 2 * missing


def test_data_preferred_on_the_cpu_is_read_across_the_link():
    given = {"pattern": "seq", "hardware": "rtx5090", "ratios": (0.25,), "vram": None, "passes": 1}
    (row,) = rows(**given, advice="prefer-cpu")
    assert row["bytes_h2d"] == row["activations"] == 0
    assert row["median_pass_ms"] == pytest.approx(34.5, rel=0.02)


def test_advice():
    ahead, mostly = (rows(ratios=(r,), advice=a)[0] for r, a in (
        (0.5, "prefetch"), (1.05, "read-mostly"),
    ))  # fmt: skip
    assert ahead["activations"] == ahead["bytes_h2d"] == 0
    assert mostly["evictions"] > 0
    assert mostly["bytes_d2h"] == 0  # a copy stayed with the CPU
    (first,) = rows(ratios=(0.5,), advice="prefer-gpu")
    assert first["services_per_chunk"] <= 6


def test_two_processes_share_the_list():
    alone = rows(ratios=(0.6,), passes=8)[0]
    assert alone["evictions"] == 0
    plain, wide = rows(
        ratios=(0.6,), passes=8, tenants=2,
        policies=("default", "prefetch_pid_tree:high=0:low=0"),
    )  # fmt: skip
    for row in (plain, wide):
        assert row["activations"] == sum(t["chunks_in"] for t in row["tenants"])
        assert row["evictions"] > 0
    # Each has what it needs alone, and together they thrash (gpu_ext's multi-tenant study).
    assert plain["tenants"][0]["total_ms"] > 2 * alone["total_ms"]
    assert wide["total_ms"] < plain["total_ms"]
    assert plain["activations"] == wide["activations"]
    (unfair,) = rows(ratios=(0.6,), passes=8, tenants=2, policies=("prefetch_pid_tree",))
    high, low = unfair["tenants"]
    assert high["services_per_chunk"] < low["services_per_chunk"]
    assert high["total_ms"] < low["total_ms"]


def test_both_engines_agree():
    for pattern, ratio, tenants in (("abab", 1.05, 1), ("rand", 1.0, 1), ("abab", 0.6, 2)):
        given = {"pattern": pattern, "ratios": (ratio,), "vram": "128MiB", "tenants": tenants}
        fast, des = (rows(**given, passes=2, engine=e)[0] for e in ("fast", "des"))
        assert fast == des


def test_walks_cover_every_page_once():
    for rng in (None, patterns.np.random.default_rng(1)):
        runs = patterns.walk(200, rng)[0]
        seen = patterns.np.zeros(200 * 512, int)
        for lo, hi in runs.tolist():
            seen[lo:hi] += 1
        assert (seen == 1).all()


def test_command_line():
    result = CliRunner().invoke(
        microbench, ["--vram", SMALL, "--ratio", "0.95,1.05", "--policy", "default", "--json"]
    )
    got = json.loads(result.output)["rows"]
    assert [r["ratio"] for r in got] == [0.95, 1.05]
    keys = {"pattern", "policy", "total_ms", "pass_ms", "evictions", "activations", "services"}
    assert keys <= got[0].keys()
    table = CliRunner().invoke(microbench, ["--vram", SMALL, "--tenants", "2"]).output
    assert "process 1" in table


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"pattern": "abc"}, "pattern abc"),
        ({"advice": "x"}, "advice x"),
        ({"ratios": (0.0,)}, "ratios 0"),
        ({"ratios": (float("nan"),)}, "ratios nan"),
        ({"threshold": 0}, "threshold 0"),
        ({"tenants": 0}, "tenants 0"),
        ({"stride": 8192}, "stride 8192"),
        ({"passes": 0}, "passes 0"),
        ({"vram": "2MiB"}, "vram 2MiB"),
        ({"passes": 1000, "vram": "8GiB"}, "give fewer `passes`"),
        ({"ratios": (64.0,), "vram": "64GiB"}, "ratios 64"),
        ({"policies": ("defalt",)}, "did you mean 'default'"),
        ({"hardware": "a100"}, "no [uvm] constants"),
        ({"trace_out": "x.arrow"}, "trace_out"),
        ({"engine": "x"}, "engine x"),
    ],
)
def test_mistakes_take_one_line(given, part):
    with pytest.raises(InputError) as error:
        rows(**given)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
