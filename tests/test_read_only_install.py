"""Where neither the package's folders nor a cache folder can be written, all still works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from traces.samples import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
ENTRY = "import sys; from uvmsim.cli import main; sys.argv[0] = 'uvmsim'; main()"


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The packages with a file where each cache folder would be: that stops root too."""
    where = tmp_path_factory.mktemp("read-only")
    for package in ("traces", "uvmsim", "replay"):
        shutil.copytree(
            ROOT / package, where / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for folder in [p for p in where.rglob("*") if p.is_dir()]:
        (folder / "__pycache__").touch()
    return where


def uvmsim(root: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments],
        env=inherited | {"PYTHONPATH": str(root)} | env, cwd=root,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


NOWHERE = {
    "HOME": "/proc/nohome",
    "XDG_CACHE_HOME": "/proc/nocache",
    "PYTHONDONTWRITEBYTECODE": "1",
}
COMMANDS = {
    "stats": ["trace", "stats", str(BUNDLED), "--json"],
    "compare": ["compare", "--policy", "lru", "--limit", "800", "--json"],
}


@pytest.mark.parametrize(
    "command",
    [
        "stats",
        "compare",
    ],
)
def test_results_are_the_same_and_one_note_says_why_it_is_slow(copy, command):
    done = uvmsim(copy, *COMMANDS[command], **NOWHERE)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("note: ") and "NUMBA_CACHE_DIR" in done.stderr
    usual = uvmsim(ROOT, *COMMANDS[command])
    assert usual.stderr == ""
    assert json.loads(done.stdout) == json.loads(usual.stdout)


def test_the_folder_the_note_asks_for_is_used(copy, tmp_path):
    done = uvmsim(copy, *COMMANDS["stats"], **NOWHERE | {"NUMBA_CACHE_DIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*.nbi"))


def test_every_kernel_survives_it(copy):
    """Modules whose kernels are kept on disk are imported without an error."""
    modules = [
        "traces.routing.hitrate", "traces.synth.kernels", "uvmsim.workload", "uvmsim.machine.timing",
        "uvmsim.studies.mrc.stack", "uvmsim.paging.kernels", "replay.calibrate.cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(modules)}"],
        env=os.environ | {"PYTHONPATH": str(copy)} | NOWHERE, cwd=copy,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: ") == 1


def test_other_errors_of_the_compiler_are_not_hidden():
    from traces.jit import compiled

    with pytest.raises(TypeError, match="not a function"):
        compiled()(3)


def test_help_starts_without_the_compiler():
    code = "import sys, uvmsim.cli; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
