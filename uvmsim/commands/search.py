"""`uvmsim search`: a policy for one's own traces, found and explained."""

from __future__ import annotations

import json
from typing import Any

import click

from uvmsim.commands.flags import Command, hardware_list, machine_options, policy_list


@click.command(cls=Command, short_help="Find a policy for your traces, and say what of it pays.")
@click.argument("traces", nargs=-1, type=click.Path(), metavar="[TRACE]...")
@click.option("--minutes", type=float, metavar="M", help="About how long; 10.")
@click.option(
    "--trials", type=int, metavar="N", help="How many to try: the same N, the same answer."
)
@click.option(
    "--objective", default="tokens", metavar="tokens|hits", help="Tokens per second, or hit rate."
)
@click.option(
    "--policy", "policies", metavar="P", multiple=True,
    help="Search among these, with the parameters they do not set; all; repeatable.",
)  # fmt: skip
@click.option("--model", metavar="M", help="Preset, TOML or GGUF file; default: the trace's own.")
@click.option("--expert-size", metavar="SIZE", help="As of uvmsim compare.")
@machine_options
@click.option(
    "--slots", metavar="N|N%", multiple=True,
    help="Expert slots, or a share; several are searched for together.",
)  # fmt: skip
@click.option("--pool", default="global", metavar="global|per-layer", help="As of uvmsim compare.")
@click.option("--reset", default="never", metavar="never|sequence", help="As of uvmsim compare.")
@click.option("--profile", metavar="TRACE", help="What static-pin and next-layer learn from.")
@click.option("--write-back", is_flag=True, help="Copy evicted experts back to the host.")
@click.option("--pageable", is_flag=True, help="Host memory is not pinned: slower copies.")
@click.option(
    "--limit", type=int, metavar="TOKENS", help="Use only the first tokens of each trace."
)
@click.option(
    "--transfer", metavar="TRACE", multiple=True,
    help="Show what was found on another trace, with the same share of experts; repeatable.",
)  # fmt: skip
@click.option("--prove", is_flag=True, help="Replay it and the best that compare has on the GPU.")
@click.option(
    "--out", "folder", metavar="DIR",
    help="What was tried, the winner as best.toml; default NAME.search here.",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes; default: all cores.")
@click.option("--dask", metavar="ADDRESS", help="Run on an existing Dask scheduler.")
@click.option("--seed", type=click.IntRange(0), default=0, help="0.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def search(traces: tuple[str, ...], prove: bool, as_json: bool, **given: Any) -> None:
    """Find a policy for TRACEs (default: the bundled one) and explain it.

    Half of each trace, whole sequences, is searched on, a quarter chooses among the best, a quarter
    reports. Run again, it goes on where it was.

    \b
    Examples:
      uvmsim search --minutes 2
      uvmsim search chat.arrow code.arrow --slots 25% --hardware rtx4090
      uvmsim search T.arrow --policy ./mine.py:MyPolicy,learned-next --trials 200
      uvmsim search T.arrow --transfer OTHER.arrow --prove
    """
    from pathlib import Path

    from uvmsim.report.progress import bar
    from uvmsim.report.search_table import print_search
    from uvmsim.studies.scenario import Scenario
    from uvmsim.studies.search.study import search as run
    from uvmsim.studies.sweep.local import cores

    for name in ("slots", "policies"):
        given[name] = policy_list(given[name])
    given["hardware"] = hardware_list(given["hardware"])
    if given.pop("ncmoe"):
        raise click.UsageError("--ncmoe is for cpu-offload, which has no policies to search")
    how = {k: given.pop(k) for k in ("minutes", "trials", "objective", "transfer", "dask")}
    how["jobs"] = given.pop("jobs") or cores()
    folder = given.pop("folder") or f"{Path(traces[0]).stem if traces else 'bundled'}.search"
    scenario = Scenario(**{k: v for k, v in given.items() if v not in (None, ())})
    try:
        with bar("searching", told=True) as progress:
            found = run(scenario, traces=traces or None, folder=folder, progress=progress, **how)
    except KeyboardInterrupt:
        click.echo(f"stopped; what was run is in {folder}, the same command goes on", err=True)
        raise
    proof = found.prove() if prove else None
    if as_json:
        told = {} if proof is None else {"proof": proof.to_json()}
        click.echo(json.dumps(found.to_json() | told, sort_keys=True))
        return
    print_search(found)
    if proof is not None:
        proof.show()
