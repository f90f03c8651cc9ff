"""The study as Markdown tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uvmsim.report.plots import COLOURS, figure, save

OOM = "out of memory"


def published_table(rows: list[dict[str, Any]]) -> str:
    """Every published number, the simulator's, and whether a constant was fitted on it."""
    lines = [
        "| experts | mode | tokens/s published | simulated | error | this number is "
        "| peak GiB published | simulated | this number is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r["out_of_memory"]:
            speed = OOM if r["published_out_of_memory"] else number(r["published_tokens_per_s"])
            need = f"needs {r['peak_gib']:.2f}"
            cells = [speed, f"**{OOM}**", "", "predicted", "", need, "predicted"]
        else:
            cells = [
                OOM if r["published_out_of_memory"] else number(r["published_tokens_per_s"]),
                number(r["tokens_per_s"]),
                "" if r["error"] is None else percent(r["error"]),
                origin(r["speed_fits"]),
                f"{r['published_peak_gib']:g}" if r["published_peak_gib"] else "",
                f"{r['peak_gib']:.3f}" if r["peak_gib"] < 1 else f"{r['peak_gib']:.2f}",
                origin(r["peak_fits"]),
            ]
        lines.append("| " + " | ".join([str(r["experts"]), f"`{r['mode']}`", *cells]) + " |")
    return "\n".join(lines)


def unrun_table(rows: list[dict[str, Any]]) -> str:
    """Policies, write-backs and targets that nobody measured: every number is a prediction."""
    lines = [
        "| experts | what | slots | hits, steps 2 and 3 | hit rate | of a full cyclic scan "
        "| tokens/s | times `ufm` as published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = {r["experts"]: r["tokens_per_s"] for r in reversed(rows)}  # the first row of each
    for r in rows:
        cells = [
            str(r["experts"]), r["label"], str(r["slots"]), f"{r['hits']} of {r['accesses']}",
            "all late" if r["late"] else f"{r['hit_rate'] * 100:.1f} %",
            f"{r['cyclic_hit_rate'] * 100:.1f} %", number(r["tokens_per_s"]),
            f"{r['tokens_per_s'] / base[r['experts']]:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def origin(fits: str | None) -> str:
    """What the table says of a number."""
    return f"fitted on ({fits})" if fits else "predicted"


def percent(x: float) -> str:
    """With a sign, except where it rounds to nothing."""
    text = f"{x * 100:+.1f} %"
    return "0.0 %" if text[1:] == "0.0 %" else text


def number(x: float) -> str:
    """Three figures below a thousand, whole numbers from there."""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}"


def draw(study: dict[str, Any], target: Path) -> None:
    """Left: published against simulated; right: what nobody ran at 192 experts."""
    fig, (left, right) = figure(12.5, 4.8, ncols=2, width_ratios=(1, 1.15))
    _published(left, study["table"])
    _unrun(right, [r for r in study["unrun"] if r["experts"] == 192])
    save(fig, str(target))


def _published(ax: Any, rows: list[dict[str, Any]]) -> None:
    for colour, mode in zip(COLOURS, ("baseline", "naive_offload", "ufm"), strict=False):
        mine = [r for r in rows if r["mode"] == mode]
        known = [r for r in mine if r["published_tokens_per_s"]]
        x = [r["experts"] for r in known]
        ax.plot(x, [r["tokens_per_s"] for r in known], color=colour, lw=2, label=mode)
        ax.plot(
            x, [r["published_tokens_per_s"] for r in known], "o", color=colour, mfc="none", ms=9
        )
        for r in mine:
            if r["out_of_memory"]:
                ax.plot(r["experts"], 8000, "x", color=colour, ms=9, mew=2)
                ax.annotate(
                    f"{OOM}: {r['peak_gib']:.1f} GiB", (r["experts"], 8000), (-8, 0),
                    textcoords="offset points", ha="right", va="center", color=colour,
                )  # fmt: skip
    ax.plot([], [], "o", color="grey", mfc="none", ms=9, label="published")
    ax.plot([], [], color="grey", lw=2, label="simulated")
    ax.set(yscale="log", xticks=[48, 96, 144, 192], xlabel="experts of 0.125 GiB")
    ax.set(ylabel="tokens/s", ylim=(20, 90_000))
    ax.legend(loc="center left", bbox_to_anchor=(0, 0.52))
    ax.set_title("UFM benchmark, RTX 4090, 15 GiB target", loc="left", fontsize=11)


def _unrun(ax: Any, rows: list[dict[str, Any]]) -> None:
    names = [r["label"] for r in rows][::-1]
    speeds = [r["tokens_per_s"] for r in rows][::-1]
    hits = ["all late" if r["late"] else f"{r['hit_rate']:.0%}" for r in rows][::-1]
    ax.barh(names, speeds, color=[COLOURS[2 if s > 600 else 4 if s > 60 else 1] for s in speeds])
    for i, (s, h) in enumerate(zip(speeds, hits, strict=True)):
        ax.annotate(
            f"{number(s)}  (hits {h})", (s, i), (4, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    ax.set(xscale="log", xlim=(20, 60_000), xlabel="tokens/s, predicted")
    ax.tick_params(axis="y", labelsize=9)
    ax.grid(axis="y", visible=False)
    ax.set_title("192 experts: what nobody ran", loc="left", fontsize=11)
