"""Parts around a card: slots and host memory, and what follows from them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import InputError
from uvmsim.commands.lists import hardware
from uvmsim.machine.descriptions import preset_paths
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.parts import list_parts, part, split

# The standards: GB/s of sixteen lanes one way; of a 64 bit channel at 1,000 MT/s.
PCIE = {"pcie3": 15.754, "pcie4": 31.508, "pcie5": 63.015}
CHANNEL = 8.0
MACHINES = st.sampled_from(tuple(Hardware.list_presets()))
SLOTS = st.tuples(st.sampled_from(sorted(PCIE)), st.sampled_from((1, 2, 4, 8, 16)))


def test_the_parts_that_ship():
    assert tuple(list_parts()) == ("ddr4", "ddr5", *PCIE)
    shown = CliRunner().invoke(hardware, []).stdout
    assert all(name in shown for name in list_parts())


@pytest.mark.parametrize("name", PCIE)
def test_slots_against_their_standard(name):
    whole = part(name).bytes_per_s
    share = Hardware.load("h100").h2d_bytes_per_s / 63.015e9  # the one that was measured
    assert whole == pytest.approx(share * PCIE[name] * 1e9, rel=1e-3)
    for lanes in (1, 2, 4, 8, 16):
        assert part(f"{name}x{lanes}").bytes_per_s == pytest.approx(whole * lanes / 16, abs=1)


@pytest.mark.parametrize("name", ["ddr4", "ddr5"])
@pytest.mark.parametrize(("mt", "channels"), [(3200, 2), (4800, 8), (3600, 1)])
def test_memory_against_its_standard(name, mt, channels):
    p = part(f"{name}-{mt}x{channels}")
    assert p.bytes_per_s == pytest.approx(0.37 * mt * 1e6 * CHANNEL * channels, abs=1)
    assert p.source.startswith("estimate: 37 % of ")
    assert part(f"{name}-{mt}").bytes_per_s == part(f"{name}-{mt}x2").bytes_per_s


def test_the_machine_that_the_share_comes_from_has_what_it_had():
    five = Hardware.load("rtx5090")
    with_part = Hardware.load("rtx5090+ddr5-5600x2+pcie5")
    assert with_part.cpu_bytes_per_s == pytest.approx(five.cpu_bytes_per_s, rel=0.002)
    assert with_part.h2d_bytes_per_s == five.h2d_bytes_per_s
    assert with_part.name == "rtx5090+ddr5-5600x2+pcie5"


@given(MACHINES, SLOTS)
def test_a_slot_only_slows_down(name, slot):
    base = Hardware.load(name)
    h = Hardware.load(f"{name}+{slot[0]}x{slot[1]}")
    reached = part(f"{slot[0]}x{slot[1]}").bytes_per_s
    assert h.h2d_bytes_per_s == min(base.h2d_bytes_per_s, reached)
    assert h.zero_copy_bytes_per_s <= base.zero_copy_bytes_per_s
    assert h.zero_copy_bytes_per_s / h.h2d_bytes_per_s == pytest.approx(
        base.zero_copy_bytes_per_s / base.h2d_bytes_per_s, rel=1e-6
    )
    assert h.pageable_h2d_bytes_per_s <= h.h2d_bytes_per_s
    others = ("vram_bytes", "memory_bytes_per_s", "compute_flops", "cpu_bytes_per_s", "engine")
    assert all(getattr(h, k) == getattr(base, k) for k in others)


def test_sources_say_where_the_numbers_come_from():
    h = Hardware.load("rtx4090+pcie3x8+ddr4-1600")
    assert h.sources["h2d_bytes_per_s"].startswith("estimate: 86.8 % of 7.88 GB/s (pcie3 x8")
    assert h.sources["cpu_bytes_per_s"].startswith("estimate: 37 % of 25.6 GB/s (2 channels")
    assert "pcie3x8 (6.84 GB/s)" in h.sources["zero_copy_bytes_per_s"]
    assert h.sources["pageable_h2d_bytes_per_s"].startswith("estimate: with ddr4-1600")
    # What a part leaves as it is keeps its source.
    base = Hardware.load("rtx4090")
    assert h.sources["pageable_d2h_bytes_per_s"] == base.sources["pageable_d2h_bytes_per_s"]
    assert h.sources["vram_bytes"] == base.sources["vram_bytes"]
    assert set(h.sources) == {k for k, _, _ in h.quantities()}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rtx3090+pcie9", "'pcie9' is no part of a machine; parts: ddr4-3200x2, ddr5-5600x2, pcie3"),
        ("rtx3090+", "'' is no part"),
        ("rtx3090+pcie3x3", "write it like pcie3 or pcie3x8"),
        ("rtx3090+pcie3-8", "write it like pcie3 or pcie3x8"),
        ("rtx3090+ddr4-32", "ddr4 does 1,600 to 5,333 million transfers a second"),
        ("rtx3090+ddr5-6000x99", "1 to 24 channels"),
        ("rtx3090+pcie3+pcie4", "two parts of a kind (slot)"),
        ("rtx3091+pcie3", "unknown hardware 'rtx3091'; did you mean rtx3090?"),
    ],
)  # fmt: skip
def test_what_is_no_part_gets_one_line(text, says):
    with pytest.raises(InputError) as e:
        Hardware.load(text)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_plus_sign_in_a_path_is_the_paths(tmp_path):
    path = tmp_path / "a+b.toml"
    path.write_text(Hardware.load("a30").to_toml())
    assert Hardware.load(str(path)) == Hardware.load("a30")
    assert split(str(path)) == (str(path), [])
    both = Hardware.load(f"{path}+pcie3")
    assert both.h2d_bytes_per_s == part("pcie3").bytes_per_s


def test_a_part_is_one_file(tmp_path, monkeypatch):
    text = preset_paths("parts")["pcie5"].read_text().replace("pcie5", "pcie6")
    mine = tmp_path / "pcie6.toml"
    mine.write_text(text.replace("3938461538 B/s", "7.5 GB/s"))
    there = preset_paths
    monkeypatch.setattr(
        "uvmsim.machine.parts.preset_paths",
        lambda kind: there(kind) | ({"pcie6": mine} if kind == "parts" else {}),
    )
    assert part("pcie6").bytes_per_s == round(0.8681 * 16 * 7.5e9)
    assert "pcie6" in list_parts()


# ---- host memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Hardware.list_presets())
def test_a_machines_own_memory_changes_nothing(name):
    h = Hardware.load(name)
    assert h.with_(ram=h.cpu_bytes_per_s).numbers() == h.numbers()


def test_host_memory_bounds_the_cpu_and_pageable_copies():
    h = Hardware.load("rtx5090")
    slow, fast = h.with_(ram="20GB/s"), h.with_(ram="60GB/s")
    assert (slow.cpu_bytes_per_s, fast.cpu_bytes_per_s) == (20 * 10**9, 60 * 10**9)
    assert slow.pageable_h2d_bytes_per_s == slow.pageable_d2h_bytes_per_s == 10 * 10**9
    assert fast.pageable_h2d_bytes_per_s == h.pageable_h2d_bytes_per_s
    assert slow.h2d_bytes_per_s == h.h2d_bytes_per_s
    assert slow.sources["cpu_bytes_per_s"] == "given by the user (preset: 33.1 GB/s)"
    both = h.with_(link="8GB/s", ram="20GB/s")
    assert both.pageable_h2d_bytes_per_s == 8 * 10**9
    with pytest.raises(InputError, match="bandwidth"):
        h.with_(ram="60GB")


def test_an_engines_own_cpu_kernels_keep_their_share(tmp_path):
    from dataclasses import replace

    h = Hardware.load("h100")
    own = replace(
        h.engine, cpu_bytes_per_s=h.cpu_bytes_per_s // 2,
        sources=h.engine.sources | {"cpu_bytes_per_s": "measured"},
    )  # fmt: skip
    faster = replace(h, engine=own).with_(ram=2 * h.cpu_bytes_per_s)
    assert faster.reach.cpu_bytes_per_s == h.cpu_bytes_per_s


def test_json_of_a_machine_with_parts():
    told = CliRunner().invoke(hardware, ["rtx3090+pcie3", "--json"], catch_exceptions=False)
    data = json.loads(told.stdout)
    assert data["name"] == "rtx3090+pcie3" and data["h2d_bytes_per_s"] < 14e9
