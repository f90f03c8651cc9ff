"""`uvmsim microbench`: scans and page-stride walks over managed memory."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import Command, policy_list


@click.command(
    cls=Command,
    short_help="Scans and page-stride walks: time, faults and evictions of page policies.",
)
@click.option("--pattern", default="abab", metavar="abab|seq|rand", help="What is touched; abab.")
@click.option(
    "--ratio", "ratios", metavar="R[,R..]", multiple=True,
    help="Bytes touched over device memory; abab 0.95,1.05, else 0.5,0.75,1.0.",
)  # fmt: skip
@click.option("--hardware", metavar="H", help="Preset or TOML file; a30, for seq and rand rtx5090.")
@click.option(
    "--policy", "policies", metavar="P", multiple=True,
    help="default, prefetch_always_max, A+B, ./mine.py:MyPolicy, ./x.bpf.o; repeatable.",
)  # fmt: skip
@click.option(
    "--threshold", type=int, default=51, metavar="T", help="Density prefetcher, in %; 51."
)
@click.option("--passes", type=int, metavar="N", help="Timed passes (of abab: halves); 4, else 5.")
@click.option("--tenants", type=int, default=1, metavar="N", help="Processes on the GPU; 1.")
@click.option("--stride", type=int, default=4096, metavar="B", help="Of seq and rand, bytes; 4096.")
@click.option("--vram", metavar="SIZE", help="Device memory, e.g. 8GiB, instead of the preset's.")
@click.option(
    "--advice", default="none", metavar="A",
    help="none, prefetch, prefer-gpu, prefer-cpu, accessed-by or read-mostly.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the random order; 0.")
@click.option(
    "--engine", default="fast", metavar="fast|des", help="Compiled clock, or the SimPy one."
)
@click.option("--trace-out", metavar="FILE", help="Write the driver's events as a fault trace.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def microbench(as_json: bool, **given) -> None:  # type: ignore[no-untyped-def]
    """Simulate a paging microbenchmark.

    \b
    Examples:
      uvmsim microbench --vram 8GiB --policy default --policy prefetch_always_max
      uvmsim microbench --pattern seq --hardware rtx5090
      uvmsim microbench --tenants 2 --ratio 0.6 --vram 8GiB --policy default,prefetch_pid_tree
      uvmsim microbench --ratio 1.05 --vram 8GiB --trace-out T.arrow
    """
    from uvmsim.report.microbench_table import print_table
    from uvmsim.report.progress import bar
    from uvmsim.studies.microbench.table import microbench as run
    from uvmsim.studies.scenario import Scenario

    given["policies"] = policy_list(given["policies"])
    given["ratios"] = tuple(_number(x) for x in policy_list(given["ratios"]))
    given = {k: v for k, v in given.items() if v not in (None, ())}
    shared = ("hardware", "vram", "policies", "threshold", "seed", "engine")
    scenario = Scenario(**{k: given.pop(k) for k in shared if k in given})
    with bar("microbench") as progress:
        table = run(scenario, **given, progress=progress)
    if as_json:
        click.echo(json.dumps(table.to_json(), sort_keys=True))
    else:
        print_table(table)


def _number(text: str) -> float:
    from traces.errors import InputError

    try:
        return float(text)
    except ValueError:
        raise InputError(f"--ratio {text}: give numbers such as 0.95,1.05") from None
