"""`uvmsim doctor`: what is installed, what is missing, and what that would give."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from uvmsim.commands.flags import Command


@click.command(cls=Command, short_help="What is installed, which GPU, what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def doctor(as_json: bool) -> None:
    """What this machine and this Python have, and what each missing extra would give.

    \b
    Examples:
      uvmsim doctor
      uvmsim doctor --json
    """
    from replay.doctor import examine
    from uvmsim.report.fit import Column, Row, show
    from uvmsim.report.progress import wide
    from uvmsim.version import __version__

    found = examine()
    if as_json:
        click.echo(json.dumps({"uvmsim": __version__, "found": [asdict(x) for x in found]}))
        return
    console = wide()
    console.print(f"uvmsim {__version__}")
    columns = (
        Column("", "left"), Column("what", "left", name=True), Column("", "left", name=True),
        Column("missing, for", "left", leaves=1, name=True),
    )  # fmt: skip
    rows = [Row(["ok" if x.there else "-", x.what, x.said, x.gives]) for x in found]
    show(console, columns, rows)
