"""Machines described by what differs, printed whole, and all that is wrong said at once."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import InputError
from uvmsim.commands.lists import hardware
from uvmsim.machine.bases import _value
from uvmsim.machine.descriptions import preset_paths
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model

ENGINE = '\n[engine]\nname = "mine"\nsummary = "s"\n'


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "mine.toml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def quantity(key: str, value: str, source: str = "measured here") -> str:
    return f'\n[{key}]\nvalue = {value}\nsource = "{source}"\n'


# ---- base ------------------------------------------------------------------------------------------


def test_a_base_and_what_differs(file):
    path = file('base = "rtx4090"\n' + quantity("h2d_bytes_per_s", '"13 GB/s"'))
    mine, base = Hardware.load(path), Hardware.load("rtx4090")
    assert (mine.name, mine.gpu) == ("mine", base.gpu)
    assert mine.summary == "rtx4090, other h2d_bytes_per_s"
    told = {"name": mine.name, "summary": mine.summary, "h2d_bytes_per_s": 13 * 10**9}
    assert mine == replace(
        base, **told, sources=base.sources | {"h2d_bytes_per_s": "measured here"}
    )


def test_tables_of_the_base_are_added_to(file):
    path = file('base = "rtx5090"\n' + quantity("uvm.batch_ns", '"7 us"'))
    mine, base = Hardware.load(path), Hardware.load("rtx5090")
    assert mine.uvm == replace(base.uvm, batch_ns=7000) and mine.engine == base.engine
    path = file('base = "rtx5090"\n' + quantity("engine.dense_launch_ns", '"1 us"'))
    assert Hardware.load(path).engine.dense_launch_ns == 1000
    assert Hardware.load(path).engine.expert_launch_ns == base.engine.expert_launch_ns
    # An engine with a name of its own takes nothing over: this one says too little.
    with pytest.raises(InputError, match=r"'engine.dense_launch_ns'.* are missing"):
        Hardware.load(file('base = "rtx5090"\n' + ENGINE))
    path = file('base = "rtx5090"\nengine = "estimated"\n')
    assert Hardware.load(path).engine == Hardware.load("a100").engine


def test_speeds_of_an_engine_keep_their_share_of_what_differs(file):
    path = file('base = "rtx5090"\n' + quantity("compute_flops", '"251.4 TFLOPS"'))
    assert (
        Hardware.load(path).reach.compute_flops == 2 * Hardware.load("rtx5090").reach.compute_flops
    )


def test_a_base_may_be_a_file_with_a_base_and_parts(file, tmp_path):
    file('base = "rtx3090+pcie3"\n' + quantity("host_bytes", '"64 GiB"'), "sub/box.toml")
    top = file('base = "sub/box.toml+ddr4-3200"\nname = "top"\n' + quantity("duplex", "false"))
    h = Hardware.load(top)
    assert (h.name, h.duplex, h.host_bytes) == ("top", False, 64 << 30)
    part = Hardware.load("rtx3090+pcie3+ddr4-3200x2")
    assert h.h2d_bytes_per_s == part.h2d_bytes_per_s
    assert h.cpu_bytes_per_s == part.cpu_bytes_per_s


def test_a_file_that_is_its_own_base_is_refused(file, tmp_path):
    one = file('base = "two.toml"\n', "one.toml")
    file('base = "./one.toml"\n', "two.toml")
    with pytest.raises(InputError, match=r"based on this file itself") as e:
        Hardware.load(one)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ('"rtx4909"', "base: unknown hardware 'rtx4909'; did you mean rtx4090?"),
        ('"gone.toml"', "gone.toml: no such file"),
        ("7", "base: must be the name of a preset"),
        ('"rtx3090+pcie9"', "'pcie9' is no part of a machine; parts: ddr4-3200x2"),
    ],
)
def test_bad_bases(file, base, says):
    path = file(f"base = {base}\n")
    with pytest.raises(InputError) as e:
        Hardware.load(path)
    assert says in str(e.value) and str(e.value).startswith(path) and "\n" not in str(e.value)


# ---- printed whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*Hardware.list_presets(), "rtx3090+pcie3x8+ddr4-2666x2"])
def test_what_is_printed_is_read_back(name, file):
    shown = CliRunner().invoke(hardware, [name, "--toml"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert Hardware.load(file(shown.stdout)) == Hardware.load(name)


def test_with_another_program_and_what_a_user_gave(file):
    for h in (
        Hardware.load("a30", "replay-h100"),
        Hardware.load("h100").with_(vram="7GiB", link="11GB/s", ram="17GB/s", reserve="1GiB"),
        Hardware.load("h100", "replay-h100").with_(ram="17GB/s"),
    ):
        assert Hardware.load(file(h.to_toml())).numbers() == h.numbers()


def test_a_printed_file_reads_like_one_written_by_hand():
    told = tomllib.loads(Hardware.load("rtx5090").to_toml())
    by_hand = tomllib.loads(preset_paths("hardware")["rtx5090"].read_text())
    assert told["vram_bytes"] == by_hand["vram_bytes"]
    assert told["h2d_bytes_per_s"] == by_hand["h2d_bytes_per_s"]
    assert told["copy_latency_ns"] == by_hand["copy_latency_ns"]
    assert told["uvm"]["entry_ns"] == by_hand["uvm"]["entry_ns"]
    assert told["engine"]["name"] == "llama.cpp-rtx5090"


@given(
    key=st.sampled_from(["vram_bytes", "h2d_bytes_per_s", "copy_latency_ns", "compute_flops"]),
    value=st.integers(1, 2**62),
)
def test_no_number_is_rounded(key, value):
    from uvmsim.core import units

    parse = {
        "vram_bytes": units.parse_bytes, "h2d_bytes_per_s": units.parse_bandwidth,
        "copy_latency_ns": units.parse_time, "compute_flops": units.parse_flops,
    }  # fmt: skip
    assert parse[key](tomllib.loads(f"x = {_value(key, value)}")["x"]) == value


# ---- all faults at once ----------------------------------------------------------------------------


def faults(path: str, load=Hardware.load) -> str:
    with pytest.raises(InputError) as e:
        load(path)
    told = str(e.value)
    assert told.startswith(path) and "\n" not in told
    return told


def test_an_empty_file_names_all_that_is_missing(file):
    told = faults(file(""))
    for key in ("name", "gpu", "engine", "vram_bytes", "cpu_bytes_per_s", "duplex_factor"):
        assert f"{key!r}" in told
    assert 'are missing; or say base = "PRESET" and only what differs' in told
    assert "reserve_bytes" not in told and "host_bytes" not in told  # may be left out


def test_every_fault_is_said(file):
    text = preset_paths("hardware")["h100"].read_text()
    for old, new in (
        ("[vram_bytes]", "[vram_byte]"),
        ('value = "51 GB/s"', 'value = "51 GB"'),
        ("value = 0.88", "value = 1.5"),
        ('engine = "estimated-python"', 'engine = "estimated-pyton"'),
        ("[uvm.entry_ns]", "[uvm.entries_ns]"),
        ("[host_bytes]", "[gadget]"),
    ):
        assert old in text
        text = text.replace(old, new)
    text = text[: text.index("[pageable_d2h_bytes_per_s]")] + text[text.index("[duplex]") :]
    told = faults(file(text))
    for says in (
        "7 faults: (1) ",
        "unknown key 'vram_byte'; did you mean 'vram_bytes'?",
        "unknown key 'uvm.entries_ns'; did you mean 'entry_ns'?",
        "unknown key 'gadget'",
        "engine: unknown engine 'estimated-pyton'; did you mean estimated-python?",
        "zero_copy_bytes_per_s.value",
        "duplex_factor.value",
        "(7) key 'pageable_d2h_bytes_per_s' is missing",
    ):
        assert says in told, says


def test_one_fault_has_no_number(file):
    told = faults(file('base = "a30"\n[vram_byte]\nvalue = 1\nsource = "x"\n'))
    assert told.endswith("unknown key 'vram_byte'; did you mean 'vram_bytes'?")
    assert "faults" not in told


def test_models_and_engines_say_all_too(file):
    told = faults(file('name = "x"\nsummary = "y"\nsumary = "z"\n'), Model.load)
    assert "unknown key 'sumary'" in told and "'shape'" in told and "'types'" in told
    told = faults(file('name = "x"\n'), lambda p: Hardware.load("a30", p))
    assert "'summary', 'dense_launch_ns', 'expert_launch_ns'" in told


def test_the_command_line_says_it_in_one_line_and_exits_with_2(file):
    path = file('base = "rtx4090"\n[vram_byte]\nvalue = 1\n[duplex]\nvalue = 3\nsource = "x"\n')
    done = subprocess.run(
        [sys.executable, "-c", "from uvmsim.cli import main; main()", "hardware", path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "2 faults: (1) " in done.stderr
