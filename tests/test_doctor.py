"""`uvmsim doctor` says what is there, and imports nothing heavy to find out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from replay.commands.doctor import doctor
from replay.doctor import EXTRAS, examine
from uvmsim.machine.reports import System


class Said(System):
    """A machine with answers of its own."""

    def __init__(self, smi: str | None, files: dict[str, str] | None = None):
        self.smi, self.files = smi, files or {}

    def run(self, *command: str) -> str | None:
        return self.smi if command[0] == "nvidia-smi" else None

    def read(self, path: str) -> str | None:
        return self.files.get(path)


CARD = "NVIDIA H100 80GB HBM3, 81559, 0, 5, 16, 5, 16, 0\n"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Release Build\n"


def told(**asked) -> dict:
    return {x.what: x for x in examine(**asked)}


def test_without_a_gpu_it_says_what_still_runs():
    found = told(system=Said(None), installed=lambda name: None)
    assert not found["GPU"].there and "all else runs" in found["GPU"].gives
    assert "driver" not in found
    for name, _, gives in EXTRAS:
        x = found[f"extra {name}"]
        assert not x.there and x.gives == gives and f"uvmsim[{name}]" in x.said
    assert "install uvmsim again" in found["numpy"].gives


def test_all_there():
    files = {"/proc/driver/nvidia/version": DRIVER, "/proc/meminfo": "MemTotal: 1048576 kB\n"}
    found = told(system=Said(CARD, files), installed=lambda name: "1.2.3")
    assert all(x.there for x in found.values())
    assert found["GPU"].said.startswith("NVIDIA H100") and found["driver"].said == "580.159.04"
    assert "1 GiB" in found["host"].said or "1.00 GiB" in found["host"].said


@pytest.mark.parametrize("name", ["cupy-cuda12x", "cupy-cuda13x", "cupy"])
def test_any_cupy_will_do(name):
    found = told(system=Said(None), installed=lambda p: "14" if p == name else None)
    assert found["extra gpu"].there and not found["extra transformers"].there


def test_the_command_prints_a_table_or_json():
    plain = CliRunner().invoke(doctor, [])
    assert plain.exit_code == 0 and "extra gpu" in plain.output
    missing = [x.said for x in examine() if not x.there and x.what.startswith("extra")]
    assert all(said in plain.output for said in missing)  # brackets are no markup
    made = json.loads(CliRunner().invoke(doctor, ["--json"]).output)
    assert {"what", "there", "said", "gives"} == set(made["found"][0])


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from replay.doctor import examine; examine(); "
        "print([m for m in ('cupy', 'torch', 'numba', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
