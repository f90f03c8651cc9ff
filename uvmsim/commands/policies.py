"""`uvmsim policies`: what there is, what each needs."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command(short_help="List policies: who leaves, who is fetched early, what each needs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def policies(as_json: bool) -> None:
    """List the eviction and prefetch policies with their parameters.

    Combine them by name: lru+next-layer. Set parameters with colons: lru+next-layer:n=8.
    A policy of your own is a Python file: ./mine.py:MyPolicy.
    """
    from uvmsim.policies.base import Eviction
    from uvmsim.policies.registry import builtin, parameters

    rows: list[dict[str, Any]] = []
    for name, cls in builtin().items():
        rows.append(
            {
                "name": name,
                "kind": "eviction" if issubclass(cls, Eviction) else "prefetch",
                "summary": (cls.__doc__ or "").strip().splitlines()[0],
                "needs": sorted(cls.needs),
                "parameters": {k: getattr(cls, k) for k in parameters(cls)},
                "source": cls.source,
            }
        )
    if as_json:
        click.echo(json.dumps({"policies": rows}, sort_keys=True))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from uvmsim.report.progress import wide

    console = wide()
    for kind, title in (
        ("eviction", "Eviction: who leaves"),
        ("prefetch", "Prefetch: who comes early"),
    ):
        table = Table(
            "name",
            "what it does",
            "needs",
            "parameters",
            title=title,
            box=SIMPLE_HEAD,
            title_justify="left",
        )
        for row in rows:
            if row["kind"] == kind:
                settings = ", ".join(f"{k}={v}" for k, v in row["parameters"].items())
                table.add_row(row["name"], row["summary"], ", ".join(row["needs"]), settings)
        console.print(table)
