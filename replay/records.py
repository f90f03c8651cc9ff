"""Files that say what was predicted and measured, and from which machine: whole or not there."""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

from traces.errors import InputError
from uvmsim.machine.hardware import Hardware

PREDICTIONS, MEASUREMENTS, REPORT = "predictions.json", "measurements.json", "report.json"
TEXT, PLOT = "report.md", "report.png"


def now() -> str:
    """This moment in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_text(path: Path, text: str) -> None:
    """The whole file, under a temporary name first."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`write_text` of JSON with sorted keys."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_profile(target: Path, text: str, raw: dict[str, Any]) -> tuple[Path, Path]:
    """A calibrated profile and its raw tables beside it; both paths."""
    tables = target.with_suffix(".measurements.json")
    write_json(tables, raw)
    write_text(target, text)
    Hardware.load(str(target))  # what we wrote must be what the simulator reads
    return target, tables


def to_predict_from(spec: str | None) -> tuple[str, Hardware]:
    """The machine that a validation predicts from. Raises `InputError`."""
    if not spec:
        raise InputError(
            "no hardware to predict from; name the calibration file: hardware = 'mine.toml' in the "
            "config, or --hardware mine.toml"
        )
    return spec, Hardware.load(spec)


def described(hw: Hardware, spec: str) -> dict[str, Any]:
    """The machine as a report names it, with the SHA-256 of its file."""
    file = Path(spec)
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    return {"name": hw.name, "gpu": hw.gpu, "file": file.name, "sha256": digest}


def report_folder(folder: str | Path) -> Path:
    """Where a report goes. Raises `InputError` where that is a file."""
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{folder}: is a file; give a folder for the report")
    return target


def cleared(folder: Path, *more: str) -> None:
    """Make the folder, without the measurements and reports (and ``more``) of an earlier validation:
    never beside predictions that they do not belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*more, MEASUREMENTS, REPORT, TEXT, PLOT):
        (folder / old).unlink(missing_ok=True)


def write_report(folder: Path, report: dict[str, Any], text: str) -> None:
    """``report.json``, and ``text`` as ``report.md``."""
    write_json(folder / REPORT, report)
    write_text(folder / TEXT, text)
