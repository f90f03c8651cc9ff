"""`uvmsim calibrate` from end to end, with the host backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from replay.calibrate import calibration as run_module
from replay.calibrate.calibration import calibrate, write
from replay.calibrate.policy_rows import FEW, stream
from replay.calibrate.profile import MACHINE, Measurements, engine_quantities, quantities, to_toml
from replay.commands.calibrate import calibrate as command
from traces.errors import InputError
from uvmsim.machine.hardware import Hardware


@pytest.fixture(scope="module")
def measured() -> Measurements:
    return calibrate("host")


def test_every_stage_ran_or_says_why_not(measured):
    done = set(measured.tables) | set(measured.errors)
    assert set(measured.seconds) == done
    assert {"copies_h2d", "copies_d2h", "both_ways", "launches", "reads", "cpu", "kernels",
            "engine"} <= set(measured.tables)  # fmt: skip
    assert {"faults", "migrations", "fault_groups", "paging"} == set(measured.errors)
    assert all(r["verified"] for r in measured.tables["engine"])
    for name, rows in measured.tables.items():
        for r in rows:
            assert r["p10_ns"] <= r["median_ns"] <= r["p90_ns"], name


def test_the_profile_is_one_the_simulator_reads(measured, tmp_path):
    profile, tables = write(measured, tmp_path / "mine.toml", "h100")
    hw = Hardware.load(str(profile))
    assert hw.name == "mine"
    for key, _, source in hw.quantities():
        known = ("measured ", "estimate: not measured", "estimate: the h100 profile's")
        assert source.startswith(known), key
    assert hw.engine.name == "replay-mine"
    assert hw.engine.expert_bytes_per_s and hw.engine.dense_launch_ns is not None
    assert all(source.startswith("measured ") for _, _, source in hw.engine.quantities()[:4])
    assert hw.policy_ns.keys() == set(FEW) and hw.policy_ns["learned"].decode_ns > 0
    assert hw.policy_ns["lfu"].source.startswith("measured ")
    found = {k: v for k, (v, _) in measured.fitted.items() if hasattr(hw.engine, k)}
    assert found == {k: getattr(hw.engine, k) for k in found}
    assert json.loads(tables.read_text())["tables"].keys() == measured.tables.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.measurements.json", "mine.toml"]


def test_what_was_not_measured_is_the_base_profiles_and_says_so():
    base = Hardware.load("h100")
    found = Measurements(
        "cuda", {"gpu": 'A "card"\nof mine'}, "2026-01-01", errors={"zero_copy": "it broke"}
    )
    q = quantities(found, base)
    assert q["zero_copy_bytes_per_s"][0] == base.zero_copy_bytes_per_s
    assert q["zero_copy_bytes_per_s"][1] == "estimate: not measured (it broke); the h100 profile's"
    assert set(q) <= set(MACHINE)
    engine = engine_quantities(found, base)
    assert engine["decision_ns"][0] == base.engine.decision_ns
    assert "expert_bytes_per_s" not in engine  # then it is the machine's
    assert 'A \\"card\\" of mine' in to_toml(found, base, "x")


def test_a_stage_that_fails_does_not_stop_the_others(monkeypatch):
    def broken(self):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("replay.calibrate.host.HostProbe.launches", broken)
    monkeypatch.setattr(run_module, "kernel_rows", lambda *a: [])
    lines: list[str] = []
    found = calibrate("host", engine=False, say=lines.append)
    assert found.errors["launches"] == "RuntimeError: no such luck"
    assert "zero_copy" in found.tables
    assert any("no such luck" in line for line in lines)


def test_command_writes_json_and_refuses_to_overwrite(tmp_path):
    target = tmp_path / "h.toml"
    args = ["--backend", "host", "--no-engine", "--no-policies", "-o", str(target), "--json"]
    done = CliRunner().invoke(command, args, catch_exceptions=False)
    assert done.exit_code == 0
    made = json.loads(done.stdout)
    assert made["backend"] == "host" and Path(made["profile"]) == target
    assert Hardware.load(str(target)).policy_ns is None
    with pytest.raises(InputError, match="--force"):
        CliRunner().invoke(command, args, catch_exceptions=False)
    again = CliRunner().invoke(command, [*args, "--force"], catch_exceptions=False)
    assert again.exit_code == 0


def test_the_stream_for_policies_is_of_the_shape_and_has_all_that_policies_need():
    w = stream(6, 32, 4)
    assert (w.n_layers, w.n_experts, w.top_k, w.n_steps) == (6, 32, 4, 1001)
    assert w.step_tokens.tolist() == [512] + [1] * 1000
    rows = len(w.row_experts)
    assert w.scores.shape == (rows, 32) and w.row_guesses.shape == (rows, 2, 8)
    # The guess of a token's next layer holds most of what it chooses there; the last layer has none.
    layer = np.repeat(w.event_layer, np.diff(w.row_lo))
    assert (w.row_guesses[layer == 5] == -1).all() and (w.row_guesses[layer < 4] >= 0).all()
    at = {(p, x): i for i, (p, x) in enumerate(zip(w.row_pos, layer, strict=True))}
    right = [
        np.isin(w.row_experts[at[p, x + ahead]], w.row_guesses[i, ahead - 1]).mean()
        for i, (p, x) in list(enumerate(zip(w.row_pos, layer, strict=True)))[::37]
        for ahead in (1, 2)
        if x + ahead < 6
    ]
    assert 0.5 < np.mean(right) < 0.99


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--backend", "tpu", "-o", "x.toml"], "cuda or host"),
        (["-o", "x.json"], r"end in \.toml"),
        (["-o", "nowhere/x.toml"], "no such folder"),
        (["-o", "x.toml", "--base", "h1000"], "unknown hardware"),
    ],
)
def test_first_mistakes_are_one_line(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(command, args, catch_exceptions=False)


@pytest.mark.gpu
def test_calibrates_the_gpu(tmp_path):
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as err:
        pytest.skip(f"no GPU: {err}")
    found = calibrate("cuda", quick=True)
    assert not {"copies_h2d", "reads", "launches"} & set(found.errors), found.errors
    write(found, tmp_path / "gpu.toml", "h100")
