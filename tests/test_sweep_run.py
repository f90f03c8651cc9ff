"""Whole sweeps on this machine: finished, killed, gone on with, and surviving what cells do."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from uvmsim.studies.sweep.config import SweepConfig, load
from uvmsim.studies.sweep.execute import sweep
from uvmsim.studies.sweep.store import read

UVMSIM = [sys.executable, "-c", "from uvmsim.cli import main; main()"]
SIZE = "13.2MB"
GRID = """
expert_size = "13.2MB"
policy = ["lru", "lfu"]
slots = { from = "10%", to = "90%", steps = 9 }
link = { from = "8GB/s", to = "64GB/s", steps = 30 }
"""


def small(**axes) -> SweepConfig:
    grid = {"expert_size": SIZE, "limit": 40, "policy": ["lru", "lfu"], "slots": ["20%", "60%"],
            "link": ["8GB/s", "30GB/s"]}  # fmt: skip
    return SweepConfig(**(grid | axes))


def rows_by_cell(folder) -> dict[str, dict]:
    rows = read(folder).to_pylist()
    assert len(rows) == len({r["cell"] for r in rows})
    return {r["cell"]: r for r in rows}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_runs_once_and_grows_with_its_config(tmp_path, jobs):
    told: list[tuple[int, int, str]] = []
    first = sweep(small(), tmp_path, jobs=jobs, progress=lambda *a: told.append(a))
    assert (first.cells, first.ran, first.ok, first.errors) == (8, 8, 8, 0)
    assert [t[0] for t in told] == sorted(t[0] for t in told)
    assert told[0][:2] == (0, 8)
    assert told[-1][:2] == (8, 8)
    rows = rows_by_cell(tmp_path)
    again = sweep(small(), tmp_path, jobs=jobs)
    assert (again.already, again.ran, again.ok) == (8, 0, 8)
    more = sweep(small(slots=["20%", "40%", "60%"]), tmp_path, jobs=jobs)
    assert (more.cells, more.already, more.ran) == (12, 8, 4)
    grown = rows_by_cell(tmp_path)
    assert len(grown) == 12
    assert {k: grown[k] for k in rows} == rows


def test_processes_give_the_rows_of_one(tmp_path):
    sweep(small(), tmp_path / "one", jobs=1)
    sweep(small(), tmp_path / "two", jobs=2)
    assert rows_by_cell(tmp_path / "one") == rows_by_cell(tmp_path / "two")


def test_killed_at_any_moment_it_goes_on(tmp_path):
    config, folder = tmp_path / "grid.toml", tmp_path / "out"
    config.write_text(GRID)
    command = [*UVMSIM, "sweep", str(config), "-o", str(folder), "--jobs", "2", "--json"]
    sweep(small(), tmp_path / "warm", jobs=1)  # kernels compiled, so that the kills hit cells
    on_disk: dict[str, dict] = {}
    for kills in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
            if folder.is_dir() and list(folder.glob("rows-*")):
                now = ds.dataset(folder).count_rows()
                if now > len(on_disk) + 15 * kills:
                    break
        workers = _children(process.pid)
        process.kill()
        process.wait()
        _gone(workers)
        before, on_disk = on_disk, rows_by_cell(folder)
        assert {k: on_disk[k] for k in before} == before
    assert len(on_disk) > 0
    done = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (done["cells"], done["already"], done["ok"]) == (540, len(on_disk), 540)
    final = rows_by_cell(folder)
    assert len(final) == 540
    assert {k: final[k] for k in on_disk} == on_disk


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(x) for x in path.read_text().split()] if path.exists() else []


def _gone(pids: list[int]) -> None:
    """Workers do not outlive the sweep."""
    until = time.monotonic() + 20
    for pid in pids:
        while _running(pid):
            assert time.monotonic() < until, f"worker {pid} is still there"
            time.sleep(0.05)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_killed_from_outside_costs_no_row(tmp_path):
    config = small(slots=[f"{s}%" for s in range(10, 100, 5)], limit=[400])
    killed = []

    def kill_one(done: int, cells: int, what: str) -> None:
        if done and not killed:
            victim = multiprocessing.active_children()[0]
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    done = sweep(config, tmp_path, jobs=2, progress=kill_one)
    assert (done.cells, done.ok) == (72, 72)
    assert len(rows_by_cell(tmp_path)) == 72


DEADLY = """
import os, signal
from uvmsim.policies.lru import LRU as Base

class Deadly(Base):
    name = "deadly"
    def state(self, ctx):
        os.kill(os.getpid(), signal.SIGKILL)

class Broken(Base):
    name = "broken"
    def state(self, ctx):
        raise ValueError("no state today")
"""


def test_cells_that_fail_or_kill_their_process_are_rows(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(DEADLY)
    policies = ["lru", f"{file}:Deadly", f"{file}:Broken", "lfu"]
    config = small(
        policy=policies, slots=["20%"], mechanism=["expert-cache", "resident"], vram="64MiB"
    )
    done = sweep(config, tmp_path / "out", jobs=2)
    rows = rows_by_cell(tmp_path / "out").values()
    state = {(r["mechanism"], (r["policy"] or "").split(":")[-1], r["status"]) for r in rows}
    assert state == {
        ("expert-cache", "lru", "ok"), ("expert-cache", "lfu", "ok"),
        ("expert-cache", "Deadly", "error"), ("expert-cache", "Broken", "error"),
        ("resident", "", "out-of-memory"),
    }  # fmt: skip
    errors = {r["policy"].split(":")[-1]: r["error"] for r in rows if r["status"] == "error"}
    assert errors["Deadly"] == "the process running it died (SIGKILL)"
    assert "no state today" in errors["Broken"]
    assert (done.errors, done.out_of_memory) == (4, 2)
    file.write_text(DEADLY.replace("class Broken", "class Other"))
    retried = sweep(small(policy=["lru", "lfu"], slots=["20%"]), tmp_path / "out", retry=True)
    assert retried.cells == retried.ran == 4  # another VRAM: other cells; the failed ones are gone
    assert all(r["status"] != "error" for r in rows_by_cell(tmp_path / "out").values())


def test_the_command_tells_what_came_of_it(tmp_path):
    config = tmp_path / "grid.toml"
    config.write_text('expert_size = "13.2MB"\npolicy = "lru"\nslots = ["30%", 1]\nlimit = 30\n')
    run = [*UVMSIM, "sweep", str(config), "-o", "rows.parquet", "--jobs", "1"]
    text = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "2 cells in rows.sweep: 1 ok, 0 out of memory, 1 errors; 2 run now" in text.stdout
    assert "first error: a pool of 1 slots is smaller than" in text.stdout
    assert text.stderr == ""  # no progress bar where there is no terminal
    assert len(read(tmp_path / "rows.parquet")) == 2
    bad = subprocess.run([*run, "--plot", "x.jpeg"], cwd=tmp_path, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: x.jpeg: a picture's name ends in .png, .svg or .pdf\n"
    assert load(config).policy == ["lru"]
