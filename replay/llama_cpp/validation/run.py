"""The whole of it: routing, predictions to disk, llama.cpp, comparison."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replay.llama_cpp.validation.cells import Cell, Subject, cells_of
from replay.llama_cpp.validation.config import LlamaValidation, load
from replay.llama_cpp.validation.measure import Machine
from replay.llama_cpp.validation.predict import Routed, predict
from replay.llama_cpp.validation.report import to_markdown
from replay.llama_cpp.validation.score import counters, memory, overall, regret, rows_of
from replay.records import (
    MEASUREMENTS,
    PREDICTIONS,
    cleared,
    described,
    now,
    report_folder,
    to_predict_from,
    write_json,
    write_report,
)
from traces.capture.find_library import find_library
from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.version import __version__

Progress = Callable[[int, int, str], None]


def validate(
    config: LlamaValidation | str | os.PathLike[str],
    folder: str | Path,
    *,
    hardware: str | None = None,
    library: str | None = None,
    also: Sequence[str] = (),
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[Path, dict[str, Any]]:
    """Predict every cell, write that down, run llama.cpp, compare: reports by the folder they are in.

    The routing of the tokens to be run is recorded first, with everything resident: a prediction is
    made from it and the calibration alone. Files as `uvmsim validate` writes them. ``also``: further
    calibrations that predict the same cells before they run; each has its report in a folder of its
    file's name. Raises `InputError`.
    """
    if not isinstance(config, LlamaValidation):
        config = load(os.fspath(config))
    where = library or config.library
    gpu = find_library(where).uses_cuda
    sides = _sides(config, hardware or config.hardware, also, report_folder(folder))
    for side in sides:
        check(side.hw, side.spec, config, gpu)
    subjects = [Subject.load(m) for m in config.model]
    cells = cells_of(config, subjects)
    for side in sides:
        cleared(side.folder, PREDICTIONS)
    machine = Machine(config, where, gpu)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uvmsim-") as work:
        for i, subject in enumerate(subjects):
            mine = [c for c in cells if c.subject is subject]
            if progress:
                progress(i, len(subjects) + len(cells), f"routing of {subject.name}")
            routed = machine.route(subject, mine, Path(work))
            for cell in mine:
                by = {
                    ubatch: routed[ubatch, tuple(t.name for t in c.tests)]
                    for ubatch, c in cell.contexts(config.repetitions).items()
                }
                for side in sides:
                    side.predict(cell, by)
    for side in sides:
        side.write(PREDICTIONS, side.predicted)
    if say:
        say(f"{len(cells)} cells predicted in {time.monotonic() - begin:.0f} s, written to "
            f"{sides[0].folder / PREDICTIONS}")  # fmt: skip
    measured = _measure(config, machine, subjects, cells, sides, progress)
    told = {
        c.key: {
            "model": c.subject.name, "mode": c.mode, "size": c.size, "ncmoe": c.ncmoe,
            "cache_mib": c.cache_mib, "tests": [t.name for t in c.tests],
        }
        for c in cells
    }  # fmt: skip
    targets = {k.removeprefix("target_"): v for k, v in config.model_dump().items()
               if k.startswith("target_")}  # fmt: skip
    return {s.folder: s.report(told, measured, machine.build, targets) for s in sides}


@dataclass
class Side:
    """One calibration: what it predicts, and where that is written."""

    spec: str
    hw: Hardware
    folder: Path
    about: dict[str, Any]
    predicted: dict[str, Any] = field(default_factory=dict)

    def predict(self, cell: Cell, routed: dict[int, Routed]) -> None:
        """Keep what this calibration says of a cell, or why it says nothing."""
        try:
            self.predicted[cell.key] = predict(cell, self.hw, routed)
        except InputError as err:
            self.predicted[cell.key] = {"why": str(err), "tests": {}, "vram_bytes": {}}

    def write(self, name: str, found: dict[str, Any]) -> None:
        """What was found of the cells."""
        write_json(self.folder / name, {**self.about, "written": now(), "cells": found})

    def report(
        self, told: dict[str, Any], measured: dict[str, Any], build: str, targets: dict[str, Any]
    ) -> dict[str, Any]:
        """Compare, and write that down."""
        rows = rows_of(told, self.predicted, measured)
        found = {
            **self.about, "build": build, "rows": rows, "targets": targets,
            "overall": overall(rows), "memory": memory(told, self.predicted, measured),
            "counters": counters(told, self.predicted, measured),
            "regret": regret(rows, told, self.predicted),
        }  # fmt: skip
        write_report(self.folder, found, to_markdown(found))
        return found


def _sides(
    config: LlamaValidation, hardware: str | None, also: Sequence[str], folder: Path
) -> list[Side]:
    """The calibration that predicts, and others beside it. Raises `InputError`."""
    sides: list[Side] = []
    for given in (hardware, *also):
        spec, hw = to_predict_from(given)
        place = folder / Path(spec).stem if sides else folder
        if any(place == s.folder for s in sides):
            raise InputError(f"--also {spec}: another calibration has that name; rename the file")
        sides.append(Side(spec, hw, place, _about(config, hw, spec)))
    return sides


def check(hw: Hardware, spec: str, config: LlamaValidation, gpu: bool) -> None:
    """Refuse what no prediction could be made for. Raises `InputError`."""
    terms = hw.engine.terms
    if terms is None:
        raise InputError(
            f"{spec}: its engine ({hw.engine.name}) has no terms of llama.cpp; make one with "
            "`uvmsim calibrate --engine llama.cpp --lib DIR -o mine.toml`"
        )
    if terms.gpu != gpu:
        sides = ("a build with CUDA", "the CPU alone")
        ours, theirs = sides[not terms.gpu], sides[not gpu]
        raise InputError(
            f"{spec}: was calibrated with {ours}, and the library here is of {theirs}; calibrate "
            "this one (--lib)"
        )
    if not gpu and set(config.modes) - {"resident"}:
        raise InputError(
            "a library without CUDA has mode resident alone: leave the other modes out, or name a "
            "CUDA build (--lib)"
        )


def _measure(
    config: LlamaValidation,
    machine: Machine,
    subjects: list[Subject],
    cells: list[Cell],
    sides: list[Side],
    progress: Progress | None,
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    begin = time.monotonic()
    done = 0
    for subject in subjects:
        for group in machine.together([c for c in cells if c.subject is subject]):
            if progress:
                progress(len(subjects) + done, len(subjects) + len(cells), group[0].key)
            late = config.minutes and time.monotonic() - begin > 60 * config.minutes
            if late:
                made = [{"status": "failed", "why": "left out: no time"} for _ in group]
            else:
                made = machine.measure(group)
            found |= {c.key: m for c, m in zip(group, made, strict=True)}
            done += len(group)
            sides[0].write(MEASUREMENTS, found)
    if progress:
        progress(len(subjects) + done, len(subjects) + len(cells), "")
    return found


def _about(config: LlamaValidation, hw: Hardware, spec: str) -> dict[str, Any]:
    plain = config.model_dump(mode="json")
    plain |= {"model": [Path(m).name for m in config.model], "hardware": None, "library": None}
    plain["tests"] = [t.name for t in config.tests]
    plain["modes"] = {
        k: {"at": m.at, "tests": None if m.tests is None else [t.name for t in m.tests]}
        for k, m in config.modes.items()
    }
    return {
        "uvmsim": __version__,
        "engine": "llama.cpp",
        "hardware": described(hw, spec),
        "config": plain,
    }
