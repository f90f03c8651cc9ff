"""`uvmsim llama-bench`: what llama-bench would print on a machine."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import (
    Command,
    hardware_list,
    machine_options,
    number_list,
    policy_list,
)


@click.command(
    "llama-bench", cls=Command, short_help="llama-bench's table for a model larger than the GPU."
)
@click.option("--model", metavar="M", help="Preset, TOML or GGUF file; gpt-oss-120b.")
@machine_options
@click.option(
    "--mechanism", "mechanisms", metavar="X", multiple=True,
    help="uvm (default), zero-copy, cpu-offload, resident, stream, expert-cache; repeatable.",
)  # fmt: skip
@click.option(
    "--policy", "policies", metavar="P", multiple=True,
    help="uvm: default, prefetch_always_max, A+B, phase:PREFILL,DECODE, ./mine.py:MyPolicy, ./x.bpf.o; "
    "expert-cache: lru, ...; repeatable.",
)  # fmt: skip
@click.option("--slots", type=click.IntRange(1), metavar="N", help="expert-cache: expert slots.")
@click.option(
    "--threshold", type=int, default=51, metavar="T", help="Density prefetcher, in %; 51."
)
@click.option(
    "--advice", metavar="A",
    help="uvm, of the weights: prefer-gpu (default), none, prefetch, prefer-cpu, accessed-by or "
    "read-mostly.",
)  # fmt: skip
@click.option("-p", "--prompt", type=int, default=512, metavar="N", help="Prompt tokens; 512.")
@click.option("-n", "--generate", type=int, default=128, metavar="N", help="Generated tokens; 128.")
@click.option("-r", "--reps", type=int, default=5, metavar="R", help="Repetitions; 5.")
@click.option("--routing", "like", metavar="TRACE", help="Expert popularity of a recorded trace.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the random tokens; 0.")
@click.option(
    "--engine", default="fast", metavar="fast|des", help="Compiled clock, or the SimPy one."
)
@click.option(
    "--trace-out", metavar="FILE", help="uvm: write the driver's events as a fault trace."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def llama_bench(as_json: bool, **given) -> None:  # type: ignore[no-untyped-def]
    """Simulate llama-bench: prompt processing (pp) and token generation (tg), tokens/s.

    \b
    Examples:
      uvmsim llama-bench
      uvmsim llama-bench --policy default --policy prefetch_always_max --vram 24GiB
      uvmsim llama-bench --mechanism cpu-offload --ncmoe 32,36
      uvmsim llama-bench --mechanism cpu-offload --hardware rtx3090,rtx4090
      uvmsim llama-bench --policy phase:copy-used,prefetch_always_max
    """
    from uvmsim.report.llama_bench_table import print_table
    from uvmsim.report.progress import bar
    from uvmsim.studies.llamabench.table import llama_bench as run
    from uvmsim.studies.scenario import Scenario

    for name in ("mechanisms", "policies"):
        given[name] = policy_list(given[name])
    given["hardware"] = hardware_list(given["hardware"])
    given["ncmoe"] = number_list("ncmoe", given["ncmoe"])
    given["trace"] = given.pop("like")
    how = {k: given.pop(k) for k in ("prompt", "generate", "reps", "trace_out")}
    if (advice := given.pop("advice")) is not None:
        how["advice"] = advice
    scenario = Scenario(**{k: v for k, v in given.items() if v not in (None, ())})
    with bar("llama-bench") as progress:
        table = run(scenario, **how, progress=progress)
    if as_json:
        click.echo(json.dumps(table.to_json(), sort_keys=True))
    else:
        print_table(table)
