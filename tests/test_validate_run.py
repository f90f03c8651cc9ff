"""`uvmsim validate` from end to end, with the host backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from routing import generate

import replay.validate.validation as run_module
from replay.commands.validate import validate as command
from replay.validate import config as config_module
from replay.validate.bounds import bounds
from replay.validate.measure import Runner
from replay.validate.score import compare_cell, overall
from traces.errors import InputError
from uvmsim.machine.descriptions import preset_paths
from uvmsim.machine.hardware import Hardware

GRID = """
hardware = "h100"
policy = ["lru", "lru+next-layer"]
slots = ["25%"]
mode = ["expert-cache", "stream"]
repetitions = 2
[[trace]]
path = "t.arrow"
profile = "t.arrow"
expert_size = "4KiB"
dtype = "fp32"
limit = 20
[[trace]]
path = "not-there.arrow"
optional = true
"""


def placed(folder: Path, text: str) -> Path:
    """``text`` as a config in ``folder``, with the trace it names."""
    generate(1, layers=3, experts=8, decode=9, prefill=6).trace.save(folder / "t.arrow")
    (folder / "grid.toml").write_text(text)
    return folder / "grid.toml"


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    return placed(tmp_path_factory.mktemp("validate"), GRID)


@pytest.fixture(scope="module")
def results(grid) -> tuple[dict, Path]:
    folder = grid.parent / "out"
    loaded = config_module.load(grid)
    return run_module.validate(loaded, folder, backend="host"), folder


def test_counters_are_equal_and_outputs_verified(results):
    report, _ = results
    rows = report["rows"]
    assert [(r["mode"], r["policy"]) for r in rows] == [
        ("expert-cache", "lru"), ("expert-cache", "lru+next-layer"), ("stream", None)
    ]  # fmt: skip
    for r in rows:
        assert r["status"] == "ok" and r["unequal"] == {}
        assert r["predicted"]["counters"] == r["measured"]["counters"]
        assert r["measured"]["verified"]
        assert len(r["measured"]["repeats"]) == 2
        assert set(r["predicted"]["token_latency_ms"]) == set(r["measured"]["token_latency_ms"])
        assert set(r["predicted"]["time_split_s"]) == set(r["measured"]["time_split_s"])
    assert report["overall"]["passed"]
    assert any("not-there.arrow" in n for n in report["notes"])


def test_report_files(results):
    report, folder = results
    assert sorted(p.name for p in folder.iterdir()) == [
        "measurements.json", "predictions.json", "report.json", "report.md"
    ]  # fmt: skip
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    text = (folder / "report.md").read_text()
    for heading in ("Tokens per second", "Latency", "Where the time went", "Order of the policies"):
        assert heading in text
    assert str(folder) not in (folder / "report.json").read_text()


def test_predictions_are_on_disk_before_the_first_measurement(grid, tmp_path, monkeypatch):
    seen = []

    def spy(self, cell):
        cells = json.loads((tmp_path / "out" / "predictions.json").read_text())["cells"]
        seen.append((cell.key, sorted(cells)))
        raise RuntimeError("stop here")

    monkeypatch.setattr(Runner, "run", spy)
    report = run_module.validate(config_module.load(grid), tmp_path / "out", backend="host")
    assert len(seen) == 3 and all(keys == seen[0][1] for _, keys in seen)
    assert {k for k, _ in seen} == set(seen[0][1])
    assert report["overall"]["status"] == {"failed": 3}
    assert not report["overall"]["passed"]
    assert "stop here" in report["rows"][0]["why"]


def test_a_counter_that_differs_fails_the_command(grid, tmp_path, monkeypatch):
    honest = Runner.run

    def one_more_hit(self, cell):
        made = honest(self, cell)
        made["counters"]["hits"] += cell.policy == "lru"
        return made

    monkeypatch.setattr(Runner, "run", one_more_hit)
    args = [str(grid), "-o", str(tmp_path / "out"), "--backend", "host", "--no-plot"]
    done = CliRunner().invoke(command, args)
    assert done.exit_code == 1
    assert "COUNTERS DIFFER" in done.stdout
    text = (tmp_path / "out" / "report.md").read_text()
    assert "hits: " in text and "COUNTERS DIFFER" in text


def test_command_prints_json_and_draws(grid, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    args = [str(grid), "-o", str(tmp_path / "out"), "--backend", "host", "--json", "--limit", "15"]
    done = CliRunner().invoke(command, args, catch_exceptions=False)
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["plot"] == "report.png"
    assert (tmp_path / "out" / "report.png").stat().st_size > 10_000
    assert "report.png" in (tmp_path / "out" / "report.md").read_text()
    assert report["traces"]["t"]["trace"]["tokens"] == 15


# ---- the config ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("policy =", "polcy =", "did you mean 'policy'"),
        ('path = "t.arrow"', 'pth = "t.arrow"', "did you mean 'path'"),
        ('slots = ["25%"]', "", "needs pool sizes"),
        ('slots = ["25%"]', 'slots = ["25%"]\nvram = ["16GiB"]', "not both"),
        ('"lru+next-layer"', '"lruu"', "policy"),
        ('"stream"', '"steam"', "must be expert-cache or hybrid or resident or stream"),
        ("repetitions = 2", "repetitions = 0", "1 or more"),
        ('dtype = "fp32"', 'dtype = "int3"', "table 1: dtype: .*fp32 or fp16"),
        ("optional = true", 'optional = "yes"', "table 2: optional"),
        ('path = "not-there.arrow"', "", "table 2: path: Field required"),
        ('hardware = "h100"', "", "--hardware"),
    ],
)
def test_mistakes_in_the_config_are_one_line(old, new, said, tmp_path):
    path = placed(tmp_path, GRID.replace(old, new, 1))
    with pytest.raises(InputError, match=said) as err:
        run_module.validate(config_module.load(path), tmp_path / "out", backend="host")
    assert "\n" not in str(err.value)


def test_paths_are_relative_to_the_config(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace('"h100"', '"cal.toml"').replace('"lru"', '"./p.py:Mine"', 1))
    (tmp_path / "p.py").write_text(
        "from uvmsim.policies.lru import LRU\nclass Mine(LRU):\n    pass\n"
    )
    loaded = config_module.load(path)
    assert loaded.hardware == str(tmp_path / "cal.toml")
    assert loaded.trace[1].path == str(tmp_path / "not-there.arrow")
    assert loaded.policy[0].startswith(str(tmp_path))


# ---- scoring -------------------------------------------------------------------------------------


def cell(policy: str, predicted: float, measured: float | None, **more) -> dict:
    p = {"status": "ok", "counters": {"hits": 1}, "decode_tokens_per_s": predicted}
    m = {"status": "ok", "counters": {"hits": 1}, "decode_tokens_per_s": measured,
         "verified": True, **more}  # fmt: skip
    m = m if measured else {}
    about = {"cell": policy, "trace": "t", "mode": "expert-cache", "size": "25%", "policy": policy}
    return {**about, "predicted": p, "measured": m, **compare_cell(p, m)}


TARGETS = {"mape": 0.05, "worst": 0.15, "tau": 0.9}


def test_errors_and_order():
    rows = [cell("a", 110, 100), cell("b", 98, 100.5), cell("c", 50, 50)]
    o = overall(rows, TARGETS)
    assert o["mape"] == pytest.approx((0.1 + (1 - 98 / 100.5)) / 3)
    assert o["worst"] == pytest.approx(0.1) and o["worst_cell"] == "a"
    assert o["groups"][0]["discordant"] == 1 and o["tau_mean"] == pytest.approx(1 / 3)
    assert o["reached"] == {"mape": True, "worst": True, "tau": False, "counters": True}
    assert o["passed"]


def test_missing_unverified_and_unequal_cells_do_not_pass():
    assert cell("a", 1, None)["status"] == "failed"
    assert cell("a", 1, 1, verified=False)["status"] == "unverified"
    assert cell("a", 1, 1, counters={"hits": 2})["unequal"] == {"hits": [1, 2]}
    for bad in (cell("a", 1, None), cell("a", 1, 1, verified=False)):
        assert not overall([bad, cell("b", 2, 2)], TARGETS)["passed"]


def test_median_of_steps_over_runs_and_disagreeing_runs(grid):
    made = run_module.build(config_module.load(grid), Hardware.load("h100")).cells[0]
    n = made.job.workload.n_steps
    runs = [
        {"counters": {"hits": 1}, "step_ns": np.full(n, ns), "verified": True,
         "time_split_s": {"compute": 1.0}}
        for ns in (10, 30, 20)
    ]  # fmt: skip
    done = run_module.summarise(made, runs)
    assert done["time_s"] == pytest.approx(20 * n / 1e9)
    assert done["repeats"][0] == pytest.approx(2 * done["repeats"][2])
    runs[1]["counters"] = {"hits": 2}
    assert run_module.summarise(made, runs)["status"] == "failed"


# ---- the engine's bounds -------------------------------------------------------------------------


def test_time_over_the_engines_bounds():
    def one(name: str, mode: str, issued: int, gb: int, compute: float, time: float) -> dict:
        return {
            "cell": name, "mode": mode, "status": "ok",
            "predicted": {"prefetch": {"issued": issued}},
            "measured": {"counters": {"bytes_h2d": gb * 10**9}, "time_s": time,
                         "time_split_s": {"compute": compute, "cpu": 0.0}},
        }  # fmt: skip

    rows = [
        one("demand", "expert-cache", 0, 50, 0.5, 1.6),
        one("prefetched", "expert-cache", 9, 50, 0.5, 1.25),
        one("computing", "expert-cache", 9, 50, 3.0, 3.1),
        one("stream", "stream", 0, 100, 1.0, 4.0),
        one("paged", "uvm", 0, 50, 0.5, 9.0),
        {"cell": "failed", "mode": "stream", "status": "failed", "predicted": {}, "measured": {}},
    ]
    found = bounds(rows, 50 * 10**9)
    assert set(found["cells"]) == {"demand", "prefetched", "stream"}
    assert found["over_bound"] == {"cells": 1, "median": 1.25, "worst": 1.25}
    assert found["overhead"]["worst"] == pytest.approx(0.25)
    assert found["overhead"]["median"] == pytest.approx((0.25 + 0.1 / 1.6) / 2)
    assert bounds(rows, None)["cells"] == {}


def test_reports_are_made_again_from_what_was_saved(results, tmp_path):
    _, folder = results
    for name in ("report.json", "report.md"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    text = (tmp_path / "report.md").read_text()
    again = run_module.rewrite(tmp_path, "h100")  # no tables beside it: no bounds
    assert again["bounds"]["cells"] == {}
    assert sorted((tmp_path / "report.md").read_text()) == sorted(text)
    tables = {"tables": {"copies_h2d": [{"bytes_per_s": 10**9}, {"bytes_per_s": 10**12}]}}
    (tmp_path / "c.measurements.json").write_text(json.dumps(tables))
    again = run_module.rewrite(tmp_path, tmp_path / "c.toml")
    assert again["bounds"]["overhead"]["cells"] == 2
    text = (tmp_path / "report.md").read_text()
    assert "The engine against its bounds" in text
    assert "neither kernels nor copies at the pinned peak" in text
    with pytest.raises(InputError, match="is no report"):
        run_module.rewrite(tmp_path / "nowhere", "h100")


# ---- managed memory ------------------------------------------------------------------------------


def test_uvm_is_predicted_from_the_calibration_of_that_mode(grid, tmp_path):
    text = GRID.replace('["expert-cache", "stream"]', '["uvm"]').replace("h100", "cal.toml")
    placed(tmp_path, text)
    source = preset_paths("hardware")["h100"].read_text()
    (tmp_path / "cal.toml").write_text(source)
    loaded = config_module.load(tmp_path / "grid.toml")
    with pytest.raises(InputError, match="has no times of mode managed"):
        run_module.validate(loaded, tmp_path / "out", backend="host")
    costs = {"expert_bytes": 4096, "fault_ns": [10**6] * 4, "evict_event_ns": 0,
             "evict_ns": 2 * 10**6, "fault_fixed_share": 0, "evict_fixed_share": 1}  # fmt: skip
    fitted = {f"uvm_mode.{k}": {"value": v, "how": "made up"} for k, v in costs.items()}
    groups = [{"fault_groups": 200, "bytes_in": 2 * 10**6, "missed_bytes": 10**6}]
    tables = {"tables": {"fault_groups": groups}, "fitted": fitted}
    (tmp_path / "cal.measurements.json").write_text(json.dumps(tables))
    report = run_module.validate(loaded, tmp_path / "out", backend="host")
    for r in report["rows"]:
        assert r["status"] == "ok", r
        p, c = r["predicted"], r["predicted"]["counters"]
        assert c["bytes_d2h"] == p["faults"]["bytes_out"] > 0
        if r["policy"] == "lru":
            assert p["faults"]["bytes_in"] == c["bytes_h2d"]
            assert p["faults"]["fault_groups"] == round(c["bytes_h2d"] * 200 / 10**6)
        assert p["time_s"] > c["evictions"] * 0.002
        assert p["time_split_s"]["transfer"] == pytest.approx(c["evictions"] * 0.002, rel=0.01)
    assert any("prefetches" in n for n in report["notes"])
