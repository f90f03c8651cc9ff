"""The study's tables and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_cells import EACH

FULL = ("ttft", "tpot", "itl")


def table(head: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{head}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n{body}"


def off(simulated: float, published: float) -> str:
    return f"{simulated / published - 1:+.1%}"


def told(row: dict[str, Any]) -> dict[str, float]:
    """tok/s and ms of a published row. A token's time is what is left after TTFT of all time, 64
    tokens over tok/s; ``e2e_tpot_ms`` has the row's E2E in its place, which is not the same."""
    speed, first = row["output_throughput"], row["ttft_s"]
    return {
        "output_throughput": speed, "mean_ttft_ms": first * 1e3,
        "mean_tpot_ms": (64 / speed - first) / 63 * 1e3,
        "e2e_tpot_ms": (row["e2e_s"] - first) / 63 * 1e3,
    }  # fmt: skip


def tables(made: dict[str, Any], published: dict[str, Any]) -> list[str]:
    """All of them, in the README's order."""
    return [
        _rows(made, published), _noise(made, published), _manual(made["manual"], "`--breaks 64`"),
        _manual(made["manual_b11549"], "`--breaks 516,4` (b11549)"), _ablation(made),
        _caches(made, published), _colocation(made, published), _sensitivity(made),
    ]  # fmt: skip


def _rows(made: dict[str, Any], published: dict[str, Any]) -> str:
    lines = []
    for row in published["rows"]:
        want, got = told(row), made["rows"][row["row"]]["mean"]
        fit = " (fitted)" if row["fitted"] else ""
        speed, first, token = (got[k] for k in EACH)
        lines.append(
            [row["row"], f"{want['output_throughput']:.2f}", f"{speed:.2f}",
             off(speed, want["output_throughput"]) + fit, f"{want['mean_ttft_ms'] / 1e3:.2f}",
             f"{first / 1e3:.2f}", off(first, want["mean_ttft_ms"]),
             f"{want['mean_tpot_ms']:.1f} / {want['e2e_tpot_ms']:.1f}", f"{token:.1f}",
             f"{off(token, want['mean_tpot_ms'])} / {off(token, want['e2e_tpot_ms'])}"]
        )  # fmt: skip
    head = ["", "tok/s", "simulated", "error", "TTFT s", "simulated", "error",
            "TPOT ms, of tok/s / of E2E", "simulated", "error"]  # fmt: skip
    return table("512 in, 64 out, one at a time", head, lines)


def _noise(made: dict[str, Any], published: dict[str, Any]) -> str:
    lines = []
    for name, row in (("UVM", "UVM, default"), ("-ncmoe 32", "-ncmoe 32")):
        own = published["blocks"][name]
        each = made["rows"][row]["each"]["output_throughput"]
        average = sum(own) / len(own)
        lines.append(
            [name, f"{min(own):.2f} .. {max(own):.2f}", f"{average:.2f}",
             f"{(min(own) / average - 1):+.0%} .. {(max(own) / average - 1):+.0%}",
             f"{min(each):.2f} .. {max(each):.2f}"]
        )  # fmt: skip
    head = ["", "five blocks, tok/s", "mean", "about it", "three seeds, simulated"]
    return table("How much a measurement repeats", head, lines)


def _manual(found: dict[str, Any], how: str) -> str:
    lines = []
    for name, row in found.items():
        m, each = row["mean"], row["each"]["mean_tpot_ms"]
        cells = [name, f"{m['output_throughput']:.2f}"]
        for metric in FULL:
            digits = 0 if metric == "ttft" else 1
            cells.append(
                " / ".join(f"{m[f'{x}_{metric}_ms']:.{digits}f}" for x in ("mean", "median", "p99"))
            )
        spread = "" if max(each) - min(each) < 0.05 else f"{min(each):.1f}, {max(each):.1f}"
        lines.append([*cells, spread])
    head = ["", "tok/s", "TTFT ms, mean / median / P99", "TPOT ms", "ITL ms", "TPOT of each draw"]
    return table(f"20 requests, -c 4096, 0.2/s, one at a time, {how}", head, lines)


def _ablation(made: dict[str, Any]) -> str:
    lines = []
    drawn = made["manual_ablation"] | {
        "as it is": made["manual"]["UVM, default"],
        "breaks of b11549 (516, 4)": made["manual_b11549"]["UVM, default"],
    }
    for name, row in made["ablation"].items():
        cells = [name]
        for found in (row, drawn.get(name)):
            if found is None:
                cells += ["", "", ""]
                continue
            m = found["mean"]
            gb = m["decode_gb"] / m["decode_passes"]
            cells += [f"{m['mean_ttft_ms'] / 1e3:.2f}", f"{m['mean_tpot_ms']:.1f}", f"{gb:.3f}"]
        lines.append(cells)
    head = ["one change", "512/64: TTFT s", "TPOT ms", "GB a token",
            "20 requests: TTFT s", "TPOT ms", "GB a token"]  # fmt: skip
    return table("UVM, default", head, lines)


