"""`uvmsim hybrid-line`: from how many tokens an expert is worth the link."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import Command


@click.command(
    cls=Command, name="hybrid-line",
    short_help="Up to how many tokens a missing expert is faster on the CPU.",
)  # fmt: skip
@click.argument("model", required=False, default="gpt-oss-20b")
@click.option(
    "--hardware", default="rtx5090", metavar="H", help="Preset, TOML file or auto; rtx5090."
)
@click.option("--program", metavar="E", help="Engine profile on it: preset or TOML file.")
@click.option("--link", metavar="RATE", help="Link bandwidth, e.g. 28GB/s.")
@click.option("--ram-bandwidth", metavar="RATE", help="What the CPU reads weights with.")
@click.option("--pageable", is_flag=True, help="Host memory is not pinned: slower copies.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def hybrid_line(model: str, pageable: bool, as_json: bool, **machine) -> None:  # type: ignore[no-untyped-def]
    """One missing expert of MODEL (preset, TOML or GGUF file; gpt-oss-20b): the CPU computes it,
    or it is copied and the GPU does. By tokens, and by type of the weights.

    \b
    Examples:
      uvmsim hybrid-line
      uvmsim hybrid-line qwen3-30b-a3b --hardware h100 --program llama.cpp-h100
      uvmsim hybrid-line gpt-oss-120b --hardware rtx3090+pcie3 --json
    """
    from uvmsim.report.hybrid_line import print_hybrid_line
    from uvmsim.studies.hybrid_line import hybrid_line as study
    from uvmsim.studies.resolve import machine_of
    from uvmsim.studies.scenario import Scenario

    given = {k: v for k, v in machine.items() if v is not None}
    found = study(model, machine_of(Scenario(**given)), pinned=not pageable)
    if as_json:
        click.echo(json.dumps(found.to_json(), sort_keys=True))
    else:
        print_hybrid_line(found)
