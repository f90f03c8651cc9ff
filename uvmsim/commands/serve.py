"""`uvmsim serve`: requests on a server, in the words of `vllm bench serve`."""

from __future__ import annotations

import json
from typing import Any

import click

from uvmsim.commands.flags import (
    Command,
    hardware_list,
    machine_options,
    number_list,
    policy_list,
)

_SCENARIO = (
    "model", "expert_size", "hardware", "program", "vram", "link", "ram_bandwidth", "reserve", "ctx",
    "kv_type", "ncmoe", "slots", "mechanisms", "policies", "pool", "profile", "threshold",
    "prefetch_pieces", "pageable", "scratch", "policy_time", "seed", "engine",
)  # fmt: skip


@click.command(cls=Command, short_help="Serve requests: TTFT, TPOT, goodput, by policy and rate.")
@click.argument("traces", nargs=-1, type=click.Path())
@click.option(
    "--requests", metavar="FILE",
    help="Azure, BurstGPT, Mooncake, bailian, Vidur, splitwise-sim, LLMServingSim or ShareGPT; "
    "without, --prompt-len and --output-len for all.",
)  # fmt: skip
@click.option("--format", metavar="NAME", help="Of the file, where its columns do not tell.")
@click.option("--num-prompts", type=click.IntRange(1), metavar="N", help="The first N; all, or 20.")
@click.option("--prompt-len", type=click.IntRange(1), metavar="N", help="Tokens in; 512.")
@click.option("--output-len", type=click.IntRange(1), metavar="N", help="Tokens out; 128.")
@click.option(
    "--request-rate", "--rate", "rates", metavar="R", multiple=True,
    help="Requests/s, inf: all at once; repeat or separate by commas to sweep. The file's times, or 1.",
)  # fmt: skip
@click.option(
    "--burstiness", type=float, metavar="B", help="1: Poisson; below: burstier; inf: even."
)
@click.option(
    "--max-concurrency", type=click.IntRange(1), metavar="N", help="Requests under way at most."
)
@click.option("--server", metavar="llama-server|vllm", help="Whose scheduler; llama-server.")
@click.option(
    "-np", "--parallel", type=click.IntRange(1), metavar="N",
    help="Requests at once: -np, --max-num-seqs; 1, of vllm 256.",
)  # fmt: skip
@click.option(
    "-b", "--batch", type=click.IntRange(1), metavar="N",
    help="Tokens an iteration: -b, --max-num-batched-tokens; 2048.",
)  # fmt: skip
@click.option("-ub", "--ubatch", type=click.IntRange(1), metavar="N", help="Tokens a pass; 512.")
@click.option(
    "--breaks", metavar="N,N|none",
    help="Tokens before a prompt's end where its chunks stop for a checkpoint; as llama-server.",
)  # fmt: skip
@click.option("--kv", metavar="SIZE", help="Memory for the KV cache, e.g. 4GiB, instead of --ctx.")
@click.option(
    "--border", metavar="static|elastic",
    help="elastic: what requests leave of the KV cache's memory holds experts meanwhile.",
)  # fmt: skip
@click.option(
    "--no-warmup", is_flag=True, help="Do not send the first request once before the clock."
)
@click.option(
    "--goodput", metavar="KEY:ms", multiple=True, help="Objectives: ttft:2000 tpot:50 e2el:...",
)  # fmt: skip
@click.option("--metric-percentiles", metavar="P,P", help="99.")
@click.option("--percentile-metrics", metavar="M,M", help="ttft,tpot,itl; also e2el, ...")
@click.option("--way", metavar="auto|stream|whole", help="Which simulator; all agree.")
@click.option("--tokenizer", metavar="M.gguf", help="ShareGPT: what counts tokens.")
@click.option("--sharegpt-output-len", type=click.IntRange(1), metavar="N", help="Of all requests.")
@click.option("--model", metavar="M", help="Preset, TOML or GGUF file; default: the trace's own.")
@click.option("--expert-size", metavar="SIZE", help="Size of one expert, e.g. 13.2MB.")
@machine_options
@click.option("--slots", metavar="N|N%", multiple=True, help="Expert slots, as in compare.")
@click.option("--mechanism", "mechanisms", metavar="X", multiple=True, help="As in compare.")
@click.option("--policy", "policies", metavar="P", multiple=True, help="As in compare.")
@click.option("--pool", metavar="global|per-layer", help="One pool, or one a layer.")
@click.option("--profile", metavar="TRACE", help="What static-pin and next-layer learn from.")
@click.option("--pageable", is_flag=True, default=None, help="Host memory is not pinned.")
@click.option("--prefetch-pieces", metavar="SIZE", help="As in compare.")
@click.option("--threshold", type=int, metavar="T", help="uvm: density prefetcher, in %; 51.")
@click.option("--scratch", type=click.IntRange(0), metavar="K", help="As in compare.")
@click.option(
    "--policy-time", is_flag=True, default=None, help="Count the policies' own host time."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="0.")
