"""`uvmsim mrc`: what each pool size would miss."""

from __future__ import annotations

import json

import click

from uvmsim.commands.flags import Command, decoding_lists, decoding_options, policy_list


@click.command(cls=Command, short_help="Miss-ratio curves: what each pool size would miss.")
@click.argument("trace", required=False, type=click.Path())
@click.option(
    "--policy", "policies", metavar="P", multiple=True,
    help="Policies beside LRU, simulated at --slots; default belady.",
)  # fmt: skip
@click.option(
    "--slots", metavar="N|N%", multiple=True,
    help="Sizes to print and to simulate other policies at; default 6.25% to 100%.",
)  # fmt: skip
@click.option("--pool", default="both", metavar="global|per-layer|both", help="Which pools.")
@click.option("--unit", default="event", metavar="event|access", help="As in compare.")
@click.option(
    "--sample", type=float, metavar="SHARE", help="LRU from a share of the trace, e.g. 0.05."
)
@decoding_options
@click.option("--limit", type=int, metavar="TOKENS", help="Use only the first tokens of the trace.")
@click.option("--profile", metavar="TRACE", help="What static-pin learns from.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--plot", type=click.Path(), metavar="FILE", help="Write the curves as .png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the whole curves.")
def mrc(as_json: bool, plot: str | None, **given) -> None:  # type: ignore[no-untyped-def]
    """Miss-ratio curves of TRACE (default: the bundled one).

    LRU's curve is exact for every size, from one pass over the trace. Other policies are simulated
    at the sizes given.

    \b
    Examples:
      uvmsim mrc T.arrow
      uvmsim mrc T.arrow --policy belady,lfu,layer-lru --slots 12.5%,25%,50% --plot mrc.png
      uvmsim mrc LONG.arrow --sample 0.05
      uvmsim mrc T.arrow --batch 4
    """
    from uvmsim.commands.compare import choose
    from uvmsim.report.progress import bar
    from uvmsim.studies.mrc.study import mrc as run
    from uvmsim.studies.scenario import Scenario

    choose("--pool", given["pool"], ("global", "per-layer", "both"))
    for name in ("policies", "slots"):
        given[name] = policy_list(given[name])
    decoding_lists(given)
    if plot:
        from uvmsim.report.plots import check_target

        check_target(plot)
    sample = given.pop("sample")
    if given["pool"] == "both":
        del given["pool"]
    scenario = Scenario(**{k: v for k, v in given.items() if v not in (None, ())})
    with bar("curves") as progress:
        result = run(scenario, sample=sample, progress=progress)
    if plot:
        from uvmsim.report.mrc_plot import draw

        draw(result, plot)
        click.echo(f"wrote {plot}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json(), sort_keys=True))
    else:
        from uvmsim.report.mrc_table import print_curves

        print_curves(result)
