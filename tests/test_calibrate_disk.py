"""Measuring a disk: rows, what they are reduced to, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from replay.calibrate import disk
from replay.calibrate.disk import check_folder, disk_rows, disk_tables
from replay.calibrate.profile import Measurements, to_toml
from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.tier import Tier


@pytest.fixture
def small(monkeypatch):
    """A file of 4 MiB and reads that fit it."""
    monkeypatch.setattr(disk, "QUICK_BYTES", 4 << 20)
    monkeypatch.setattr(disk, "WHOLE", (64 << 10, 1 << 20, 3 << 20))
    monkeypatch.setattr(disk, "SINGLE", (4 << 10, 64 << 10))
    monkeypatch.setattr(disk, "DEPTHS", (1, 3))


def test_a_disk_is_measured_and_left_as_it_was(tmp_path, small):
    rows = disk_rows(check_folder(tmp_path, True), True)
    assert not list(tmp_path.iterdir())
    assert {(r["mode"], r["what"]) for r in rows} == {
        ("direct", "calls"), ("buffered", "calls"), ("direct", "engine"), ("buffered", "engine"),
        ("mmap", "engine"),
    }  # fmt: skip
    assert all(r["median_ns"] > 0 and r["bytes_per_s"] > 0 for r in rows)


def test_the_profile_gets_what_was_measured(tmp_path):
    """A disk of exactly 80 us + bytes / 2 GB/s."""
    rows = [
        {"what": "engine", "mode": mode, "depth": 16, "bytes": n, "n": 5, "bytes_per_s": 1}
        | dict.fromkeys(("median_ns", "p10_ns", "p90_ns"), 80_000 + n / 2)
        for mode in ("direct", "mmap")
        for n in (1 << 20, 4 << 20, 16 << 20)
    ]
    found = Measurements("host", {"gpu": "none"}, "2026-01-01", {"disk": rows})
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(found, Hardware.load("h100"), "mine"))
    hw = Hardware.load(str(file))
    for mode in ("direct", "mmap"):
        tier = Tier.parse(f"nvme:mode={mode}", 1 << 30, hw.disk)
        assert (tier.bytes_per_s, tier.latency_ns) == (2 * 10**9, 80_000)
        assert int(tier.read_ns(4_000_000)) == 2_000_000  # all faults are in the rate
    with pytest.raises(InputError, match="no \\[disk\\]"):
        Tier.parse("nvme:mode=buffered", 1 << 30, hw.disk)
    assert disk_tables([]) == {}


@pytest.mark.parametrize("why", ["no such folder", "B free"])
def test_a_folder_that_will_not_do_is_one_line(tmp_path, monkeypatch, why):
    folder = tmp_path
    if why == "B free":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    else:
        folder = Path(tmp_path / "none")
    with pytest.raises(InputError, match=why) as err:
        check_folder(folder, True)
    assert "\n" not in str(err.value)


def test_a_disk_that_fails_leaves_no_file(tmp_path, small, monkeypatch):
    def fsync(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        disk_rows(tmp_path, True)
    assert not list(tmp_path.iterdir())
