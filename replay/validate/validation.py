"""The whole validation: predict every cell, write that down, then run the machine, then compare."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from replay.records import (
    MEASUREMENTS,
    PREDICTIONS,
    REPORT,
    cleared,
    described,
    now,
    report_folder,
    to_predict_from,
    write_json,
    write_report,
)
from replay.validate.bounds import bounds, peak_of
from replay.validate.config import ValidationConfig
from replay.validate.config import load as read_config
from replay.validate.grid import Cell, Grid, build
from replay.validate.measure import Runner
from replay.validate.predict import predict, speeds
from replay.validate.score import compare_cell, overall
from replay.validate.uvm import load as load_faults
from replay.validate.uvm import tables_of
from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.version import __version__

Progress = Callable[[int, int, str], None]


def validate(
    config: ValidationConfig | str | os.PathLike[str],
    folder: str | Path,
    *,
    backend: str = "cuda",
    hardware: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Predict, write, measure, compare; returns the report, which is in ``folder`` too. ``config``
    may be the path of its TOML file.

    Files: ``predictions.json`` (complete before the first measurement starts),
    ``measurements.json`` (rewritten after every cell, so an interrupt keeps what was measured),
    ``report.json``, ``report.md``. ``hardware`` replaces the config's. Raises `InputError`.
    """
    if not isinstance(config, ValidationConfig):
        config = read_config(os.fspath(config))
    spec, hw = to_predict_from(hardware or config.hardware)
    target = report_folder(folder)
    cleared(target)
    grid = build(config, hw)
    about = _about(config, hw, spec, grid, backend)
    begin = time.monotonic()
    faults = load_faults(spec) if "managed" in config.mode else None
    predicted = {}
    for i, cell in enumerate(grid.cells):
        if progress:
            progress(i, len(grid.cells), f"predict {cell.key}")
        predicted[cell.key] = predict(cell, faults)
    if any(p.get("free_prefetch_bytes") for p in predicted.values()):
        grid.notes.append("mode managed: prefetches are predicted to cost nothing")
    write_json(target / PREDICTIONS, {**about, "written": now(), "cells": predicted})
    if say:
        say(f"{len(predicted)} cells predicted in {time.monotonic() - begin:.1f} s, written to "
            f"{target / PREDICTIONS}")  # fmt: skip
    measured, machine = _measure(config, grid, predicted, backend, target, about, progress, say)
    if "managed" in config.mode and backend == "cuda":
        about["fault_recording"] = _count_faults(config, spec, measured, grid, say)
        write_json(target / MEASUREMENTS, {**about, "written": now(), "cells": measured})
    device = machine.get("device")
    if backend == "cuda" and device and device != hw.gpu:
        grid.notes.append(f"predicted for {hw.gpu}, measured on {device}")
    rows = [
        {**c.about(), "predicted": predicted[c.key], "measured": measured.get(c.key, {}),
         **compare_cell(predicted[c.key], measured.get(c.key, {}))}
        for c in grid.cells
    ]  # fmt: skip
    targets = {
        "mape": config.target_mape, "worst": config.target_worst, "tau": config.target_tau
    }  # fmt: skip
    report = {
        **about, "machine": machine, "notes": grid.notes, "targets": targets,
        "overall": overall(rows, targets), "rows": rows,
        "bounds": bounds(rows, peak_of(tables_of(spec))),
    }  # fmt: skip
    from replay.validate.report import to_markdown

    write_report(target, report, to_markdown(report))
    return report


def rewrite(folder: str | Path, hardware: str | Path) -> dict[str, Any]:
    """Make ``report.json`` and ``report.md`` in ``folder`` again from the former, without a machine;
    what is new since it was written comes from the tables beside ``hardware``. Raises `InputError`."""
    from replay.validate.report import to_markdown

    file = Path(folder) / REPORT
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        report["overall"] = overall(report["rows"], report["targets"])
        report["bounds"] = bounds(report["rows"], peak_of(tables_of(str(hardware))))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise InputError(f"{file}: is no report of uvmsim validate ({err})") from None
    write_report(Path(folder), report, to_markdown(report))
    return report


