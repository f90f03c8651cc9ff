"""A validation of llama.cpp as Markdown, on the terminal and as a picture."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from replay.calibrate.report import titled_table
from uvmsim.report.plots import COLOURS, figure, save
from uvmsim.report.progress import wide

MARKS = "osD^vP*X"


def headline(report: dict[str, Any]) -> str:
    """How far off the predictions were, in one line."""
    o = report["overall"]
    told = [
        f"{kind}: mean error {e['mean']:.1%}, worst {e['worst']:+.1%}"
        for kind, e in o["by_kind"].items()
        if e["n"]
    ]
    tau = "" if o["tau_mean"] is None else f"; mean Kendall's tau {o['tau_mean']:.2f}"
    return f"{o['tests']} tests of {o['cells']} cells; " + "; ".join(told) + tau


def verdicts(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Target, wanted, found, reached."""
    o, t, r = report["overall"], report["targets"], report["regret"]
    tg, pp = o["by_kind"]["tg"], o["by_kind"]["pp"]
    m, equal = report["memory"], [c["equal"] for c in report["counters"]]
    found: list[tuple[str, float | None, float, bool]] = [
        ("tokens one by one, mean error", tg["mean"], t["tg"], True),
        ("tokens one by one, worst", None if tg["worst"] is None else abs(tg["worst"]),
         t["tg_worst"], True),
        ("prompts, mean error", pp["mean"], t["pp"], True),
        ("regret of the recommended configuration, mean", r["mean"], t["regret"], True),
        ("regret, worst", r["worst"], t["regret_worst"], True),
        ("VRAM, worst error", None if m["worst"] is None else abs(m["worst"]), 0.02, True),
    ]  # fmt: skip
    out = [
        (name, f"at most {wanted:.0%}", f"{value:.1%}", "yes" if value <= wanted else "no")
        for name, value, wanted, _ in found
        if value is not None
    ]
    if o["tau_mean"] is not None:
        reached = "yes" if o["tau_mean"] >= t["tau"] else "no"
        out.append(("order of configurations (Kendall's tau, mean)", f"at least {t['tau']}",
                    f"{o['tau_mean']:.2f}", reached))  # fmt: skip
    if equal:
        told = f"equal in {sum(equal)} of {len(equal)}"
        reached = "yes" if all(equal) else "no"
        out.append(("hits and misses of the expert cache", "equal", told, reached))
    return out


