"""The study of tiers: its committed numbers are what it computes, and its GPU script runs through."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "experiments" / "tiers"


def test_committed_numbers_are_what_comes_out():
    spec = importlib.util.spec_from_file_location("tiers_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    result = json.loads((FOLDER / "results.json").read_text())
    row = result["slots"][1]
    got = study.run(
        study.routing(result["zipf_44"]), study.MXFP4, row["slots"], result["layer_ns_fitted"],
        result["disk_bytes_per_s_fitted"],
    )  # fmt: skip
    assert got["misses"] == row["misses"]
    assert got["tokens_per_s"] == pytest.approx(row["tokens_per_s"], rel=1e-9)


def test_the_gpu_script_runs_through_without_one(tmp_path):
    profile = tmp_path / "mine.toml"
    disk = 'bytes_per_s = "1 GB/s"\nlatency_ns = "90 us"\nsource = "a test"\n'
    profile.write_text(f'base = "h100"\n[disk.direct]\n{disk}[disk.buffered]\n{disk}')
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), "--disk", str(place), "--backend", "host", "--quick",
         "--expert-size", "16KiB", "--tokens", "4", "--profile", str(profile), "--out",
         str(tmp_path / "tiers.json")],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "tiers.json").read_text())
    assert len(result["report"]) == 12
    assert all(r["verified"] and r["counters_equal"] for r in result["report"].values())
    assert not list(place.iterdir())
