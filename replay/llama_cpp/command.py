"""What `uvmsim calibrate --engine llama.cpp` prints."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.text import Text

from replay.calibrate.report import titled_table
from replay.llama_cpp.calibration import LlamaCalibration, write
from replay.llama_cpp.calibration import calibrate as measure
from replay.llama_cpp.fit import mean_error
from uvmsim.machine.llama_terms import term_of
from uvmsim.report.progress import bar, wide


def calibrate(
    target: Path, lib: str | None, model: str | None, base: str | None, threads: int | None,
    quick: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure, write ``target``, print. Raises `InputError`."""
    with bar("calibrating llama.cpp") as progress:
        found = measure(
            lib, model=model, base=base, threads=threads, quick=quick, progress=progress
        )
    profile, tables = write(found, target)
    if as_json:
        made = {"profile": str(profile), "tables": str(tables), "base": found.base}
        click.echo(json.dumps(found.to_json() | made, sort_keys=True))
        return
    _print(found)
    click.echo(f"measured in {found.seconds:.0f} s; wrote {profile} and {tables}")


def _print(found: LlamaCalibration) -> None:
    console = wide()
    console.print(Text(found.collected.build, style="bold"), soft_wrap=True)
    constants = titled_table("constants", "term", "value", "of what")
    for key, ns in sorted(found.fit.ns.items()):
        term = term_of(key)
        if term is not None and ns > 0:
            constants.add_row(key, f"{ns:.4g} ns/{term.unit}", term.meaning)
    console.print(constants)
    groups = titled_table("how well they meet the runs", "mode", "tests", "runs", "mean", "worst")
    by: dict[tuple[str, str], list[float]] = {}
    for e in found.collected.equations:
        kind = "one by one" if e.row else "prompts"
        name = f"{e.mode}, the model itself" if e.name == "model" else e.mode
        by.setdefault((name, kind), []).append(found.fit.errors[e.key])
    for (mode, kind), errors in by.items():
        worst = max(errors, key=abs)
        groups.add_row(mode, kind, str(len(errors)), f"{mean_error(errors):.1%}", f"{worst:+.0%}")
    console.print(groups)
    for model, factors in found.sharpened.items():
        told = ", ".join(f"{k} x{v:.2f}" for k, v in factors.items())
        console.print(Text(f"sharpened for {model}: {told}"), soft_wrap=True)
    for name, why in found.collected.errors.items():
        console.print(Text(f"note: {name} not run: {why}", style="dim"), soft_wrap=True)
