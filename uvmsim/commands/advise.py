"""`uvmsim advise`: what to run on a machine, how fast it will be, and why."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import Command, hardware_list, only_machine_options


@click.command("advise", cls=Command, short_help="What to run: llama.cpp's flags for your card.")
@click.argument("model", metavar="MODEL")
@only_machine_options(
    "Preset, maybe with parts (rtx3090+pcie3+ddr4-3200x2), TOML file, or auto; this machine."
)
@click.option("--ram", metavar="SIZE", help="Host memory, e.g. 64GiB, instead of the preset's.")
@click.option("--ctx", default="8k", metavar="N,N", help="Context sizes, e.g. 8k,32k; 8k.")
@click.option("--trace", metavar="FILE", help="Recorded routing of the model.")
@click.option("--prompt", type=int, default=2000, metavar="N", help="Tokens in; 2000.")
@click.option("--generate", type=int, default=500, metavar="N", help="Tokens out; 500.")
@click.option(
    "--what-if", metavar="C,C",
    help="Changes: vram+8GiB, vram=24GiB, link*2, ram+64GiB, ram-bandwidth*1.5; '' for none.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Of routing made by family; 0.")
@click.option(
    "--emit", type=click.Choice(["llama.cpp"]), help="Print the command lines alone, one a context."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def advise(model: str, emit: str | None, as_json: bool, **given) -> None:  # type: ignore[no-untyped-def]
    """The fastest ways to run MODEL (a GGUF file, a preset, a TOML file) under llama.cpp.

    \b
    Examples:
      uvmsim advise MODEL.gguf
      uvmsim advise gpt-oss-120b --hardware rtx5090 --ram 96GiB
      uvmsim advise MODEL.gguf --hardware rtx3060+pcie3 --ctx 8k,32k --reserve 1GiB
      uvmsim advise MODEL.gguf --trace mine.arrow --what-if vram+8GiB,link*2
      uvmsim advise MODEL.gguf --kv-type q8_0 --emit llama.cpp
    """
    from traces.errors import InputError
    from uvmsim.report.advise_table import print_advice
    from uvmsim.report.progress import bar
    from uvmsim.studies.advise.study import advise as run
    from uvmsim.studies.scenario import Scenario

    names = ("program", "vram", "link", "ram_bandwidth", "reserve", "kv_type", "trace", "seed")
    asked = {k: v for k in names if (v := given.pop(k)) is not None}
    if machines := hardware_list(given.pop("hardware")):
        asked["hardware"] = machines
    given["ctx"] = [x for x in given["ctx"].split(",") if x.strip()]
    if emit:
        given["what_if"] = ""
    with bar("advise") as progress:
        answer = run(Scenario(model=model, **asked), **given, progress=progress)
    if emit:
        if not answer.commands():
            raise InputError(f"{model}: nothing fits; leave out --emit to see what is missing")
        click.echo("\n".join(answer.commands()))
    elif as_json:
        click.echo(json.dumps(answer.to_json(), sort_keys=True))
    else:
        print_advice(answer)
