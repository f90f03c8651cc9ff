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
    A policy of your own is a Python file: ./mine.py:MyPolicy. Page policies are for the mechanism
    uvm and go by gpu_ext's names: prefetch_always_max, or two as in prefetch_none+eviction_fifo.
    """
    from uvmsim.policies.base import Eviction
    from uvmsim.policies.pages.registry import builtin_pages, hooks_of
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
    pages: list[dict[str, Any]] = [
        {
            "name": name,
            "summary": (page.__doc__ or "").strip().splitlines()[0],
            "hooks": list(hooks_of(page)),
            "migrates": page.migrates,
            "parameters": {k: getattr(page, k) for k in parameters(page)},
            "source": page.source,
        }
        for name, page in builtin_pages().items()
    ]
    if as_json:
        click.echo(json.dumps({"policies": rows, "page_policies": pages}, sort_keys=True))
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
                settings = _settings(row["parameters"])
                table.add_row(row["name"], row["summary"], ", ".join(row["needs"]), settings)
        console.print(_folding(table))
    table = Table(
        "name",
        "what it does",
        "hooks",
        "parameters",
        title="Page policies of the unified-memory driver: how wide a fault is, and who leaves",
        box=SIMPLE_HEAD,
        title_justify="left",
    )
    table.columns[0].no_wrap = True
    for row in pages:
        hooks = ", ".join([*row["hooks"], *(["migrate"] if row["migrates"] else [])])
        table.add_row(row["name"], row["summary"], hooks, _settings(row["parameters"]))
    console.print(_folding(table))


def _folding(table: Any) -> Any:
    """On a narrow terminal what does not fit goes on in the next line; no number is cut."""
    for column in table.columns:
        column.overflow = "fold"
    return table


def _settings(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in parameters.items())