def to_markdown(report: dict[str, Any]) -> str:
    """``report.md``."""
    o = report["overall"]
    lines = [
        f"# llama.cpp on {report['hardware']['gpu']}",
        "",
        f"**{headline(report)}.**",
        "",
        f"Predicted from {report['hardware']['file']} alone and written to disk before the first "
        f"measurement. {report['build']}; uvmsim {report['uvmsim']}. A test's speed is that of its "
        "median repetition, after one that is not timed.",
        "",
        "| target | wanted | found | reached |",
        "|---|---|---|---|",
        *(f"| {' | '.join(v)} |" for v in verdicts(report)),
        "",
        "## By mode",
        "",
        "| mode | tests | mean error | worst | where |",
        "|---|---|---|---|---|",
    ]
    for mode, e in o["by_mode"].items():
        lines.append(
            f"| {mode} | {e['n']} | {e['mean']:.1%} | {e['worst']:+.1%} | {e['worst_cell']} |"
        )
    lines += [
        "", "## Every test, tokens/s", "",
        "| model | mode | size | test | predicted | measured | error | slowest to fastest run |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in report["rows"]:
        head = f"| {r['model']} | {r['mode']} | {r['size']} | {r['test']} |"
        if r["status"] != "ok":
            lines.append(f"{head} failed: {r['why']} | | | |")
            continue
        low, high = (r["measured"] / x for x in r["spread"][::-1])
        lines.append(
            f"{head} {r['predicted']:,.1f} | {r['measured']:,.1f} | {r['error']:+.1%} | "
            f"{low:,.1f} to {high:,.1f} |"
        )
    if report["counters"]:
        lines += ["", "## The expert cache's own counters", ""]
        lines += ["| cell | hits predicted / counted | misses | equal |", "|---|---|---|---|"]
        for c in report["counters"]:
            p, m = c["predicted"], c["measured"]
            lines.append(
                f"| {c['cell']} | {p['hits']:,} / {m['hits']:,} | {p['misses']:,} / "
                f"{m['misses']:,} | {'yes' if c['equal'] else 'NO'} |"
            )
    users = report["regret"]["users"]
    if users:
        lines += [
            "", "## What a user loses by the recommendation", "",
            "| model | prompt + answer | device memory | recommended | fastest measured | slower by |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for u in users:
            lines.append(
                f"| {u['model']} | {u['prompt']:,} + {u['generate']:,} | {u['vram']:.0%} of the "
                f"model's | {_short(u, 'recommended')} | {_short(u, 'fastest')} | "
                f"{u['regret']:.1%} |"
            )
    if o["groups"]:
        lines += ["", "## Order of configurations", "",
                  "| model | test | configurations | tau | pairs the wrong way round | widest gap |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for g in o["groups"]:
            lines.append(
                f"| {g['model']} | {g['test']} | {g['configurations']} | {g['tau']:.2f} | "
                f"{g['discordant']} | {g['widest']:.1%} |"
            )
    if report.get("plot"):
        lines += ["", f"![predicted against measured]({report['plot']})"]
    return "\n".join(lines) + "\n"


def _short(user: dict[str, Any], key: str) -> str:
    return str(user[key]).removeprefix(f"{user['model']} ")


def print_report(report: dict[str, Any]) -> None:
    """Verdicts, modes and the worst tests on the terminal."""
    console = wide()
    console.print(Text(headline(report), style="bold"), soft_wrap=True)
    table = titled_table("targets", "what", "wanted", "found", "reached")
    for row in verdicts(report):
        table.add_row(*row)
    console.print(table)
    modes = titled_table("by mode", "mode", "tests", "mean error", "worst")
    for mode, e in report["overall"]["by_mode"].items():
        modes.add_row(mode, str(e["n"]), f"{e['mean']:.1%}", f"{e['worst']:+.1%}")
    console.print(modes)
    for f in report["overall"]["failed"]:
        console.print(Text(f"failed: {f['cell']} {f['test']}: {f['why']}"), soft_wrap=True)


def draw(report: dict[str, Any], path: str) -> None:
    """A PNG or SVG: left all tests on the diagonal (band: 10 %), right the errors by mode."""
    rows = [r for r in report["rows"] if r["status"] == "ok"]
    fig, (left, right) = figure(12, 5.4, ncols=2, width_ratios=(1, 1.15))
    modes = list(dict.fromkeys(r["mode"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows))
    for i, mode in enumerate(modes):
        for kind, face in (("pp", "none"), ("tg", COLOURS[i % len(COLOURS)])):
            mine = [r for r in rows if r["mode"] == mode and r["test"].startswith(kind)]
            style: dict[str, Any] = {
                "marker": MARKS[i % len(MARKS)], "edgecolors": COLOURS[i % len(COLOURS)],
                "facecolors": face, "alpha": 0.85,
            }  # fmt: skip
            label = mode if kind == "tg" else None
            left.scatter([r["measured"] for r in mine], [r["predicted"] for r in mine], s=34,
                         label=label, **style)  # fmt: skip
            shift = (i - (len(modes) - 1) / 2) * 0.12
            at = [models.index(r["model"]) + shift for r in mine]
            right.scatter(at, [100 * r["error"] for r in mine], s=26, **style)
    if rows:
        values = [r[k] for r in rows for k in ("predicted", "measured")]
        low, high = min(values) / 1.2, max(values) * 1.2
        left.plot([low, high], [low, high], color="0.4", lw=1, zorder=0)
        left.fill_between([low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high],
                          color="0.88", zorder=-1, lw=0)  # fmt: skip
        left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        left.legend(fontsize=9, title="filled: token by token; open: prompts", title_fontsize=8)
    left.set(xlabel="measured tokens/s", ylabel="predicted tokens/s", aspect="equal")
    right.axhline(0, color="0.4", lw=1)
    right.axhspan(-10, 10, color="0.92", zorder=-1)
    right.set_xticks(range(len(models)), models, rotation=15, ha="right", fontsize=9)
    right.set(ylabel="error of tokens/s, % (band: 10 %)")
    fig.suptitle(f"llama.cpp on {report['hardware']['gpu']}\n{headline(report)}", fontsize=9)
    save(fig, path)
