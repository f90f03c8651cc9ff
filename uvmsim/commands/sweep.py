"""`uvmsim sweep`, `uvmsim plot`: a grid of runs, and its picture."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import Command


@click.command(
    cls=Command, short_help="Run a grid of configurations; stops and goes on at any moment."
)
@click.argument("config", type=click.Path())
@click.argument("traces", nargs=-1, type=click.Path(), metavar="[TRACE]...")
@click.option(
    "-o",
    "--output",
    metavar="DIR|FILE",
    help="Folder for the rows, default NAME.sweep here; with FILE.parquet or FILE.arrow all rows "
    "are written there too at the end.",
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes; default: all cores.")
@click.option(
    "--dask", metavar="ADDRESS", help="Run on an existing Dask scheduler, e.g. tcp://host:8786."
)
@click.option("--retry", is_flag=True, help="Run cells again that ended in an error.")
@click.option("--plot", metavar="FILE", help="Draw tokens/s over memory and link (PNG or SVG).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sweep(
    config: str, traces: tuple[str, ...], output: str | None, jobs: int | None, dask: str | None,
    retry: bool, plot: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Run every combination that CONFIG asks for and write one row each.

    CONFIG is a TOML file; each key is an option of `uvmsim compare` with one value, a list, or a
    range. Rows are appended to a folder of Parquet files as they finish. Killed at any moment and
    started again, it goes on where it was; a changed CONFIG only adds what is new. TRACE replaces
    the traces of the file.

    \b
    Example (sweep.toml):
      policy = ["lru", "lfu", "belady"]
      vram   = { from = "4GiB", to = "14GiB", steps = 41 }
      link   = ["12GB/s", "28GB/s", "55GB/s"]
    \b
      uvmsim sweep sweep.toml T.arrow --plot sweep.png
    """
    from pathlib import Path

    from uvmsim.report.progress import bar
    from uvmsim.report.sweep_plot import check_target
    from uvmsim.studies.sweep.config import load
    from uvmsim.studies.sweep.execute import default_folder
    from uvmsim.studies.sweep.execute import sweep as run
    from uvmsim.studies.sweep.store import export

    if plot:
        check_target(plot)
    loaded = load(config, traces)
    target = Path(output) if output else default_folder(config)
    file = target if target.suffix in (".parquet", ".arrow") else None
    folder = target.with_suffix(".sweep") if file else target
    try:
        with bar("sweeping") as progress:
            done = run(loaded, folder, jobs=jobs, dask=dask, retry=retry, progress=progress)
    except KeyboardInterrupt:
        click.echo(f"stopped; finished rows are in {folder}, the same command goes on", err=True)
        raise
    if file:
        export(folder, file)
    if plot:
        from uvmsim.report.sweep_plot import draw

        draw(folder, plot, keys=done.keys)
    if as_json:
        written = {"file": str(file) if file else None, "plot": plot}
        click.echo(json.dumps(done.to_json() | written, sort_keys=True))
        return
    click.echo(
        f"{done.cells:,} cells in {folder}: {done.ok:,} ok, {done.out_of_memory:,} out of memory, "
        f"{done.errors:,} errors; {done.ran:,} run now"
    )
    if done.first_error:
        click.echo(f"first error: {done.first_error}")
    if done.other_versions:
        click.echo(f"note: {done.other_versions:,} rows were made by another version of uvmsim")
    for path in (file, plot):
        if path:
            click.echo(f"wrote {path}")


@click.command(
    cls=Command, short_help="Draw a sweep: tokens/s over memory and link, a panel a policy."
)
@click.argument("dataset", type=click.Path())
@click.option(
    "-o", "--output", default="sweep.png", show_default=True, metavar="FILE", help="PNG or SVG."
)
@click.option(
    "--where", metavar="COLUMN=VALUE", multiple=True, help="Only rows with that value; repeatable."
)
@click.option("--title", metavar="TEXT", help="Instead of model, trace and machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: what was drawn.")
def plot(
    dataset: str, output: str, where: tuple[str, ...], title: str | None, as_json: bool
) -> None:
    """Draw the rows of DATASET, a folder or file written by `uvmsim sweep`."""
    from uvmsim.report.sweep_plot import check_target, draw

    check_target(output)
    drawn = draw(dataset, output, where=where, title=title)
    if as_json:
        click.echo(json.dumps(drawn | {"plot": output}, sort_keys=True))
    else:
        click.echo(f"wrote {output}")