def _measure(
    config: ValidationConfig,
    grid: Grid,
    predicted: dict[str, dict[str, Any]],
    backend: str,
    target: Path,
    about: dict[str, Any],
    progress: Progress | None,
    say: Callable[[str], None] | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Every cell once, then again, while there is time; by cell what was found, and the machine."""
    cells = [c for c in grid.cells if predicted[c.key]["status"] == "ok"]
    runs: dict[str, list[dict[str, Any]]] = {c.key: [] for c in cells}
    found: dict[str, dict[str, Any]] = {}
    begin = time.monotonic()
    total = len(cells) * config.repetitions
    with Runner(backend) as runner:
        for turn in range(config.repetitions):
            # There and back again: cells of one trace share an expert bank, which is slow to make.
            for i, cell in enumerate(cells if turn % 2 == 0 else cells[::-1]):
                late = config.minutes and time.monotonic() - begin > 60 * config.minutes
                if (turn and late) or found.get(cell.key, {}).get("status") == "failed":
                    continue
                if progress:
                    progress(turn * len(cells) + i, total, cell.key)
                try:
                    runs[cell.key].append(runner.run(cell))
                    found[cell.key] = summarise(cell, runs[cell.key])
                except KeyboardInterrupt:
                    raise
                except Exception as err:  # one cell that fails is a row of the report
                    found[cell.key] = {"status": "failed", "why": f"{type(err).__name__}: {err}"}
                if say:
                    say(_line(cell, turn, predicted[cell.key], found[cell.key]))
                write_json(target / MEASUREMENTS, {**about, "written": now(), "cells": found})
        machine = runner.machine()
    if progress:
        progress(total, total, "")
    return found, machine


COUNTING_S = 60
"""Seconds after which no further cell's page faults are counted."""


def _count_faults(
    config: ValidationConfig,
    hardware: str,
    measured: dict[str, dict[str, Any]],
    grid: Grid,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Run the cells of mode ``managed`` once more, untimed, with the driver's page faults counted, and
    add them to what was measured; what the recording looked like."""
    begin = time.monotonic()
    cells = [
        c.key for c in grid.cells if c.mode == "managed" and "counters" in measured.get(c.key, {})
    ]
    found = count_faults(config, hardware, cells)
    for window in found["windows"]:
        keys = ("faults", "fault_groups", "bytes_in", "bytes_out", "by_cause")
        measured[window["cell"]]["faults"] = {k: window[k] for k in keys}
    if len(found["windows"]) < len(cells):
        grid.notes.append(f"page faults of {len(cells) - len(found['windows'])} cells were not "
                          f"counted: {found['why']}")  # fmt: skip
    grid.notes += [f"counting page faults: {n}" for n in found["recording"].get("notes", [])]
    if say:
        kept, seconds = found["recording"].get("rows", 0), time.monotonic() - begin
        why = f"; {found['why']}" if found["why"] else ""
        of = f"{len(found['windows'])} of {len(cells)}"
        say(f"page faults counted in {of} cells, {kept:,} records{why} ({seconds:.1f} s)")
    return found["recording"]


def count_faults(
    config: ValidationConfig, hardware: str, cells: list[str], backend: str = "cuda"
) -> dict[str, Any]:
    """`replay.calibrate.fault_count.count` for cells of a grid."""
    from replay.calibrate.fault_count import count

    return count(
        {
            "what": "validate", "config": config.model_dump(mode="json", exclude_defaults=True),
            "hardware": hardware, "cells": cells, "backend": backend, "seconds": COUNTING_S,
        },
        COUNTING_S + 60,
    )  # fmt: skip


def summarise(cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One measurement from repeated runs of a cell: the median of each step's duration.

    Counters must be the same in every run, or the cell has failed. ``repeats`` has the spread: the
    main speed of each run.
    """
    first = runs[0]
    if any(r["counters"] != first["counters"] for r in runs):
        return {"status": "failed", "why": "two runs of the same cell counted differently"}
    steps = np.median(np.array([r["step_ns"] for r in runs], np.float64), axis=0)
    each = [speeds(cell, np.asarray(r["step_ns"], np.float64)) for r in runs]
    keep = {k: first[k] for k in ("time_split_s", "host_issue_s") if first.get(k) is not None}
    return {
        "status": "ok",
        "verified": all(r["verified"] for r in runs),
        "counters": first["counters"],
        **speeds(cell, steps),
        **keep,
        "repeats": [e["decode_tokens_per_s"] or e["prefill_tokens_per_s"] for e in each],
    }


def _line(cell: Cell, turn: int, predicted: dict[str, Any], measured: dict[str, Any]) -> str:
    seen = compare_cell(predicted, measured)
    if seen["status"] == "failed":
        return f"{cell.key}: failed: {seen['why']}"
    error = "" if seen.get("error") is None else f", error {seen['error']:+.1%}"
    speed = measured.get("decode_tokens_per_s") or measured.get("prefill_tokens_per_s") or 0.0
    return f"{cell.key} #{turn + 1}: {seen['status']}, {speed:.2f} tok/s{error}"


def _about(
    config: ValidationConfig, hw: Hardware, spec: str, grid: Grid, backend: str
) -> dict[str, Any]:
    return {
        "uvmsim": __version__,
        "backend": backend,
        "hardware": described(hw, spec),
        "config": _plain(config),
        "traces": grid.traces,
    }


def _plain(config: ValidationConfig) -> dict[str, Any]:
    """The config with names of files instead of the paths of this machine."""
    made = config.model_dump()
    for entry in made["trace"]:
        for key in ("path", "profile", "model"):
            if entry[key]:
                entry[key] = Path(entry[key]).name
    if made["hardware"]:
        made["hardware"] = Path(made["hardware"]).name
    return made
