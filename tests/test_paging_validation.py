"""`uvmsim validate` with mode = "paging", end to end with stand-ins for the GPU and for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_paging import BASE, _entry

import replay.backend
from replay.commands.validate import validate as command
from replay.paging.engine_kernels import engine_kernels, pages_of
from replay.paging.validation import engine, events, llama
from replay.paging.validation.compare import by_step, errors, observed_run
from replay.paging.validation.config import EngineRun, LlamaRun, load
from replay.paging.validation.run import validate
from replay.paging.validation.traced import partial_blocks, seen_of
from replay.session import layouts_of
from traces.capture.llama_cpp import capture
from traces.capture.options import CaptureOptions, Prompt
from traces.capture.uvm_columns import OPTIONAL, columns
from traces.capture.uvm_queue import GPU_FAULT, MIGRATION, REPLAY
from traces.errors import InputError
from traces.faults import FaultWriter, open_faults
from uvmsim.machine.hardware import Hardware

TINY = Path(__file__).parents[1] / "experiments" / "tiny_moe" / "tiny-moe.gguf"
PAGE, BIG = 4096, 65536


def entries(batches: int = 3, bigs: int = 8) -> np.ndarray:
    """Raw events: in each batch a fault on the first page of some 64 KiB pages that follow those of the
    batch before, and what the tree brings with it below its threshold."""
    made = []
    for b in range(batches):
        for i in range(bigs):
            at = BASE + ((b * bigs + i) << 21)
            made += [
                _entry(GPU_FAULT, "gpu_fault", batch=b, address=at, time=1000 * b + 10,
                       time_gpu=1000 * b, gpu=1, access=1),
                _entry(MIGRATION, "migration", cause=2, dst=1, address=at, bytes=PAGE,
                       begin=1000 * b + 20, begin_gpu=1000 * b + 5, end_gpu=1000 * b + 8),
                _entry(MIGRATION, "migration", cause=3, dst=1, address=at + PAGE, bytes=BIG - PAGE,
                       begin=1000 * b + 20, begin_gpu=1000 * b + 8, end_gpu=1000 * b + 11),
            ]  # fmt: skip
        made.append(_entry(REPLAY, "replay", batch=b, time=1000 * b + 500, time_gpu=1000 * b + 600))
    return np.concatenate(made)


def write_trace(path: Path, raw: np.ndarray, remarks: dict) -> None:
    writer = FaultWriter(path, {}, optional=OPTIONAL)
    for made in columns(raw, 0, 1):
        writer.append(**made)
    writer.close(remarks)


class Queue:
    """An event queue that has all at its last reading."""

    def __init__(self) -> None:
        self.left, self.closed = [entries()], False

    def read(self) -> np.ndarray:
        return np.zeros((0, 72), np.uint8)

    def enable(self) -> None: ...

    def flush(self) -> None:
        if self.closed:
            raise InputError("this event queue is closed")

    def close(self) -> None:
        self.closed = True

    def disable(self) -> None:
        self.read = lambda: self.left.pop() if self.left else np.zeros((0, 72), np.uint8)  # type: ignore

    def dropped(self) -> dict[str, int]:
        return {}


def run_llama(cell, library, out, *, managed, cold, faults=None, seconds=0.0):
    tokens = tuple(range(2, 2 + cell.prompt))
    options = CaptureOptions(n_predict=cell.predict, times=True, warm_up=True, ignore_eos=True)
    out.unlink(missing_ok=True)
    result = capture(cell.model, [Prompt(tokens=tokens)], out, options)
    if faults is not None:
        looks = [{"from_ns": 0, "came": 24 * BIG, "came_unrecorded": 0}]
        write_trace(faults, entries(), {"looks": looks, "managed": [[BASE, 49 * BIG + 1]]})
    return {"notes": [], "rows": result.rows, "faults": None}


@pytest.fixture
def stand_ins(monkeypatch):
    real = replay.backend.backend
    monkeypatch.setattr(replay.backend, "backend", lambda name: real("host"))
    monkeypatch.setattr(events, "EventQueue", Queue)
    monkeypatch.setattr(llama, "run", run_llama)


CONFIG = f"""
mode = "paging"
repetitions = 2
[[engine]]
name = "e"
expert_bytes = 65536
layers = 2
n_experts = 8
steps = 4
dtype = "fp32"
dense_bytes = 4096
[[llama]]
name = "l"
model = "{TINY}"
predict = 4
"""


def test_predictions_are_written_first_and_everything_is_compared(tmp_path, stand_ins, monkeypatch):
    (tmp_path / "c.toml").write_text(CONFIG)
    seen = []
    real = engine.measure

    def measure(*given):
        seen.append(json.loads((tmp_path / "out" / "predictions.json").read_text())["runs"])
        return real(*given)

    monkeypatch.setattr(engine, "measure", measure)
    report = validate(tmp_path / "c.toml", tmp_path / "out", hardware="rtx5090")
    assert set(seen[0]) == {"e", "l"}
    assert [r["status"] for r in report["rows"]] == ["ok", "ok"], report["rows"]
    for row in report["rows"]:
        driver = row["measured"]["driver"]
        assert driver["batches"] == 3 and driver["services"] == 24 and driver["entries"] == 24
        assert driver["bytes_in"] == 24 * BIG and driver["demand_bytes"] == 24 * PAGE
        assert all(v == 0 for v in row["given_faults"].values()), row["given_faults"]
        assert len(row["measured"]["step_ns"]) == 2
        assert not row["measured"]["problems"]
    assert report["overall"]["given_faults_worst"] == 0 and report["overall"]["passed"]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [
        "l.cold.arrow", "l.faults.arrow", "l.routing.arrow", "measurements.json",
        "predictions.json", "report.json", "report.md",
    ]  # fmt: skip
    assert "given the faults" in (tmp_path / "out" / "report.md").read_text()


def test_the_command_says_what_is_wrong(tmp_path, stand_ins):
    def said(text: str, *more: str) -> str:
        (tmp_path / "c.toml").write_text(text)
        done = CliRunner().invoke(command, [str(tmp_path / "c.toml"), *more])
        assert isinstance(done.exception, InputError), done.output
        return str(done.exception)

    assert "runs nothing" in said('mode = "paging"')
    assert "no hardware" in said(CONFIG, "-o", str(tmp_path / "o"))
    assert "has no [uvm] table" in said(CONFIG, "--hardware", "a100", "-o", str(tmp_path / "o"))
    assert "--limit" in said(CONFIG, "--limit", "3")
    assert "two runs" in said(CONFIG.replace('"l"', '"e"'))
    assert "table 1: unknown key 'stepz'; did you mean 'steps'?" in said(
        CONFIG.replace("steps", "stepz")
    )
    assert "table 1: steps: " in said(CONFIG.replace("steps = 4", "steps = 0"))


def test_a_run_that_fails_is_a_row(tmp_path, stand_ins, monkeypatch):
    def broken(*given, **more):
        raise InputError("no GPU")

    monkeypatch.setattr(engine, "measure", broken)
    (tmp_path / "c.toml").write_text(CONFIG)
    report = validate(tmp_path / "c.toml", tmp_path / "out", hardware="rtx5090")
    assert [r["status"] for r in report["rows"]] == ["failed", "ok"]
    assert not report["overall"]["passed"]


def test_the_engines_touches_cover_the_chosen_experts():
    run = EngineRun(name="e", expert_bytes=4 << 20, layers=2, n_experts=8, steps=3)
    hw = Hardware.load("h100")
    job = engine.job_of(run, hw)
    layouts = layouts_of(job.model, run.dtype)
    k = engine_kernels(job, layouts, hw, 132)
    w = job.workload
    assert len(k.step) == 3 * w.n_events + w.n_steps
    touched = {
        p for a, b in zip(k.first.tolist(), k.last.tolist(), strict=True) for p in range(a, b)
    }
    size = layouts[0].tail_at
    for e in np.unique(w.ids).tolist():
        first = e * (4 << 20)
        assert set(range(first // PAGE, (first + size) // PAGE)) <= touched
    assert max(touched) < pages_of(layouts, 8)
    assert (np.diff(k.wave_hi) >= 0).all() and k.touch_hi[-1] == len(k.first)


def test_a_trace_is_what_the_driver_said(tmp_path):
    raw = entries()
    write_trace(tmp_path / "t.arrow", raw, {"managed": [[BASE, (2 << 20) + 3 * PAGE]]})
    t = open_faults(tmp_path / "t.arrow")
    seen = seen_of(t)
    assert len(seen.faults) == 24 and len(seen.moves) == 48 and len(seen.replays) == 3
    assert partial_blocks(t) == {(BASE >> 21) + 1: 3}
    assert observed_run(seen)["batches"] == 3
    late = seen_of(t, 1500)
    assert len(late.faults) == 8
    assert sum(by_step(seen, np.array([0, 1000, 2000]))) == 24 * BIG
    assert by_step(seen, np.array([0, 1000, 2000]))[1] == 8 * BIG


def test_errors_by_hand():
    p = {"step_ns": [10, 30], "bytes_in": 110, "demand_bytes": 10, "tree_bytes": 100, "batches": 1,
         "services": 2, "operations": 3}  # fmt: skip
    d = {"bytes_in": 100, "demand_bytes": 10, "tree_bytes": 90, "batches": 2, "services": 2,
         "operations": 3}  # fmt: skip
    found = errors(p, d, [[20, 20], [20, 20]])
    assert found["bytes_in"] == pytest.approx(0.1) and found["batches"] == -0.5
    assert found["time"] == 0 and found["curve"] == 0.5


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "c.toml").write_text('mode = "paging"\n[[llama]]\nname = "l"\nmodel = "m.gguf"\n')
    (run,) = load(tmp_path / "c.toml").llama
    assert isinstance(run, LlamaRun) and run.model == str(tmp_path / "m.gguf")
