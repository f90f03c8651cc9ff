"""Recording by the paging driver's own queue, with a stand-in for the driver; which tracer is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cupti import NOW, FakeCupti, install
from fake_paging import BASE, _entry

from traces import InputError
from traces.capture import cuda_driver, driver_recording, looks, tracers, uvm_queue
from traces.capture.beside import send_away
from traces.capture.cupti import FaultRecording
from traces.capture.driver_recording import DriverRecording, raw_ns
from traces.capture.looks import Look
from traces.capture.options import CaptureResult
from traces.capture.uvm_queue import (
    FLUSH,
    GPU_FAULT,
    INIT_TRACKER,
    INIT_TRACKER_V2,
    MIGRATION,
    EventQueue,
)
from traces.faults import open_faults
from traces.faults.check import check_faults
from traces.faults.stats import fault_statistics

PAGE = 4096
SPACE = 9999


class Module:
    """nvidia-uvm's requests. A push's migrations are noted when it is asked to look at its channels
    (uvm_tools.c, `tools_schedule_completed_events`), which is a request to the address space's file."""

    def __init__(self, version: int = 580, flushes: bool = True) -> None:
        self.version, self.flushes = version, flushes
        self.waiting: list[np.ndarray] = []
        self.noted: list[np.ndarray] = []
        self.calls: list[tuple[int, int]] = []

    def ioctl(self, file: int, request: int, params: Any) -> int:
        self.calls.append((file, request))
        if request == INIT_TRACKER_V2 and self.version < 580:
            raise OSError(22, "Invalid argument")
        if request in (INIT_TRACKER, INIT_TRACKER_V2):
            params.status, params.granted = 0 if params.uvm_fd == SPACE else 0x16, 2
        elif request == FLUSH:
            if file != SPACE or not self.flushes:  # the tools' file knows no such request
                raise OSError(22, "Invalid argument")
            self.noted += self.waiting
            self.waiting = []
        return 0


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    m = Module()
    monkeypatch.setattr(uvm_queue.fcntl, "ioctl", m.ioctl)
    monkeypatch.setattr(uvm_queue, "_open", lambda: os.open(os.devnull, os.O_RDWR))
    monkeypatch.setattr(uvm_queue, "uvm_files", lambda: [8, SPACE])
    monkeypatch.setattr(cuda_driver, "managed", lambda size: 0)

    def read(self: Any) -> np.ndarray:
        found, m.noted = m.noted, []
        return np.concatenate([np.zeros((0, 72), np.uint8), *found])

    monkeypatch.setattr(uvm_queue.Ring, "read", read)
    return m


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("start", 1), ("retain", None), ("synchronize", None), ("names", ["H100"])):
        monkeypatch.setattr(cuda_driver, name, lambda v=value: v)


def fault(page: int, batch: int = 1) -> np.ndarray:
    return _entry(GPU_FAULT, "gpu_fault", address=BASE + page * PAGE, batch=batch, time=raw_ns(),
                  gpu=1, access=1)  # fmt: skip


def move(page: int, n: int = 1, inward: bool = True) -> np.ndarray:
    return _entry(MIGRATION, "migration", cause=2, dst=int(inward), src=int(not inward),
                  address=BASE + page * PAGE, bytes=n * PAGE, begin=raw_ns())  # fmt: skip


@pytest.mark.parametrize("version", [550, 580])
def test_the_flush_goes_to_the_address_space(module: Module, version: int) -> None:
    module.version = version
    with EventQueue(16) as queue:
        module.waiting.append(move(3))
        assert len(queue.read()) == 0
        assert queue.flush() is True
        assert len(queue.read()) == 1
        assert {file for file, request in module.calls if request == FLUSH} == {SPACE}
        assert SPACE not in {file for file, request in module.calls if request != FLUSH}
    with pytest.raises(InputError, match="this event queue is closed"):
        queue.flush()
    with pytest.raises(InputError, match="this event queue is closed"):
        queue.disable()


def test_a_driver_that_does_not_flush_is_said(module: Module, gpu: None, tmp_path: Path) -> None:
    module.flushes = False
    with DriverRecording(tmp_path / "t.arrow", entries=16) as recording:
        module.noted.append(fault(0))
    assert recording.rows == 1 and not recording.flushed
    assert any("copies may be missing" in note for note in recording.notes)
    assert open_faults(tmp_path / "t.arrow").meta["recording"]["flushed"] is False


def test_what_waits_is_noted_at_the_end(module: Module, gpu: None, tmp_path: Path) -> None:
    with DriverRecording(tmp_path / "t.arrow", meta={"command": "x"}, entries=16) as recording:
        module.noted.append(fault(0))
        recording.settle()
        module.noted.append(fault(7, 2))
        module.waiting += [move(0), move(7)]
    assert (recording.rows, recording.dropped, recording.ignored) == (4, 0, 0)
    t = open_faults(tmp_path / "t.arrow")
    assert t.complete and t.meta["command"] == "x" and t.meta["tracer"] == driver_recording.TRACER
    assert t.meta["recording"]["flushed"] and t.meta["recording"]["notes"] == []
    assert t.where("migration_in").sum() == 2
    assert t.numbers("batch")[t.where("gpu_fault")].tolist() == [1, 2]
    assert set(t.column("process").to_pylist()) == {os.getpid()}


