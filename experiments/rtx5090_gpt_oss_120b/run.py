"""Reproduce the RTX 5090 table of gpt-oss-120b: python experiments/rtx5090_gpt_oss_120b/run.py

Prints published against simulated tokens/s, and the counters behind them; writes results.json and
table.png beside this file (or to --out).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.paging import tables as t
from uvmsim.paging.layout import PAGE
from uvmsim.paging.trail import Paged
from uvmsim.policies.kinds import PAGES
from uvmsim.runs.job import Job
from uvmsim.studies.llamabench.table import Options, run
from uvmsim.studies.llamabench.workload import bench
from uvmsim.studies.simulate import simulate as simulate_job

HERE = Path(__file__).parent
WHAT_IF = (
    ("threshold 25", {"threshold": 25}),
    ("24 GiB of VRAM", {"vram": "24GiB"}),
    ("PCIe 4 (half the link)", {"link": "27.35GB/s"}),
    ("prefill copies, decode pages", {"policies": ("phase:copy-used,prefetch_always_max",)}),
)
TESTS = ("pp512", "tg128")


def simulate(row: dict[str, Any], reps: int) -> dict[str, dict[str, Any]]:
    """Rows of one configuration by test."""
    options = Options(
        mechanisms=(row["mechanism"],), policies=(row["policy"],) if "policy" in row else (),
        ncmoe=row.get("ncmoe"), reps=reps,
    )  # fmt: skip
    return {r["test"]: r for r in run(options).runs}


def rows_of(published: dict[str, Any], reps: int) -> list[dict[str, Any]]:
    """Published and simulated numbers, one entry a row and test."""
    done: dict[tuple, dict] = {}
    out = []
    for row in published["rows"]:
        key = (row["mechanism"], row.get("policy"), row.get("ncmoe"))
        if key not in done:
            done[key] = simulate(row, reps)
        for test in TESTS:
            got = done[key][test]
            out.append(
                {
                    "row": row["row"], "test": test, "seed": row["seed"],
                    "published": row[test], "simulated": got["tokens_per_s"], "sd": got["sd"],
                    "error": got["tokens_per_s"] / row[test] - 1,
                    "how": "fitted" if test in row["fitted"] else "predicted",
                    "mechanism": row["mechanism"], "policy": row.get("policy"),
                }
            )  # fmt: skip
    return out


def whole_run(reps: int) -> dict[str, float]:
    """The driver's counters over a whole run under threshold 51, and its first prefill."""
    model = Model.load("gpt-oss-120b")
    made = bench(model, 512, 128, reps, 0)
    hw = Hardware.load("rtx5090")
    trail = simulate_job(Job(made.workload, model, hw, PAGES.of("default")), "uvm").trail
    assert isinstance(trail, Paged)
    total, first = trail.run.counts.sum(axis=0), trail.run.counts[0]
    weights = trail.run.tables.pages.mapped[: trail.space.kv_block]
    return {
        f"activations_{reps}": int(total[t.ACTIVATED]),
        f"evictions_{reps}": int(total[t.EVICTED]),
        f"accesses_{reps}": int(total[t.SERVICES] - total[t.ACTIVATED]),
        f"blocks_{reps}": int(weights.sum()),
        "first_s": float(trail.step_ns()[0]) / 1e9,
        "first_in": float(first[t.PAGES_IN]) * PAGE / 1e9,
        "first_out": float(first[t.PAGES_OUT]) * PAGE / 1e9,
    }


def counters_of(published: dict[str, Any], reps: int) -> list[dict[str, Any]]:
    """The published counters, all of runs under threshold 51."""
    got = simulate({"mechanism": "uvm", "policy": "default"}, reps)
    simulated = whole_run(1) | whole_run(3)
    simulated["prefill_chunks"] = got["pp512"]["chunks_in"]
    simulated["decode_chunks"] = got["tg128"]["chunks_in_per_token"]
    return [
        c | {"simulated": simulated[c["kind"]], "error": simulated[c["kind"]] / c["value"] - 1}
        for c in published["counters"]
    ]


def what_if(reps: int) -> list[dict[str, Any]]:
    """Questions nobody has measured: default and always_max where nothing else is said."""
    out = []
    for name, change in WHAT_IF:
        given = {"policies": ("default", "prefetch_always_max")} | change
        for row in run(Options(reps=reps, **given)).runs:
            out.append({"what": name} | {k: row[k] for k in ("policy", "test", "tokens_per_s")})
    return out


def print_tables(result: dict[str, Any]) -> None:
    """Markdown, as in the README."""
    print("| row | test | published | simulated | error | |\n|---|---|---|---|---|---|")
    for r in result["rows"]:
        print(
            f"| {r['row']} | {r['test']} | {r['published']:.2f} | {r['simulated']:.2f} "
            f"| {r['error']:+.1%} | {r['how']} |"
        )
    print("\n| counter | published | simulated | error |\n|---|---|---|---|")
    for c in result["counters"]:
        print(
            f"| {c['name']} | {c['value']:,} {c['unit']} | {c['simulated']:,.1f} | {c['error']:+.1%} |"
        )
    print("\n| what nobody measured | policy | pp512 | tg128 |\n|---|---|---|---|")
    table: dict[tuple[str, str], dict[str, float]] = {}
    for w in result["what_if"]:
        table.setdefault((w["what"], w["policy"]), {})[w["test"]] = w["tokens_per_s"]
    for (what, policy), tests in table.items():
        print(f"| {what} | {policy} | {tests['pp512']:.1f} | {tests['tg128']:.2f} |")


def draw(result: dict[str, Any], path: Path) -> None:
    """Published and simulated side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seed = [r for r in result["rows"] if r["seed"]]
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), constrained_layout=True)
    for ax, test in zip(axes, TESTS, strict=True):
        rows = [r for r in seed if r["test"] == test][::-1]
        y = range(len(rows))
        ax.barh([i + 0.2 for i in y], [r["published"] for r in rows], 0.38, label="published",
                color="#9aa5b1")  # fmt: skip
        colours = ["#1f6fb4" if r["how"] == "predicted" else "#a8cbe8" for r in rows]
        bars = ax.barh([i - 0.2 for i in y], [r["simulated"] for r in rows], 0.38, color=colours)
        for bar, r in zip(bars, rows, strict=True):
            ax.text(bar.get_width() * 1.01, bar.get_y() + 0.19, f"{r['error']:+.1%}", va="center",
                    fontsize=8)  # fmt: skip
        ax.set_yticks(list(y), [r["row"] for r in rows] if test == TESTS[0] else [""] * len(rows))
        ax.set_xlabel("tokens/s")
        ax.set_title(
            "prompt, 512 tokens" if test == "pp512" else "generation, 128 tokens", loc="left"
        )
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.12)
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in ("#9aa5b1", "#1f6fb4", "#a8cbe8")]
    axes[1].legend(handles, ["published", "predicted", "fitted"], frameon=False, loc="upper right")
    fig.suptitle("gpt-oss-120b (59 GiB) on an RTX 5090 (32 GB)", x=0.01, ha="left", weight="bold")
    fig.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.json, table.png")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--no-plot", action="store_true")
    args = parser.parse_args()
    published = json.loads((HERE / "published.json").read_text())
    result = {
        "rows": rows_of(published, args.reps),
        "counters": counters_of(published, args.reps),
        "what_if": what_if(args.reps),
    }
    print_tables(result)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    if not args.no_plot:
        draw(result, args.out / "table.png")


if __name__ == "__main__":
    main()
