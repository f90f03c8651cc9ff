"""The process that counts page faults, CUPTI first and then CUDA: see `fault_count`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from replay.calibrate.fault_count import DEBUG
from traces.errors import InputError

Clock = Callable[[], int]
Window = dict[str, Any]
"""``begin_ns``, ``end_ns`` of one run on the records' clock, and what else is known of it."""


def main() -> None:
    """Answer the request on standard input in the file that it names."""
    request = json.loads(sys.stdin.read())
    Path(request["out"]).write_text(json.dumps(answer(request)), encoding="utf-8")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """``what``: ``calibrate`` (a run of the engine's synthetic routing), or ``validate`` (the
    ``cells`` of a ``config`` predicted for ``hardware``, none begun after ``seconds``).
    ``backend``: as usual. ``trace``: where the recording goes."""
    from traces.capture.cupti import FaultRecording

    windows: list[Window] = []
    trace = Path(request["trace"])
    recording = FaultRecording(trace)
    why, failed = "", ""
    try:
        with recording:
            try:
                WORK[request["what"]](request, recording.now_ns, windows)
            except (Exception, SystemExit) as err:  # what was counted before it still counts
                failed = f"{type(err).__name__}: {err}"
    except InputError as err:
        why = str(err)
    except Exception as err:  # a record that could not be taken over
        why = f"the recording failed: {type(err).__name__}: {err}"
    about: dict[str, Any] = {
        "rows": recording.rows, "buffers": recording.buffers, "ignored": recording.ignored,
        "dropped": recording.dropped, "notes": recording.notes,
    }  # fmt: skip
    made: list[dict[str, Any]] = []
    if recording.rows and trace.exists():
        made = _sum_up(trace, windows, about)
        if keep := os.environ.get(DEBUG):
            shutil.copyfile(trace, keep)
    if failed:
        about["failed"] = failed
    return {
        "windows": made, "recording": about,
        "why": why or failed or ("" if made else "CUPTI reported nothing"),
    }  # fmt: skip


def _sum_up(trace: Path, windows: list[Window], about: dict[str, Any]) -> list[dict[str, Any]]:
    from traces.faults import open_faults

    table = open_faults(trace).table
    at = table["time_ns"]
    about |= {"first_ns": pc.min(at).as_py(), "last_ns": pc.max(at).as_py()}
    about["everything"] = sums(table)
    made = []
    for w in windows:
        inside = pc.and_(pc.greater_equal(at, w["begin_ns"]), pc.less_equal(at, w["end_ns"]))
        made.append(w | sums(table.filter(inside)))
    return made


def sums(table: pa.Table) -> dict[str, Any]:
    """``fault_groups``, ``faults`` (records, a page each), ``bytes_in``, ``bytes_out``, and
    ``by_cause``: bytes of each kind of migration by its cause."""
    kind = pc.cast(table["kind"], pa.string())
    cause = pc.fill_null(pc.cast(table["cause"], pa.string()), "none")

    def of(name: str, column: str) -> int:
        return int(pc.sum(table.filter(pc.equal(kind, name))[column]).as_py() or 0)

    causes: dict[str, int] = {}
    flat = pa.table({"kind": kind, "cause": cause, "bytes": table["bytes"]})
    for r in flat.group_by(["kind", "cause"]).aggregate([("bytes", "sum")]).to_pylist():
        if r["bytes_sum"] is not None:
            causes[f"{r['kind']}, {r['cause']}"] = int(r["bytes_sum"])
    return {
        "faults": int(pc.sum(pc.equal(kind, "gpu_fault")).as_py() or 0),
        "fault_groups": of("gpu_fault", "count"),
        "bytes_in": of("migration_in", "bytes"),
        "bytes_out": of("migration_out", "bytes"),
        "by_cause": dict(sorted(causes.items())),
    }


@contextmanager
def timed(clock: Clock, windows: list[Window], **about: Any) -> Iterator[None]:
    """A window around what runs inside, which has the GPU to itself and leaves it idle."""
    begin = clock()
    yield
    windows.append({**about, "begin_ns": begin, "end_ns": clock()})


def _calibrate(request: dict[str, Any], clock: Clock, windows: list[Window]) -> None:
    """One run at random, as fault costs are fitted to, on half as many layers."""
    from dataclasses import replace

    from replay.backend import backend
    from replay.calibrate.uvm_mode import TOP_K, job, moves, plains
    from replay.session import How, Session
    from uvmsim.machine.hardware import Hardware

    quick = request.get("backend") == "host"
    plain = next(p for p in plains(quick) if p.run == "random" and p.slots == TOP_K)
    plain = replace(plain, layers=max(plain.layers // 2, 1), steps=12)
    made = job(plain, Hardware.load("h100"))
    m = moves(made)
    about = {
        "pattern": f"mode uvm, any {TOP_K} of {plain.n_experts} experts, room for {TOP_K}",
        "experts": int(m.missing.sum()), "missed_bytes": int(m.missing_bytes.sum()),
        "left_bytes": int(m.leaving_bytes.sum()),
    }  # fmt: skip
    with Session(backend(request.get("backend", "cuda"))) as session:
        session.around = lambda: timed(clock, windows, **about)
        session.run(made, "managed", How(dtype=plain.dtype))


def _validate(request: dict[str, Any], clock: Clock, windows: list[Window]) -> None:
    from replay.backend import backend
    from replay.session import How, Session
    from replay.validate.config import ValidationConfig
    from replay.validate.grid import build
    from uvmsim.machine.hardware import Hardware

    begin = time.monotonic()
    config = ValidationConfig.model_validate(request["config"])
    wanted = set(request["cells"])
    cells = [c for c in build(config, Hardware.load(request["hardware"])).cells if c.key in wanted]
    with Session(backend(request.get("backend", "cuda"))) as session:
        for cell in cells:
            if time.monotonic() - begin > request.get("seconds", 60):
                raise TimeoutError("no time left for further cells")
            session.around = lambda key=cell.key: timed(clock, windows, cell=key)  # type: ignore
            session.run(cell.job, cell.mode, How(dtype=cell.dtype))


WORK: dict[str, Callable[[dict[str, Any], Clock, list[Window]], None]] = {
    "calibrate": _calibrate,
    "validate": _validate,
}
