"""`uvmsim compare`: policies side by side on one trace."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import (
    Command,
    decoding_lists,
    decoding_options,
    hardware_list,
    machine_options,
    miss_options,
    number_list,
    policy_list,
)


@click.command(
    cls=Command, short_help="Compare policies on a trace: tokens/s, hit rate, bytes moved."
)
@click.argument("trace", required=False, type=click.Path())
@click.option("--model", metavar="M", help="Preset, TOML or GGUF file; default: the trace's own.")
@click.option(
    "--expert-size", metavar="SIZE", help="Size of one expert, e.g. 13.2MB or a preset's name; "
    "everything else is scaled along.",
)  # fmt: skip
@machine_options
@click.option(
    "--slots", metavar="N|N%", multiple=True,
    help="Expert slots, or a share of all experts; repeat or separate by commas for several sizes.",
)  # fmt: skip
@click.option(
    "--mechanism", "mechanisms", metavar="X", multiple=True,
    help="expert-cache (default), hybrid, uvm, resident, stream, zero-copy, cpu-offload; repeatable.",
)  # fmt: skip
@click.option(
    "--policy", "policies", metavar="P", multiple=True,
    help="Eviction, maybe +prefetch: lru, lfu+next-layer, ./mine.py:MyPolicy; of uvm: default, "
    "prefetch_always_max, ...; repeatable.",
)  # fmt: skip
@click.option(
    "--pool", default="global", metavar="global|per-layer", help="One pool, or one a layer."
)
@click.option(
    "--unit",
    default="event",
    metavar="event|access",
    help="A layer's experts at once, or one by one.",
)
@click.option(
    "--reset", default="never", metavar="never|sequence", help="When the pool is emptied."
)
@click.option("--profile", metavar="TRACE", help="What static-pin and next-layer learn from.")
@click.option(
    "--state", metavar="FILE", help="Begin with what --state-out saved, and from nothing."
)
@click.option(
    "--state-out", metavar="FILE", help="Save what policies have learned by the end of the trace."
)
@click.option("--write-back", is_flag=True, help="Copy evicted experts back to the host.")
@click.option(
    "--prefetch-pieces", metavar="SIZE",
    help="expert-cache: move prefetches in pieces, e.g. 4MiB, held back while misses wait.",
)  # fmt: skip
@click.option("--pageable", is_flag=True, help="Host memory is not pinned: slower copies.")
@click.option("--threshold", type=int, metavar="T", help="uvm: density prefetcher, in %; 51.")
@miss_options
@click.option(
    "--ram",
    metavar="SIZE",
    help="Host memory that holds experts, e.g. 6GiB; the rest is on --tier.",
)
@click.option(
    "--tier", metavar="DISK",
    help="expert-cache: a disk below host memory: nvme:7GB/s,80us[,qd=32][,mode=direct|buffered|mmap]"
    "[,start=warm|cold]; a name alone: the hardware's [disk].",
)  # fmt: skip
@click.option("--tier-policy", metavar="P", help="Who leaves host memory above a --tier; lru.")
@click.option(
    "--policy-time", is_flag=True, default=None,
    help="Measure the policies' own host time here and count it.",
)  # fmt: skip
@decoding_options
@click.option(
    "--draft-cost", metavar="SHARE|TIME",
    help="GPU time to draft a token: a share of a forward pass (0.05), or 1.5ms; nothing.",
)  # fmt: skip
@click.option("--gpus", type=int, metavar="N", help="Cards; --slots and --vram are of each. 1.")
@click.option(
    "--split", metavar="layers|experts|experts:popularity|pool",
    help="How they share the model; layers.",
)  # fmt: skip
@click.option(
    "--peer", metavar="KIND[:RATE[:TIME]]",
    help="Between two cards: nvlink or pcie, e.g. nvlink:400GB/s:8us; pcie at the link's rate.",
)  # fmt: skip
@click.option(
    "--shared-link", is_flag=True, default=None,
    help="All cards copy from the host through one link.",
)  # fmt: skip
@click.option(
    "--neighbour", metavar="TRACE[:model=M][:share=P%]", multiple=True,
    help="A model on the same card, its forward passes in turn; repeatable.",
)  # fmt: skip
@click.option(
    "--budget", metavar="shared|P%,P%", help="One pool with neighbours, or shares of it; shared."
)
@click.option("--limit", type=int, metavar="TOKENS", help="Use only the first tokens of the trace.")
@click.option("--seed", type=click.IntRange(0), default=0, help="For random policies; 0.")
@click.option(
    "--engine", default="fast", metavar="fast|des", help="Compiled clock, or the SimPy model."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def compare(as_json: bool, **given) -> None:  # type: ignore[no-untyped-def]
    """Compare policies on TRACE (default: the bundled one).

    \b
    Examples:
      uvmsim compare
      uvmsim compare T.arrow --hardware rtx4090 --vram 16GiB
      uvmsim compare T.arrow --hardware rtx3090+pcie3,rtx4090 --reserve 1GiB --ctx 8192
      uvmsim compare T.arrow --mechanism cpu-offload --ncmoe 16,24
      uvmsim compare T.arrow --slots 12.5%,25%,50% --policy lru,lfu,belady
      uvmsim compare T.arrow --mechanism resident --mechanism zero-copy --mechanism expert-cache
      uvmsim compare T.arrow --policy ./mine.py:MyPolicy --policy lru
      uvmsim compare T.arrow --slots 25% --policy lru --batch 1,2,4 --draft 0,3:0.8
      uvmsim compare T.arrow --policy learned --state-out S
      uvmsim compare T2.arrow --policy learned --state S
      uvmsim compare T.arrow --slots 25% --ram 6GiB --tier nvme:7GB/s,80us
      uvmsim compare T.arrow --slots 25% --gpus 2 --split experts --peer nvlink
      uvmsim compare A.arrow --neighbour B.arrow:model=gpt-oss-20b --budget 60%,40% --slots 25%
      uvmsim compare T.arrow --mechanism uvm --policy default --policy prefetch_always_max
    """
    from uvmsim.report.progress import bar
    from uvmsim.report.table import print_comparison
    from uvmsim.studies.compare import compare as run
    from uvmsim.studies.scenario import Scenario
    from uvmsim.studies.sweep.local import cores

    for name in ("slots", "mechanisms", "policies"):
        given[name] = policy_list(given[name])
    given["hardware"] = hardware_list(given["hardware"])
    given["ncmoe"] = number_list("ncmoe", given["ncmoe"])
    decoding_lists(given)
    scenario = Scenario(**{k: v for k, v in given.items() if v not in (None, ())})
    with bar("comparing") as progress:
        result = run(scenario, progress, processes=cores())
    if as_json:
        click.echo(json.dumps(result.to_json(), sort_keys=True))
    else:
        print_comparison(result)


def choose(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """One line where ``value`` is none of those allowed."""
    from traces.errors import InputError

    if value not in allowed:
        raise InputError(f"{option} {value}: must be {' or '.join(allowed)}")
