"""`uvmsim replay`: policies on the real GPU, measured and checked."""

from __future__ import annotations

import json
import sys

import click

from uvmsim.commands.flags import Command, miss_options, policy_list


@click.command(
    cls=Command,
    short_help="Run policies on the real GPU: measured tokens/s, every output checked.",
)
@click.argument("trace", required=False, type=click.Path())
@click.option(
    "--backend", default="cuda", metavar="cuda|host",
    help="The GPU, or NumPy on the CPU (same engine, no meaningful times).",
)  # fmt: skip
@click.option(
    "--mode", "mechanisms", metavar="X", multiple=True,
    help="expert-cache (default), hybrid, resident, stream, zero-copy, managed; repeatable.",
)  # fmt: skip
@click.option(
    "--policy", "policies", metavar="P", multiple=True,
    help="Eviction, maybe +prefetch, as for `uvmsim compare`; default lru; repeatable.",
)  # fmt: skip
@click.option("--model", metavar="M", help="Preset, TOML or GGUF file; default: the trace's own.")
@click.option("--expert-size", metavar="SIZE", help="Size of one expert, e.g. 13.2MB.")
@click.option(
    "--hardware", metavar="H", help="Preset or TOML file whose memory limits the pool; h100."
)
@click.option("--vram", metavar="SIZE", help="Budget of device memory, e.g. 16GiB.")
@click.option(
    "--slots", metavar="N|N%", multiple=True,
    help="Expert slots, or a share of all experts; default 25%; repeatable.",
)  # fmt: skip
@click.option("--pool", default="global", metavar="global|per-layer", help="One pool or many.")
@click.option(
    "--reset", default="never", metavar="never|sequence", help="When the pool is emptied."
)
@click.option("--profile", metavar="TRACE", help="What static-pin and next-layer learn from.")
@click.option("--state", metavar="FILE", help="Begin with what `uvmsim compare --state-out` saved.")
@click.option("--limit", type=int, metavar="TOKENS", help="Use only the first tokens of the trace.")
@click.option("--write-back", is_flag=True, help="Copy evicted experts back to the host.")
@click.option(
    "--prefetch-pieces", metavar="SIZE",
    help="expert-cache: move prefetches in pieces, e.g. 4MiB, held back while misses wait.",
)  # fmt: skip
@miss_options
@click.option(
    "--ram", metavar="SIZE", help="Host memory that holds experts; the rest is on --tier."
)
@click.option(
    "--tier",
    metavar="DISK",
    help="As in compare: nvme:7GB/s,80us,mode=direct|buffered; with --tier-file.",
)
@click.option("--tier-policy", metavar="P", help="Who leaves host memory above a --tier; lru.")
@click.option(
    "--tier-file",
    metavar="DIR",
    help="Folder on the disk: the experts' file is written there, once.",
)
@click.option("--tier-bytes", metavar="SIZE", help="Most bytes of that file; 30GB.")
@click.option("--pageable", is_flag=True, help="Host memory is not pinned: slower copies.")
@click.option(
    "--split", metavar="N|layers|experts|pool",
    help="Copies an expert is split into; 1. Of several --gpus: how they share the model.",
)  # fmt: skip
@click.option("--gpus", type=int, metavar="N", help="Cards; --slots are of each. 1.")
@click.option(
    "--dtype", metavar="T", help="fp16, bf16, fp32 or mxfp4; default: as the model is stored."
)
@click.option(
    "--bank", metavar="SIZE", help="Host memory for experts; beyond it they share bytes; 24GiB."
)
@click.option(
    "--steps-only", is_flag=True, help="Time forward passes alone: less to queue, no stall split."
)
@click.option("--advise", "advice", metavar="A", help="managed: read-mostly, preferred-host, "
              "preferred-device or accessed-by, for all experts.")  # fmt: skip
@click.option(
    "--managed-prefetch", is_flag=True, help="managed: prefetch misses instead of faulting."
)
@click.option("--uvm-prefetch", is_flag=True, hidden=True)
@click.option(
    "--managed-at-own-risk", is_flag=True,
    help="managed: allow more managed memory than half of what the card has free, or than 8 GiB. "
    "Oversubscribed managed memory can hang the GPU until the machine is restarted.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="For contents and policies; 0.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def replay(as_json: bool, backend: str, **given) -> None:  # type: ignore[no-untyped-def]
    """Run policies on TRACE (default: the bundled one) on the real GPU.

    Every expert output is compared with the all-resident run, bit for bit, every expert's bytes by
    checksum after the run, and the counters with the simulator's. A run with a difference is void:
    it says so, and the exit code is 1.

    \b
    Examples:
      uvmsim replay T.arrow --slots 25% --policy lru,lfu,lru+next-layer --limit 256
      uvmsim replay T.arrow --model gpt-oss-20b --mode resident --mode stream --mode zero-copy
      uvmsim replay T.arrow --gpus 2 --split experts --slots 25%
      uvmsim replay --backend host --limit 20
    """
    from replay.backend import NAMES
    from replay.layout import UNITS
    from replay.report import print_study
    from replay.session import DEFAULT_LIMIT, How
    from replay.study import replay as run
    from uvmsim.commands.compare import choose
    from uvmsim.core.units import parse_bytes
    from uvmsim.report.progress import bar
    from uvmsim.studies.scenario import Scenario

    choose("--backend", backend, NAMES)
    if given["dtype"] is not None:
        choose("--dtype", given["dtype"], tuple(UNITS))
    size, written = given.pop("bank"), given.pop("tier_bytes")
    split = given.pop("split") or "1"
    if not split.isdigit():
        given["split"] = split
    how = How(
        dtype=given.pop("dtype"),
        split=int(split) if split.isdigit() else 1,
        detail=not given.pop("steps_only"),
        bank_limit=DEFAULT_LIMIT if size is None else parse_bytes(size),
        managed_on_demand=given.pop("managed_prefetch") | given.pop("uvm_prefetch"),
        advice=given.pop("advice"),
        tier_file=given.pop("tier_file"),
        tier_bytes=None if written is None else parse_bytes(written),
        managed_at_own_risk=given.pop("managed_at_own_risk"),
    )
    for name in ("slots", "mechanisms", "policies"):
        given[name] = policy_list(given[name])
    scenario = Scenario(**{k: v for k, v in given.items() if v not in (None, ())})
    with bar("replaying") as progress:
        result = run(scenario, backend=backend, how=how, progress=progress)
    if as_json:
        click.echo(json.dumps(result.to_json(), sort_keys=True))
    else:
        print_study(result)
    if result.problems:
        more = len(result.problems) - 1
        also = f" (and {more} more)" if more else ""
        click.echo(f"error: void: {result.problems[0]}{also}", err=True)
        sys.exit(1)
