"""`uvmsim validate`: hold the simulator against this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from uvmsim.commands.flags import Command


@click.command(cls=Command, short_help="Predict a grid of runs, measure them, report how far off.")
@click.argument("config", type=click.Path())
@click.option(
    "-o", "--output", metavar="DIR", help="Folder of the report; CONFIG's name with .validation."
)
@click.option("--hardware", metavar="FILE", help="Calibration file, instead of the config's.")
@click.option(
    "--backend", default="cuda", metavar="cuda|host",
    help="cuda (default), or host: the same path with no GPU, whose times mean nothing.",
)  # fmt: skip
@click.option("--lib", metavar="PATH", help="llama.cpp: a libllama or its folder, instead of the "
              "config's.")  # fmt: skip
@click.option(
    "--also",
    multiple=True,
    metavar="FILE",
    help="llama.cpp: another calibration, held "
    "against the same runs; its report is in a folder of its name. May be repeated.",
)
@click.option("--limit", type=click.IntRange(1), metavar="TOKENS", help="Only the first tokens.")
@click.option("--no-plot", is_flag=True, help="Leave out report.png.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def validate(
    config: str, output: str | None, hardware: str | None, backend: str, lib: str | None,
    also: tuple[str, ...], limit: int | None, no_plot: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run the grid of CONFIG (traces x modes x pool sizes x policies) on simulator and machine.

    Every prediction is on disk before the first measurement starts. Exits with 1 where a counter
    differs, an output could not be verified or a cell failed.

    With engine = "llama.cpp" in CONFIG, llama.cpp itself runs (models x modes x tests). With mode =
    "paging", the page model is held against the driver (cold runs, its events noted).

    \b
    Examples:
      uvmsim calibrate -o mine.toml
      uvmsim validate grid.toml --hardware mine.toml -o results
    """
    from replay.llama_cpp.validation.config import ENGINE as LLAMA_CPP
    from replay.llama_cpp.validation.config import engine_of
    from replay.paging.validation.config import MODE as PAGING
    from replay.paging.validation.config import mode_of
    from replay.records import write_report
    from replay.validate.config import load
    from replay.validate.report import print_report, to_markdown
    from replay.validate.validation import validate as run
    from traces.errors import InputError
    from uvmsim.report.plots import check_target
    from uvmsim.report.progress import bar

    folder = Path(output) if output else Path(config).with_suffix(".validation")
    if mode_of(config) == PAGING:
        if limit or backend != "cuda":
            raise InputError("--limit and --backend are not for paging; leave them out")
        _of_paging(config, folder, hardware, lib, no_plot, as_json)
        return
    if engine_of(config) == LLAMA_CPP:
        if limit or backend != "cuda":
            raise InputError("--limit and --backend are for the replay engine; leave them out")
        _of_llama_cpp(config, folder, hardware, lib, also, no_plot, as_json)
        return
    for option, value in (("--lib", lib), ("--also", also)):
        if value:
            raise InputError(f'{option}: is for engine = "{LLAMA_CPP}" in {config}')
    loaded = load(config)
    if limit:
        loaded.limit = limit
        for entry in loaded.trace:
            entry.limit = limit
    if not no_plot:
        check_target(str(folder.absolute().parent / "report.png"))
    with bar("validating") as progress:
        report = run(loaded, folder, backend=backend, hardware=hardware, progress=progress)
    if not no_plot:
        from replay.validate.plot import draw

        draw(report, str(folder / "report.png"))
        report["plot"] = "report.png"
        write_report(folder, report, to_markdown(report))
    _tell(report, folder, None if as_json else print_report, report["overall"]["passed"])


def _tell(
    report: dict[str, Any], folder: Path, show: Callable[[Any], None] | None, passed: bool
) -> None:
    """The report as ``show`` prints it, or as JSON; exit code 1 where it did not pass."""
    if show is None:
        click.echo(json.dumps(report, sort_keys=True))
    else:
        show(report)
        click.echo(f"wrote {folder / 'report.md'}")
    if not passed:
        sys.exit(1)


def _of_paging(
    config: str, folder: Path, hardware: str | None, lib: str | None, no_plot: bool, as_json: bool
) -> None:
    """Predict, run cold, print; exit code 1 where a run failed or bytes by cause are not exact."""
    from replay.paging.validation.report import draw, print_report, to_markdown
    from replay.paging.validation.run import validate as run
    from replay.records import write_report
    from uvmsim.report.plots import check_target
    from uvmsim.report.progress import bar

    if not no_plot:
        check_target(str(folder.absolute().parent / "report.png"))
    with bar("validating") as progress:
        report = run(config, folder, hardware=hardware, library=lib, progress=progress)
    if not no_plot and draw(report, str(folder / "report.png")):
        report["plot"] = "report.png"
        write_report(folder, report, to_markdown(report))
    _tell(report, folder, None if as_json else print_report, report["overall"]["passed"])


def _of_llama_cpp(
    config: str, folder: Path, hardware: str | None, lib: str | None, also: tuple[str, ...],
    no_plot: bool, as_json: bool,
) -> None:  # fmt: skip
    """Predict, run llama.cpp, print; exit code 1 where a cell failed or a counter differs."""
    from replay.llama_cpp.validation.report import draw, print_report, to_markdown
    from replay.llama_cpp.validation.run import validate as run
    from replay.records import write_report
    from uvmsim.report.plots import check_target
    from uvmsim.report.progress import bar

    if not no_plot:
        check_target(str(folder.absolute().parent / "report.png"))
    with bar("validating") as progress:
        reports = run(config, folder, hardware=hardware, library=lib, also=also, progress=progress)
    if not no_plot:
        for place, one in reports.items():
            draw(one, str(place / "report.png"))
            one["plot"] = "report.png"
            write_report(place, one, to_markdown(one))
    report = reports[folder]
    passed = not report["overall"]["failed"] and all(c["equal"] for c in report["counters"])
    _tell(report, folder, None if as_json else print_report, passed)