def test_lost_events_and_missing_moves_are_said(
    module: Module, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = iter(([True] * 4, [False] * 3 + [True]))
    monkeypatch.setattr(
        looks.Look, "now",
        staticmethod(lambda at: Look(at, [(BASE, 4 * PAGE)], [np.array(next(where))])),
    )  # fmt: skip
    with DriverRecording(tmp_path / "t.arrow", entries=16) as recording:
        recording.look()
        module.noted += [fault(0), move(0)]
        module.waiting.append(move(1))
        recording._queue.ring.lost[uvm_queue.KINDS["migration"]] = 3
        recording.look()
    assert recording.dropped == 3 and "3 migration" in recording.notes[0]
    t = open_faults(tmp_path / "t.arrow")
    missing = fault_statistics(t)["missing"]
    assert missing["dropped"] == 3
    assert missing["looks"] == {
        "looks": 2, "came": 3 * PAGE, "came_unrecorded": PAGE, "went": 0, "went_unrecorded": 0,
    }  # fmt: skip
    found = {f.code: f for f in check_faults(t)}
    assert found["unrecorded-moves"].count == 1
    assert "to the GPU" in found["unrecorded-moves"].message


def test_an_exception_keeps_what_was_recorded(module: Module, gpu: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), DriverRecording(tmp_path / "t.arrow", entries=16):
        module.noted.append(fault(0))
        raise RuntimeError
    assert (tmp_path / "t.arrow.partial").exists() and not (tmp_path / "t.arrow").exists()


def test_no_events_leave_no_file(module: Module, gpu: None, tmp_path: Path) -> None:
    with DriverRecording(tmp_path / "t.arrow", entries=16) as recording:
        pass
    assert recording.rows == 0 and not list(tmp_path.iterdir())


def test_a_queue_that_cannot_be_had_leaves_nothing(
    module: Module, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvm_queue, "uvm_files", lambda: [8])
    with pytest.raises(InputError, match="gives no event queue"):
        DriverRecording(tmp_path / "t.arrow", entries=16).__enter__()
    assert not list(tmp_path.iterdir())


def test_the_queue_is_taken_where_it_can_be_made_whole(
    module: Module, gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert tracers.probe() is True
    module.flushes = False
    assert tracers.probe() is False
    assert tracers.chosen("cupti") == "cupti" and tracers.chosen("driver") == "driver"
    monkeypatch.setattr(tracers, "DEVICE", str(tmp_path / "none"))
    assert tracers.chosen("auto") == "cupti"
    monkeypatch.setattr(tracers, "DEVICE", str(tmp_path))
    for code, tracer in ((0, "driver"), (1, "cupti")):
        monkeypatch.setattr(tracers, "PROBE", f"raise SystemExit({code})")
        assert tracers.chosen("auto") == tracer


def test_cupti_looks_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeCupti()
    install(fake, monkeypatch, devices=1)
    monkeypatch.setattr(cuda_driver, "synchronize", lambda: None)
    now = iter((0, 100))
    monkeypatch.setattr(FaultRecording, "now_ns", lambda self: next(now))
    where = iter(([True, True], [False, False]))
    monkeypatch.setattr(
        looks.Look, "now",
        staticmethod(lambda at: Look(at, [(BASE, 2 * PAGE)], [np.array(next(where))])),
    )  # fmt: skip
    htod = {"counter_kind": 1, "address": BASE, "value": PAGE, "start": NOW + 20, "end": NOW + 30}
    with FaultRecording(tmp_path / "t.arrow") as recording:
        recording.look()
        fake.emit([htod | {"flags_": 2, "src_id": 9, "dst_id": 1}])
        recording.look()
    missing = fault_statistics(open_faults(tmp_path / "t.arrow"))["missing"]
    assert (missing["looks"]["came"], missing["looks"]["came_unrecorded"]) == (2 * PAGE, PAGE)


def test_a_kernel_that_does_not_tell_costs_a_note(
    module: Module, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(at: int) -> Look:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(looks.Look, "now", staticmethod(refused))
    with DriverRecording(tmp_path / "t.arrow", entries=16) as recording:
        recording.look()
        module.noted.append(fault(0))
    assert recording.notes == ["where pages are could not be asked (Operation not permitted)"]


def test_cold_sends_everything_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from traces.capture import residency

    sent: list[tuple[int, int]] = []
    said = CaptureResult(tmp_path / "r.arrow", 1)
    monkeypatch.setattr(cuda_driver, "synchronize", lambda: None)
    monkeypatch.setattr(residency, "managed_ranges", list)
    with pytest.raises(InputError, match="no managed memory to send"):
        send_away(None, said)
    monkeypatch.setattr(
        residency, "managed_ranges", lambda: [(BASE, 3 << 30), (BASE << 1, 1 << 30)]
    )
    monkeypatch.setattr(residency, "prefetch", lambda at, n, where: sent.append((at, n)))
    monkeypatch.setattr(residency, "on_gpu_bytes", lambda ranges: 0)
    looked: list[int] = []
    beside = type("Beside", (), {"look": lambda self: looked.append(1)})()
    send_away(beside, said)
    assert sent == [(BASE, 3 << 30), (BASE << 1, 1 << 30)] and looked == [1]
    assert said.notes[0].startswith("4.29 GB were sent to the host")
    monkeypatch.setattr(residency, "prefetch", lambda at, n, where: 801)
    with pytest.raises(InputError, match="refuses to send memory away"):
        send_away(None, said)
