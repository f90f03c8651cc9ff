"""What goes wrong in a replay is said in one line, and everything taken is given back."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
from routing import generate

from replay.backend.host import Faults, HostBackend
from replay.results import verified
from replay.session import How, Session
from traces.errors import InputError
from uvmsim.cli import main

FAST = How(dtype="fp32")


def replay(faults, job=None, mode="expert-cache", shuffle=None, how=FAST):
    backend = HostBackend(shuffle=shuffle, faults=faults)
    case = generate(4, decode=6)
    try:
        with Session(backend, how) as session:
            return session.run(job or case.job("lru", slots=4, write_back=True), mode), backend
    finally:
        assert backend.live_bytes == 0
        assert not any(backend._queues)


@pytest.mark.parametrize("shuffle", [None, 1])
@pytest.mark.parametrize("number", [0, 5, 40, 60])
def test_a_failed_copy_ends_the_run_and_frees_everything(number, shuffle):
    with pytest.raises(InputError, match=f"copy number {number} .* failed") as caught:
        replay(Faults(copy_fails=number), shuffle=shuffle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [0, 5, 40, 60])
def test_an_interrupt_ends_the_run_and_frees_everything(number):
    with pytest.raises(KeyboardInterrupt):
        replay(Faults(interrupt=number), shuffle=2)


@pytest.mark.parametrize("room", [100, 1000, 4000])
def test_a_pool_that_does_not_fit_is_refused_with_its_size(room):
    with pytest.raises(InputError, match=r"do not fit into the device's .* free") as caught:
        replay(Faults(device_bytes=room))
    assert "\n" not in str(caught.value)


def test_every_wrong_byte_of_the_run_is_found():
    """A flipped bit in any copy into a slot shows in an output, a slot or the bank."""
    case = generate(4, decode=6)
    job = case.job("lru", slots=4, write_back=True)
    clean, backend = replay(Faults(), job)
    assert verified(clean)
    learned = len(np.unique(job.workload.ids))
    run_copies = backend._copies - 2 * learned
    assert run_copies > 50
    for i in range(0, run_copies, 7):
        run, _ = replay(Faults(copy_corrupts=learned + i), job)
        assert not verified(run), i
        assert run.problems
        assert run.to_json()["status"] == "void"
        assert all("\n" not in p for p in run.problems)


def test_a_bad_link_is_noticed_before_the_run():
    with pytest.raises(InputError, match="arrived on the device are not those in the host"):
        replay(Faults(copy_corrupts=0))


def test_a_model_that_does_not_fit_is_a_row_not_an_error():
    case = generate(4)
    from uvmsim.machine.hardware import Hardware

    job = case.job(hardware=Hardware.load("rtx5090").with_(vram="8kB"))
    run, _ = replay(Faults(), job, "resident")
    row = run.to_json()
    assert row["status"] == "out-of-memory"
    assert not row["verified"]
    assert row["needed_bytes"] > row["available_bytes"]


def test_managed_memory_beyond_the_safe_share_is_refused():
    case = generate(4)
    job = case.job("lru", slots=4)
    size = sum(job.model.expert_bytes) * case.n_experts
    room = Faults(device_bytes=2 * size + 100)
    with pytest.raises(InputError, match="managed_at_own_risk"):
        replay(Faults(device_bytes=int(1.9 * size)), job, "uvm")
    assert verified(replay(room, job, "uvm")[0])
    bold = How(dtype="fp32", managed_at_own_risk=True)
    assert verified(replay(Faults(device_bytes=int(1.9 * size)), job, "uvm", how=bold)[0])


def test_misuse_is_one_line():
    case = generate(4)
    for job, mode, how in (
        (case.job("lru", slots=4), "paging", FAST),
        (case.job("lru", slots=4), "expert-cache", How(dtype="mxfp4")),
        (case.job("lru", slots=4), "expert-cache", How(dtype="fp32", split=0)),
        (case.job("lru", slots=4), "uvm", How(dtype="fp32", advice="be-quick")),
        (case.job("lru", slots=4, pinned=False), "zero-copy", FAST),
        (case.job(), "expert-cache", FAST),
    ):
        with pytest.raises(InputError) as caught:
            replay(Faults(), job, mode, how=how)
        assert "\n" not in str(caught.value)


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `uvmsim replay --backend host`; exit code, standard output and error."""

    def run(*args, faults=None):
        broken = functools.partial(HostBackend, faults=Faults(**(faults or {})))
        monkeypatch.setattr("replay.backend.host.HostBackend", broken)
        line = ["uvmsim", "replay", "--backend", "host", "--limit", "4", *args]
        monkeypatch.setattr(sys, "argv", line)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command_prints_rows_like_compare_and_says_verified(command):
    code, out, err = command("--policy", "lru,belady", "--mode", "expert-cache,stream", "--json")
    assert (code, err) == (0, "")
    d = json.loads(out)
    assert [r["policy"] for r in d["runs"]] == ["lru", "belady", None]
    assert all(r["verified"] is True and r["status"] == "ok" for r in d["runs"])
    from uvmsim.studies.compare import compare
    from uvmsim.studies.scenario import Scenario

    simulated = compare(Scenario(limit=4, slots=("25%",), policies=("lru",))).to_json()
    row = simulated["runs"][0]
    for key in ("hits", "misses", "hit_rate_by_layer", "evictions", "tokens", "slots"):
        assert d["runs"][0][key] == row[key]
    assert set(row) - set(d["runs"][0]) <= {"belady_misses", "misses_over_belady"}


def test_a_void_run_exits_with_1_and_says_why(command):
    code, out, err = command("--json", faults={"copy_corrupts": 150})
    assert code == 1
    assert err.startswith("error: void: ") and err.count("\n") == 1
    assert json.loads(out)["runs"][0]["verified"] is False
    code, out, _ = command(faults={"copy_corrupts": 150})
    assert code == 1 and "NO: void" in out


def test_errors_and_interrupts_of_the_command(command):
    code, out, err = command(faults={"copy_fails": 150})
    assert (code, out) == (2, "")
    assert err.startswith("error: copy number 150") and err.count("\n") == 1
    assert command(faults={"interrupt": 150})[0] == 130
    assert command("--mode", "uvm", faults={"device_bytes": 9_000_000})[0] == 2
    code, _, err = command("--dtype", "int3")
    assert code == 2 and "--dtype int3" in err


def test_without_a_card_the_command_says_what_to_do():
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        pytest.skip("there is a CUDA device")
    except Exception:
        pass
    line = [sys.executable, "-c", "from uvmsim.cli import main; main()", "replay", "--limit", "4"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--backend host" in done.stderr and done.stderr.count("\n") == 1