def _caches(made: dict[str, Any], published: dict[str, Any]) -> str:
    want = published["moe_infinity"]
    lines = [["MoE-Infinity, published", f"{want['decode']:.2%}", f"{want['prefill']:.2%}"]]
    for name, row in made["caches"].items():
        m = row["mean"]
        lines.append([name, f"{m['decode_hit_rate']:.1%}", f"{m['prefill_hit_rate']:.1%}"])
    slots = next(iter(made["caches"].values()))["cell"]["slots"]
    return table(f"Expert cache of {slots:,} slots: hits", ["", "decode", "prefill"], lines)


def _colocation(made: dict[str, Any], published: dict[str, Any]) -> str:
    want = published["colocation"]
    lines = []
    for key, label, digits in (
        ("output_throughput", "tok/s", 1), ("duration", "duration, s", 1),
        *((f"{x}_{m}_ms", f"{m.upper()} {x}, ms", 2)
          for m in FULL for x in ("mean", "median", "p99")),
    ):  # fmt: skip
        cells = [label, f"{want[key]:.{digits}f}"]
        for name in ("UVM", "resident"):
            value = made["colocation"][name]["mean"][key]
            cells += [f"{value:.{digits}f}", off(value, want[key])]
        lines.append(cells)
    head = ["gpt-oss-20b", "published", "uvm", "error", "resident", "error"]
    return table("100 requests, all at once, one at a time", head, lines)


def _sensitivity(made: dict[str, Any]) -> str:
    s = made["fits"]["fit"]["stickiness"]
    name, other = "UVM, default", "UVM, prefetch_always_max"
    cases = [(f"s = {s:g}", "rows", "manual")]
    cases += [(f"s {by}", f"rows s {by}", f"manual s {by}") for by in ("-10%", "+10%")]
    for fit, found in made["fits"].items():
        if fit != "fit":
            label = f"popularity rank^-{fit[5:]}, s = {found['stickiness']:g} (fitted again)"
            cases.append((label, f"rows {fit}", f"manual {fit}"))
    lines = []
    for label, fixed, manual in cases:
        m = made[fixed][name]["mean"]
        d, a = (made[manual][x]["each"] for x in (name, other))
        pair = (f"{x['mean_ttft_ms'][0] / 1e3:.2f} / {x['mean_tpot_ms'][0]:.1f}" for x in (d, a))
        lines.append(
            [label, f"{m['output_throughput']:.2f}", f"{m['mean_ttft_ms'] / 1e3:.2f}",
             f"{m['mean_tpot_ms']:.1f}", *pair]
        )  # fmt: skip
    head = ["", "512/64, default: tok/s", "TTFT s", "TPOT ms",
            "20 requests, draw 0, default: TTFT s / TPOT ms", "always_max"]  # fmt: skip
    return table("What the fitted constant carries", head, lines)


def draw(made: dict[str, Any], published: dict[str, Any], path: Path) -> None:
    """Published and simulated rows, and the predictions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        1, 3, figsize=(13, 3.9), constrained_layout=True, width_ratios=(1, 1, 1.5)
    )
    names = [r["row"] for r in published["rows"]][::-1]
    want = {r["row"]: told(r) for r in published["rows"]}
    for ax, key, scale, title in (
        (axes[0], "mean_ttft_ms", 1e3, "first token, s"),
        (axes[1], "mean_tpot_ms", 1, "a further token, ms"),
    ):
        y = range(len(names))
        got = [made["rows"][n]["mean"][key] / scale for n in names]
        ax.barh([i + 0.2 for i in y], [want[n][key] / scale for n in names], 0.38, label="published",
                color="#9aa5b1")  # fmt: skip
        bars = ax.barh([i - 0.2 for i in y], got, 0.38, label="simulated", color="#1f6fb4")
        for bar, n, value in zip(bars, names, got, strict=True):
            text = off(value, want[n][key] / scale)
            ax.text(bar.get_width() * 1.01, bar.get_y() + 0.19, text, va="center", fontsize=8)
        ax.set_yticks(list(y), names if ax is axes[0] else [""] * len(names))
        ax.set_title(title, loc="left")
    axes[1].legend(frameon=False, loc="lower right")
    ax = axes[2]
    rows = list(made["manual"].items())[::-1]
    ax.barh(range(len(rows)), [r["mean"]["mean_tpot_ms"] for _, r in rows], 0.6, color="#1f6fb4")
    for i, (_, row) in enumerate(rows):
        text = f"{row['mean']['mean_tpot_ms']:.0f}, first {row['mean']['mean_ttft_ms'] / 1e3:.1f} s"
        ax.text(row["mean"]["mean_tpot_ms"] * 1.01, i, text, va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [n.replace("prefetch_", "") for n, _ in rows], fontsize=8)
    ax.set_title("20 requests, predicted: a further token, ms", loc="left")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.2)
    fig.suptitle("gpt-oss-120b behind llama-server on an RTX 5090", x=0.01, ha="left",
                 weight="bold")  # fmt: skip
    temporary = path.with_suffix(".tmp.png")
    fig.savefig(temporary, dpi=110)
    temporary.replace(path)
    plt.close(fig)
