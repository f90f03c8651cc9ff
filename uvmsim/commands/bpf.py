"""`uvmsim bpf`: compiled eBPF objects: what is in one, and where two policies part."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import Command


@click.group(short_help="Compiled eBPF policies: what is in one, where two part, from Python to C.")
def bpf() -> None:
    """Compiled eBPF programs of the memory driver (docs/bpf.md).

    \b
    Run one:      uvmsim llama-bench --policy ./x.bpf.o
    With values:  uvmsim llama-bench --policy ./x.bpf.o:threshold=3:config.pages=8
    """


@bpf.command(cls=Command, short_help="Hooks, maps, helpers, instructions, what it resembles.")
@click.argument("object_file", metavar="X.bpf.o[:NAME=VALUE..]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--no-resemblance", is_flag=True, help="Do not run it beside the built-in policies.")
def info(object_file: str, as_json: bool, no_resemblance: bool) -> None:
    """Say what is in a compiled object, and which built-in policy decides most like it."""
    from uvmsim.report.bpf_table import print_info
    from uvmsim.studies.decisions.info import info as study

    found = study(object_file, not no_resemblance)
    if as_json:
        click.echo(json.dumps(found.to_json(), sort_keys=True))
    else:
        print_info(found)


@bpf.command(cls=Command, short_help="Where two page policies part.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--events", type=int, default=100_000, metavar="N", help="Questions; 100,000.")
@click.option("--seed", type=int, default=0, metavar="N", help="Of the stream of questions; 0.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(a: str, b: str, events: int, seed: int, as_json: bool) -> None:
    """Ask two page policies the same questions: objects, names, or Python files.

    \b
    Examples:
      uvmsim bpf diff ./x.bpf.o prefetch_stride
      uvmsim bpf diff ./mine.py:MyPolicy ./mine.bpf.o --events 1000000
    """
    from uvmsim.report.bpf_table import print_parting
    from uvmsim.studies.decisions.parting import part

    found = part(a, b, events, seed)
    if as_json:
        click.echo(json.dumps(found.to_json(), sort_keys=True))
    else:
        print_parting(found)


@bpf.command(cls=Command, short_help="A page policy in Python as C for the kernel.")
@click.argument("policy", metavar="./mine.py:MyPolicy[:KEY=VALUE..]")
@click.option("-o", "out", required=True, metavar="FILE", help="Where to write, e.g. mine.bpf.c.")
@click.option("--chunks", type=int, default=1 << 14, metavar="N", help="Room for chunks; 16384.")
@click.option("--blocks", type=int, default=1 << 16, metavar="N", help="Room for blocks; 65536.")
@click.option(
    "--boundaries", default="", metavar="B,B..",
    help="First VA block of each layer and the end, for policies that ask for layers.",
)  # fmt: skip
def emit(policy: str, out: str, chunks: int, blocks: int, boundaries: str) -> None:
    """Write a page policy as C, which `clang -O2 -g -target bpf -c mine.bpf.c` compiles.

    What the kernel's verifier would refuse is refused here, with its line.
    """
    from pathlib import Path

    from traces.errors import InputError
    from uvmsim.commands.flags import number_list
    from uvmsim.policies.bpf.emit import emit as study
    from uvmsim.policies.pages.registry import parse_pages

    layers = number_list("boundaries", [boundaries]) if boundaries else ()
    text = study(parse_pages(policy), chunks, blocks, layers)
    try:
        Path(out).write_text(text, encoding="utf-8")
    except OSError as err:
        raise InputError(f"{out}: cannot be written ({err.strerror or err})", "out") from err
    click.echo(f"wrote {out}; compile it with: clang -O2 -g -target bpf -c {out}", err=True)