@click.option("--engine", metavar="fast|des", help="Compiled clock, or the SimPy model.")
@click.option("--jobs", type=click.IntRange(1), default=1, metavar="N", help="Runs at a time; 1.")
@click.option("--dask", metavar="ADDRESS", help="Run them on a Dask scheduler.")
@click.option(
    "--plot", metavar="FILE", help="TTFT, TPOT and throughput over --rate, a line a policy."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def serve(
    as_json: bool, plot: str | None, jobs: int, dask: str | None, traces: tuple[str, ...], **given: Any
) -> None:  # fmt: skip
    """Serve requests whose routing is borrowed from TRACES (default: the bundled one).

    \b
    Examples:
      uvmsim serve --rate 0.5,1,2 -np 4
      uvmsim serve T.arrow --requests ShareGPT.json --num-prompts 100 --rate 0.2 --max-concurrency 1
      uvmsim serve T.arrow --requests azure.csv --server vllm -np 64 --kv 8GiB
      uvmsim serve T.arrow --mechanism uvm --policy default,prefetch_always_max --rate 0.2
      uvmsim serve T.arrow --rate 1,2,4,8 --goodput ttft:2000 --goodput tpot:50 --plot knee.png
    """
    from uvmsim.report.plots import check_target
    from uvmsim.report.progress import bar
    from uvmsim.report.serve_table import print_serving
    from uvmsim.serving.metrics import parse_goodput
    from uvmsim.studies.scenario import Scenario
    from uvmsim.studies.serve.asked import Asked
    from uvmsim.studies.serve.study import serve as run

    for name in ("slots", "mechanisms", "policies"):
        given[name] = policy_list(given[name])
    given["hardware"] = hardware_list(given["hardware"])
    given["ncmoe"] = number_list("ncmoe", given["ncmoe"])
    scenario = Scenario(
        traces[0] if traces else None,
        **{k: given[k] for k in _SCENARIO if given[k] not in (None, ())},
    )
    asked: dict[str, Any] = {
        k: v for k, v in given.items() if k not in _SCENARIO and v not in (None, ())
    }
    asked["warmup"] = not asked.pop("no_warmup", False)
    asked["more"] = traces[1:]
    asked["rates"] = _numbers("rates", asked.get("rates", ()))
    if "breaks" in asked:
        told = asked["breaks"]
        asked["breaks"] = () if told == "none" else number_list("breaks", (told,))
    if "goodput" in asked:
        asked["goodput"] = parse_goodput(policy_list(asked["goodput"]))
    if "metric_percentiles" in asked:
        asked["percentiles"] = _numbers("metric_percentiles", (asked.pop("metric_percentiles"),))
    if "percentile_metrics" in asked:
        asked["metrics"] = policy_list((asked.pop("percentile_metrics"),))
    if "sharegpt_output_len" in asked:
        asked["output_of_all"] = asked.pop("sharegpt_output_len")
    if plot:
        check_target(plot)
    with bar("serving") as progress:
        result = run(scenario, Asked(**asked), processes=jobs, dask=dask, progress=progress)
    if plot:
        from uvmsim.report.serve_plot import draw

        draw(result, plot)
    if as_json:
        click.echo(json.dumps(result.to_json(), sort_keys=True))
    else:
        print_serving(result)


def _numbers(argument: str, texts: tuple[str, ...]) -> tuple[float, ...]:
    """``("0.2,1", "inf")`` as three numbers. Raises `InputError`."""
    from traces.errors import InputError

    found = []
    for text in (x.strip() for t in texts for x in t.split(",")):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if value != value:
            raise InputError(f"{text}: give numbers such as 0.5,2", argument=argument)
        found.append(value)
    return tuple(dict.fromkeys(found))
