"""`compare --mechanism uvm`: page policies on a captured trace."""

import json

import pytest
from click.testing import CliRunner

from traces.errors import InputError
from uvmsim.commands.compare import compare as command
from uvmsim.mechanisms.uvm import setup_of
from uvmsim.policies.kinds import EXPERTS, PAGES, kind_of
from uvmsim.studies.choice import policies_for
from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario
from uvmsim.studies.sweep.cells import expand
from uvmsim.studies.sweep.config import SweepConfig, check
from uvmsim.studies.sweep.rows import to_table
from uvmsim.studies.sweep.runner import Runner
from uvmsim.studies.sweep.source import facts_of

SMALL = {"vram": "1GiB", "limit": 64, "mechanisms": ("uvm",)}


def runs(**given):
    return compare(Scenario(**(SMALL | given))).to_json()["runs"]


def test_bundled_trace_pages():
    default, wide = runs(policies=("default", "prefetch_always_max"))
    for row in (default, wide):
        assert row["mechanism"] == "uvm"
        assert row["status"] == "ok"
        assert row["tokens"] == 64
        assert row["chunks_out"] > 0
        assert row["services"] == pytest.approx(row["services_per_chunk"] * row["chunks_in"])
        split = row["time_split_s"]
        assert split["compute"] + split["paging"] == pytest.approx(row["time_s"])
    assert wide["services_per_chunk"] < 2 < default["services_per_chunk"]
    assert wide["tokens_per_s"] > default["tokens_per_s"]


def test_nothing_is_paged_twice_where_all_fits():
    (row,) = runs(policies=("default",), vram="16GiB")
    assert row["evictions"] == row["bytes_d2h"] == 0
    job = compare(Scenario(**(SMALL | {"policies": ("default",), "vram": "16GiB"}))).runs[0].job
    setup, space = setup_of(job, False)
    assert row["chunks_in"] <= space.n_blocks
    assert row["bytes_h2d"] <= int(setup.n_pages[setup.populated > 0].sum()) * 4096


def test_threshold_reaches_the_driver():
    low, high = (runs(policies=("default",), threshold=x)[0] for x in (1, 100))
    assert low["services_per_chunk"] < high["services_per_chunk"]
    assert low["threshold"] == 1


def test_policies_go_to_the_mechanisms_of_their_grain():
    got = runs(mechanisms=("uvm", "expert-cache"), policies=("default", "lru"), vram="3GiB")
    assert [(r["mechanism"], r["policy"]) for r in got] == [
        ("uvm", "default"), ("expert-cache", "lru"),
    ]  # fmt: skip


def test_defaults_of_each_grain():
    chosen = policies_for(("uvm",), None)
    assert list(chosen) == ["page"]
    assert tuple(p.name for p in chosen["page"]) == PAGES.defaults
    chosen = policies_for(("uvm", "expert-cache"), None)
    assert {noun: len(found) for noun, found in chosen.items()} == {"page": 4, "expert": 6}
    chosen = policies_for(("resident", "expert-cache"), None)
    assert {noun: len(found) for noun, found in chosen.items()} == {"expert": 6}


def test_page_policies_are_told_apart():
    assert kind_of("prefetch_stride+eviction_mru") is PAGES
    assert kind_of("phase:copy-used,prefetch_always_max") is PAGES
    assert kind_of("lfu+next-layer") is EXPERTS


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"policies": ("prefetch_alwys_max",)}, "did you mean 'prefetch_always_max'"),
        ({"policies": ("lruu",)}, "did you mean 'lru'"),
        ({"policies": ("lru",)}, "policies lru: none of them is for `mechanisms` uvm"),
        ({"policies": ("default", "lru")}, "add `mechanisms` expert-cache"),
        ({"policies": ("default",), "mechanisms": ("uvm", "expert-cache")}, "expert-cache"),
        ({"threshold": 0}, "threshold 0"),
        ({"unit": "access"}, "leave out `unit` access"),
        ({"vram": "2MiB"}, "vram: 2,097,152 bytes"),
        ({"hardware": "a100"}, "no [uvm] constants"),
        ({"policies": ("phase:default",)}, "phase:PREFILL_POLICY,DECODE_POLICY"),
    ],
)
def test_mistakes_take_one_line(given, part):
    with pytest.raises(InputError) as error:
        runs(**given)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_presets_and_phases():
    """A preset of real tensors, and another policy in each phase."""
    options = Scenario(
        model="olmoe-1b-7b", trace=None, vram="2GiB", mechanisms=("uvm",), policies=("default",)
    )
    with pytest.raises(InputError):  # the bundled trace is of another shape
        compare(options)
    (row,) = runs(policies=("phase:copy-used,default",))
    assert row["policy"] == "phase:copy-used,default"


def test_both_engines_agree():
    fast, des = (runs(policies=("default",), limit=12, engine=e)[0] for e in ("fast", "des"))
    assert fast == des


def test_gguf_model(tiny_gguf):
    (row,) = runs(model=str(tiny_gguf), policies=("default",), vram="128MiB")
    assert row["status"] == "ok"
    assert row["chunks_in"] > 0


def test_table_and_json():
    words = ["--mechanism", "uvm", "--vram", "1GiB", "--limit", "64", "--threshold", "75"]
    words += ["--policy", "default"]
    table = CliRunner().invoke(command, words).output
    for word in ("paged by the driver", "512 chunks", "threshold 75 %", "services/chunk", "paging"):
        assert word in table
    assert "hit rate" not in table
    got = json.loads(CliRunner().invoke(command, [*words, "--json"]).output)
    assert got["options"]["threshold"] == 75
    assert got["runs"][0]["by_phase"]["prefill"]["chunks_in"] > 0


def test_sweep_gives_the_same_rows(tmp_path):
    config = SweepConfig(
        mechanism=["uvm", "expert-cache", "resident"], policy=["default", "lru"], vram=["1GiB"],
        limit=[64], threshold=[51, 75],
    )  # fmt: skip
    check(config)
    cells = expand(config, {None: facts_of(None)})
    # Each policy to its grain; the threshold and policies of the others make no cells of their own.
    assert [(c.mechanism, c.policy) for c in cells] == [
        ("uvm", "default"), ("uvm", "default"), ("expert-cache", "lru"), ("resident", None),
    ]  # fmt: skip
    assert [c.row["threshold"] for c in cells] == [51, 75, None, None]
    for cell, row in zip(cells[:2], Runner().rows(cells[:2]), strict=True):
        (run,) = runs(policies=("default",), threshold=cell.threshold)
        for key in ("chunks_in", "chunks_out", "services", "time_s", "tokens_per_s", "bytes_h2d"):
            assert row[key] == run[key]
        assert row["time_split_s_paging"] == run["time_split_s"]["paging"]
        stored = to_table([row]).to_pylist()[0]
        assert stored["services_per_chunk"] == run["services_per_chunk"]


def test_sweep_refuses_a_grid_without_a_policy_for_a_mechanism():
    with pytest.raises(InputError, match="none of them is for mechanism uvm"):
        check(SweepConfig(mechanism=["uvm"], policy=["lru"]))
