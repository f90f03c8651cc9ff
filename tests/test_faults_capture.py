"""Recording page faults through CUPTI, with a stand-in for it (`fake_cupti`)."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_cupti import NOW, FakeCupti, install

from traces import InputError
from traces.capture import cuda_driver
from traces.capture import cupti as capture_cupti
from traces.capture.cupti import FaultRecording
from traces.commands.capture import capture
from traces.faults import open_faults
from traces.faults.check import check_faults
from traces.faults.stats import fault_statistics

HTOD, DTOH, CPU, GPU, THRASHING, THROTTLING, REMOTE_MAP, DTOD = range(1, 9)
FAULT = {"counter_kind": GPU, "address": 4096, "start": NOW + 5, "end": NOW + 9, "value": 3}


@pytest.fixture
def cupti(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupti]:
    fake = FakeCupti()
    install(fake, monkeypatch, devices=2)
    yield fake
    assert capture_cupti._active is None  # whatever happened, another recording can start


def test_every_kind_of_record(cupti: FakeCupti, tmp_path: Path) -> None:
    with FaultRecording(tmp_path / "t.arrow", meta={"command": "x"}) as recording:
        cupti.emit(
            [
                {"counter_kind": DTOH, "address": 2 << 20, "value": 2 << 20, "start": NOW + 50}
                | {"end": NOW + 70, "flags_": 4, "src_id": 1, "dst_id": 9},
                FAULT | {"flags_": 2, "src_id": 1},
                {"counter_kind": HTOD, "address": 65536, "value": 65536, "start": NOW + 20}
                | {"end": NOW + 30, "flags_": 3, "src_id": 9, "dst_id": 1},
                {"counter_kind": CPU, "address": 8192, "value": 2**63, "start": NOW + 2},
                {"counter_kind": THRASHING, "address": 4096, "value": 8192, "start": NOW + 80},
                {"counter_kind": THROTTLING, "start": NOW + 90, "end": NOW + 95, "src_id": 1},
                {"counter_kind": REMOTE_MAP, "address": 4096, "value": 4096, "start": NOW + 99}
                | {"end": NOW + 99, "flags_": 4},
                {"counter_kind": DTOD, "start": NOW + 1},
                {"counter_kind": 77, "start": NOW + 1},
                {"counter_kind": HTOD, "value": 1, "start": 0, "end": NOW},
                FAULT | {"start": NOW + 100, "end": NOW + 100, "flags_": 42, "value": 2**40},
            ]
        )
    assert recording.rows == 8 and recording.ignored == 3 and recording.dropped == 0
    t = open_faults(tmp_path / "t.arrow")
    assert t.complete and t.meta["origin_ns"] == NOW and t.meta["command"] == "x"
    names = ("time_ns", "kind", "address", "bytes", "duration_ns", "count", "access", "cause")
    names += ("device",)
    assert list(zip(*(t.column(n).to_pylist() for n in names), strict=True)) == [
        (2, "cpu_fault", 8192, None, None, None, None, None, None),
        (5, "gpu_fault", 4096, None, 4, 3, "write", None, 1),
        (20, "migration_in", 65536, 65536, 10, None, None, "prefetch", 1),
        (50, "migration_out", 2 << 20, 2 << 20, 20, None, None, "eviction", 1),
        (80, "thrashing", 4096, 8192, None, None, None, None, None),
        (90, "throttling", None, None, 5, None, None, None, 1),
        (99, "remote_map", 4096, 4096, 0, None, None, "out_of_memory", None),
        (100, "gpu_fault", 4096, None, 0, 2**31 - 1, "code 42", None, 0),
    ]
    assert set(t.column("process").to_pylist()) == {77}


def test_a_trace_says_how_it_was_recorded(cupti: FakeCupti, tmp_path: Path) -> None:
    cupti.dropped = 7
    with FaultRecording(tmp_path / "t.arrow") as recording:
        recording.remarks = {"tensors": {"output.weight": [4096, 8]}}
        cupti.emit([FAULT, FAULT | {"counter_kind": 77}], now=True)
        cupti.emit([FAULT])
    t = open_faults(tmp_path / "t.arrow")
    said = t.meta["recording"]
    assert {n: said[n] for n in ("delivered", "dropped", "ignored", "buffers")} == {
        "delivered": 3,
        "dropped": 7,
        "ignored": 1,
        "buffers": 2,
    }
    assert said["tensors"] == {"output.weight": [4096, 8]}
    assert any("lost 7 records" in note for note in said["notes"])
    assert fault_statistics(t)["missing"]["dropped"] == 7
    assert fault_statistics(t)["missing"]["unwritten"] == 0
    found = {f.code: (f.severity, f.count) for f in check_faults(t)}
    assert found["lost-records"] == ("warning", 7)
    t.save(tmp_path / "u.arrow")  # a copy says the same
    assert open_faults(tmp_path / "u.arrow").meta["recording"] == said


def test_the_steps_clock_is_put_on_cuptis_axis(cupti: FakeCupti, tmp_path: Path) -> None:
    apart = 5_000_000_000
    cupti.get_timestamp = lambda: time.monotonic_ns() + apart  # type: ignore[method-assign]
    with FaultRecording(tmp_path / "t.arrow") as recording:
        now = time.monotonic_ns() - recording.clock.origin_monotonic_ns
        assert abs(recording.now_ns() - now) < 1_000_000
        apart += 3_000_000
        cupti.emit([FAULT])
    assert recording.clock.drift_ns == pytest.approx(3_000_000, abs=100_000)


def test_what_cupti_is_told(cupti: FakeCupti, tmp_path: Path) -> None:
    configs: list[Any] = []
    make = cupti.ActivityUnifiedMemoryCounterConfig
    cupti.ActivityUnifiedMemoryCounterConfig = lambda n: configs.append(make(n)) or configs[-1]  # type: ignore
    for name in ("a", "b"):
        with FaultRecording(tmp_path / name):
            cupti.emit([FAULT])
    once = ["activity_configure_unified_memory_counter", "activity_enable", "activity_flush_period"]
    once += ["activity_flush_all", "activity_disable", "activity_flush_all"]
    once += ["activity_get_num_dropped_records"]
    calls = [c[0] for c in cupti.calls if c[0] != "get_timestamp"]
    # The callbacks are registered once a process.
    assert calls == ["activity_register_callbacks", *once, *once]
    assert ("activity_configure_unified_memory_counter", 14) in cupti.calls
    assert [c for c in cupti.calls if c[0] == "activity_flush_all"][:2] == [
        ("activity_flush_all", 1),
        ("activity_flush_all", 1),
    ]
    settings = [(c.scope, c.device_id, c.kind, c.enable) for c in configs[0].items]
    assert settings == [(1, device, kind, 1) for device in range(2) for kind in range(1, 8)]


def test_buffers_come_while_the_program_runs_and_from_other_threads(
    cupti: FakeCupti, tmp_path: Path
) -> None:
    with FaultRecording(tmp_path / "t.arrow") as recording:
        for i in range(3):
            late = FAULT | {"start": NOW + 1000 - 10 * i, "end": NOW + 1001, "value": i}
            threads = [threading.Thread(target=cupti.emit, args=([late],), kwargs={"now": True})]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
    assert recording.rows == 3
    got = open_faults(tmp_path / "t.arrow")
    assert got.numbers("time_ns").tolist() == [980, 990, 1000]
    cupti.emit([FAULT], now=True)  # after the end: nobody records it, nothing happens


def test_records_of_other_kinds_in_the_same_buffer(cupti: FakeCupti, tmp_path: Path) -> None:
    with FaultRecording(tmp_path / "t.arrow") as recording:
        cupti.emit([FAULT, FAULT | {"kind": 3}, FAULT])
        cupti.emit([FAULT | {"kind": 3}], now=True)
        cupti.deliver([])
    assert recording.rows == 2


def test_lost_records_are_said(cupti: FakeCupti, tmp_path: Path) -> None:
    cupti.dropped = 5
    with FaultRecording(tmp_path / "t.arrow") as recording:
        cupti.emit([FAULT])
    assert recording.dropped == 5 and "lost 5 records" in recording.notes[0]


def test_no_events_leave_no_file(cupti: FakeCupti, tmp_path: Path) -> None:
    with FaultRecording(tmp_path / "t.arrow") as recording:
        pass
    assert recording.rows == 0 and not list(tmp_path.iterdir())


def test_an_exception_keeps_what_was_recorded(cupti: FakeCupti, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), FaultRecording(tmp_path / "t.arrow") as recording:
        cupti.emit([FAULT])
        raise ZeroDivisionError
    assert recording.rows == 1
    t = open_faults(tmp_path / "t.arrow.partial")
    assert not t.complete and t.n_rows == 1


def test_a_kill_loses_nothing_that_was_handed_over(cupti: FakeCupti, tmp_path: Path) -> None:
    with FaultRecording(tmp_path / "t.arrow") as r:
        cupti.emit([FAULT], now=True)
        cupti.emit([FAULT | {"start": NOW + 1, "end": 0}], now=True)
        r.settle()
        on_disk = (tmp_path / "t.arrow.partial").read_bytes()
    (tmp_path / "k.arrow").write_bytes(on_disk)
    t = open_faults(tmp_path / "k.arrow")
    assert not t.complete and t.numbers("time_ns").tolist() == [1, 5]


def test_a_disk_full_at_the_end(
    cupti: FakeCupti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(InputError, match="No space left"),
        FaultRecording(tmp_path / "t.arrow") as r,
    ):
        cupti.emit([FAULT])
        monkeypatch.setattr(r._writer, "close", _full)
    assert open_faults(tmp_path / "t.arrow.partial").n_rows == 1


def test_trouble_at_the_end_costs_no_events(cupti: FakeCupti, tmp_path: Path) -> None:
    cupti.refuse = {"activity_disable": 26, "activity_get_num_dropped_records": 26}
    with FaultRecording(tmp_path / "t.arrow") as recording:
        cupti.emit([FAULT])
    assert open_faults(tmp_path / "t.arrow").n_rows == 1 and len(recording.notes) == 2


def test_a_failure_while_recording_is_raised_at_the_end(
    cupti: FakeCupti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(InputError, match=r"writing failed \(No space left\)"),
        FaultRecording(tmp_path / "t.arrow") as r,
    ):
        cupti.emit([FAULT], now=True)
        r.settle()
        monkeypatch.setattr(r._writer, "append", _full)
        cupti.emit([FAULT], now=True)
        cupti.emit([FAULT], now=True)
    assert open_faults(tmp_path / "t.arrow.partial").n_rows == 1
    with (
        pytest.raises(InputError, match="bad"),
        FaultRecording(tmp_path / "u.arrow") as r,
    ):
        monkeypatch.setattr(r._decoder, "copy", _bad)
        cupti.emit([FAULT])
    assert not (tmp_path / "u.arrow.partial").exists()


def _full(*arguments: Any, **columns: Any) -> None:
    raise OSError(28, "No space left")


def _bad(records: Any) -> None:
    raise InputError("bad")


def test_one_recording_at_a_time(cupti: FakeCupti, tmp_path: Path) -> None:
    with FaultRecording(tmp_path / "t.arrow"):
        cupti.emit([FAULT])
        with pytest.raises(InputError, match="one CUPTI recording at a time"):
            FaultRecording(tmp_path / "u.arrow").__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["t.arrow"]


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("activity_configure_unified_memory_counter", 35, "INSUFFICIENT_PRIVILEGES.*root"),
        ("activity_enable", 26, "HARDWARE_BUSY.*other profiler"),
        ("activity_register_callbacks", 4711, r"error 4711"),
        ("get_timestamp", 4711, r"error 4711"),
    ],
)
def test_cupti_refuses(
    cupti: FakeCupti, tmp_path: Path, call: str, status: int, message: str
) -> None:
    cupti.refuse = {call: status}
    with pytest.raises(InputError, match=message) as e:
        FaultRecording(tmp_path / "t.arrow").__enter__()
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_no_cupti_no_driver_no_gpu(
    cupti: FakeCupti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = FaultRecording(tmp_path / "t.arrow")
    monkeypatch.setattr(cuda_driver, "start", _no_gpu)
    with pytest.raises(InputError, match="sees no GPU"):
        recording.__enter__()
    monkeypatch.setitem(sys.modules, "cupti.cupti", None)
    with pytest.raises(InputError, match=r"pip install 'uvmsim\[cupti\]'"):
        recording.__enter__()
    for problem in (ModuleNotFoundError("x", name="numpy"), RuntimeError("libcupti is too old")):
        monkeypatch.setattr(capture_cupti, "import_module", _raiser(problem))
        with pytest.raises(InputError, match="cannot be loaded"):
            recording.__enter__()
    assert not list(tmp_path.iterdir())


def _no_gpu() -> int:
    raise InputError("the NVIDIA driver sees no GPU here")


def _raiser(e: Exception) -> Any:
    def fail(name: str) -> None:
        raise e

    return fail


class Driver:
    """A stand-in for libcuda."""

    def __init__(self, code: int, devices: int) -> None:
        self.code, self.devices = code, devices

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0

    def cuGetErrorName(self, code: int, text: Any) -> int:
        text._obj.value = b"CUDA_ERROR_SYSTEM" if code == 802 else None
        return 0


@pytest.mark.parametrize(
    ("code", "devices", "message"),
    [(100, 0, "no GPU"), (0, 0, "no GPU"), (802, 0, "CUDA_ERROR_SYSTEM"), (5, 0, "error 5")],
)
def test_driver(monkeypatch: pytest.MonkeyPatch, code: int, devices: int, message: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(code, devices))
    with pytest.raises(InputError, match=message):
        cuda_driver.start()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(0, 3))
    assert cuda_driver.start() == 3
    monkeypatch.setattr(ctypes, "CDLL", _raiser(OSError()))
    with pytest.raises(InputError, match=r"libcuda\.so\.1 is missing"):
        cuda_driver.start()


# The command


def run(*args: object) -> Result:
    result = CliRunner().invoke(capture, ["cupti", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


SCRIPT = """\
import sys, threading
from cupti import cupti
print("argv", sys.argv[1:], __name__)
fault = {fault!r}
threading.Thread(target=cupti.emit, args=([fault],)).start()
{more}
"""


def script(path: Path, more: str = "") -> Path:
    path.write_text(SCRIPT.format(fault=FAULT, more=more))
    return path


def test_command(cupti: FakeCupti, tmp_path: Path) -> None:
    before = sys.argv[:], sys.path[:]
    out = tmp_path / "t.arrow"
    done = run("-o", out, "--", "python3.12", script(tmp_path / "p.py"), "--flag", "1")
    assert done.exit_code == 0
    assert done.stdout == "argv ['--flag', '1'] __main__\n"
    assert "1 events" in done.stderr and "trace stats" in done.stderr
    t = open_faults(out)
    assert t.complete and t.meta["command"] == "uvmsim capture cupti -- python p.py --flag 1"
    assert (sys.argv, sys.path) == before


def test_command_json_and_default_name(
    cupti: FakeCupti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path / "p.py")
    done = run("--json", "p.py", "--json")
    result = json.loads(done.stdout)
    assert result == {
        "out": "p.faults.arrow",
        "rows": 1,
        "exit_code": 0,
        "dropped": 0,
        "notes": [],
    }
    assert "argv ['--json']" in done.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run("-o", "m.arrow", "--", "python", "-m", "p", "x").exit_code == 0
    assert open_faults(tmp_path / "m.arrow").n_rows == 1


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ("sys.exit(3)", 3, "exit code 3"),
        ("sys.exit()", 0, "1 events"),
        ("sys.exit('over and out')", 1, "over and out"),
        ("raise KeyError('oh')", 1, "KeyError: 'oh'"),
    ],
)
def test_the_programs_end_is_passed_on_and_the_trace_kept(
    cupti: FakeCupti, tmp_path: Path, more: str, code: int, said: str
) -> None:
    done = run("-o", tmp_path / "t.arrow", script(tmp_path / "p.py", more))
    assert done.exit_code == code and said in done.stderr
    assert open_faults(tmp_path / "t.arrow").complete


def test_interrupted(cupti: FakeCupti, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"interrupted; .*t\.arrow\.partial"):
        run("-o", tmp_path / "t.arrow", script(tmp_path / "p.py", "raise KeyboardInterrupt"))
    assert open_faults(tmp_path / "t.arrow.partial").n_rows == 1


def test_a_program_without_managed_memory(cupti: FakeCupti, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("")
    with pytest.raises(InputError, match="no unified-memory event was seen"):
        run("-o", tmp_path / "t.arrow", tmp_path / "p.py")
    (tmp_path / "p.py").write_text("raise SystemExit(4)")
    assert run("-o", tmp_path / "t.arrow", tmp_path / "p.py").exit_code == 4
    assert [p.name for p in tmp_path.iterdir()] == ["p.py"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["python"], "no program given"),
        (["python", "-m"], "no module given"),
        (["python", "-O", "x.py"], "options of Python"),
        (["absent.py"], "no such script"),
        ([sys.executable.replace("python", "absent")], "no such script"),
    ],
)
def test_what_cannot_be_run(cupti: FakeCupti, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run("--", *words)
    assert not cupti.calls


def test_other_programs_are_pointed_to_nsight_systems(cupti: FakeCupti, tmp_path: Path) -> None:
    (tmp_path / "a.out").write_bytes(b"\x7fELF....")
    with pytest.raises(InputError, match="Nsight Systems"):
        run("--", tmp_path / "a.out")


MAIN = """\
import sys
from fake_cupti import FakeCupti
from traces.capture import cuda_driver
from traces.commands.capture import capture
package = type(sys)("cupti")
package.cupti = fake = FakeCupti()
sys.modules["cupti"], sys.modules["cupti.cupti"] = package, fake
cuda_driver.start, cuda_driver.synchronize = lambda: 1, lambda: None
capture()
"""


def run_process(folder: Path, more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which its program may replace."""
    (folder / "main.py").write_text(MAIN)
    program = script(folder / "p.py", more)
    here = Path(__file__).parent
    words = [sys.executable, folder / "main.py", "cupti", "-o", folder / "t.arrow", "--", program]
    path = os.pathsep.join([str(here), str(here.parent)])
    return subprocess.run(
        words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_a_program_that_starts_itself_anew_is_recorded_all_the_same(tmp_path: Path) -> None:
    done = run_process(
        tmp_path,
        "import os\n"
        "if 'ANEW' not in os.environ:\n"
        "    os.execve(sys.executable, sys.orig_argv, os.environ | {'ANEW': '1'})\n"
        "cupti.emit([fault | {'start': fault['start'] + 1}])",
    )
    assert done.returncode == 0, done.stderr
    assert open_faults(tmp_path / "t.arrow").n_rows == 2
    assert not list(tmp_path.glob("*.partial"))


def test_a_program_that_becomes_another_one_is_refused(tmp_path: Path) -> None:
    done = run_process(
        tmp_path,
        "import os\n"
        "words = [sys.executable, 'other.py', '--x']\n"
        "os.execve(words[0], words, os.environ | {'LD_PRELOAD': 'a.so'})",
    )
    assert done.returncode != 0
    said = "LD_PRELOAD=a.so uvmsim capture cupti -- python other.py --x"
    assert said in done.stderr and "would not be recorded" in done.stderr


def test_a_child_may_become_what_it_likes(tmp_path: Path) -> None:
    done = run_process(
        tmp_path,
        "import os\n"
        "if (child := os.fork()) == 0:\n"
        "    os.execv('/bin/true', ['true'])\n"
        "assert os.waitpid(child, 0)[1] == 0",
    )
    assert done.returncode == 0, done.stderr
    assert open_faults(tmp_path / "t.arrow").n_rows == 1
