"""How much of the gap between LRU and Belady learned policies close, on routing split by sequence.

    python experiments/policy_lead/run.py ROUTING
    python experiments/policy_lead/run.py ROUTING --all    # and misses, pieces, negative results

ROUTING is a folder of public dumps: gpt-oss-20b/{mmlu_dev,gpqa_main,polyglot}.npz,
olmoe-1b-7b/trace_olmoe_299.jsonl, glm-4.5-air/glm45air_routing.jsonl. Everything is done by uvmsim's
own commands. Writes results.json and prints the tables of README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UVMSIM = [sys.executable, "-c", "from uvmsim.cli import main; main()"]
SLOTS = ("12.5%", "25%", "50%")
DUMPS = {
    "gpqa_main": "gpt-oss-20b/gpqa_main.npz", "mmlu_dev": "gpt-oss-20b/mmlu_dev.npz",
    "polyglot": "gpt-oss-20b/polyglot.npz", "olmoe": "olmoe-1b-7b/trace_olmoe_299.jsonl",
    "glm": "glm-4.5-air/glm45air_routing.jsonl",
}  # fmt: skip
PARTS = {
    "gpqa_main, train": ("gpqa_main", "--no-loops --sequences 0-13"),
    "gpqa_main, test": ("gpqa_main", "--no-loops --sequences 14-28"),
    "mmlu_dev, train": ("mmlu_dev", "--no-loops --sequences 0-47"),
    "mmlu_dev, test": ("mmlu_dev", "--no-loops --sequences 48-96"),
    "gpqa_main, no loops": ("gpqa_main", "--no-loops"),
    "gpqa_main, as it is": ("gpqa_main", None),
    "mmlu_dev, as it is": ("mmlu_dev", None),
    "polyglot": ("polyglot", None),
    "OLMoE (299 tokens)": ("olmoe", None),
    "GLM-4.5-Air (123 tokens)": ("glm", None),
}
LEARNED_ON = {
    "gpqa_main, test": "gpqa_main, train", "mmlu_dev, test": "mmlu_dev, train",
    "polyglot": "mmlu_dev, train",
}  # fmt: skip
"""Parts whose warm runs begin with what was learned on another part."""
WARM = "learned (warm)"
EVICTING = ("layer-lru", "s3fifo", "lrfu", "learned")
FETCHING = (
    "lru+next-layer", "learned", "learned+learned-next", "learned+learned-next:theta=0.8",
    "learned+learned-next:ahead=2:budget=7.1e6", "learned+learned-next:ahead=3:budget=7.1e6",
    "learned+learned-next:theta=0.2:useful=0.8",
)  # fmt: skip


def uvmsim(*arguments: str) -> str:
    return subprocess.run([*UVMSIM, *arguments], check=True, capture_output=True, text=True).stdout


def part_of(routing: Path, folder: Path, part: str) -> Path:
    """The trace of one of `PARTS`, imported (once for all parts of a dump) and filtered in a folder."""
    name, kept = PARTS[part]
    whole = folder / f"{name}.arrow"
    if not whole.exists():
        uvmsim("trace", "import", str(routing / DUMPS[name]), "-o", str(whole))
    if not kept:
        return whole
    trace = folder / f"{name}-part.arrow"
    uvmsim("trace", "filter", str(whole), "-o", str(trace), *kept.split())
    return trace


def compared(
    trace: Path, policies: tuple[str, ...], state: Path | None = None, state_out: Path | None = None
) -> dict[str, dict[str, Any]]:
    """By size and policy: hits, misses, decode tokens/s; and a policy's share of the gap. ``state``:
    what `learned` also begins with; ``state_out``: where what it has learned goes."""
    size = [] if "gpqa" in trace.stem or "mmlu" in trace.stem or "poly" in trace.stem else ["13MB"]
    out = uvmsim(
        "compare", str(trace), "--json", "--slots", ",".join(SLOTS),
        "--policy", ",".join(("lru", *policies, "belady")),
        *(["--expert-size", *size] if size else []),
        *(["--state", str(state)] if state else []),
        *(["--state-out", str(state_out)] if state_out else []),
    )  # fmt: skip
    runs = json.loads(out)["runs"]
    found: dict[str, dict[str, Any]] = {}
    for slots, size_ in zip(sorted({r["slots"] for r in runs}), SLOTS, strict=True):
        of = {r["policy"]: r for r in runs if r["slots"] == slots}
        worst, best = of["lru"]["misses"], of["belady"]["misses"]
        found[size_] = {
            name: {
                "hits": r["hits"] / r["accesses"],
                "share": (worst - r["misses"]) / (worst - best),
                "decode_tokens_per_s": r["decode_tokens_per_s"],
                "gb_in": r["bytes_h2d"] / 1e9,
                "prefetch": r["prefetch"],
            }
            for name, r in of.items()
        }
    return found


def main(routing: Path) -> None:
    results: dict[str, Any] = {"evicting": {}, "fetching": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in PARTS:
            trace = part_of(routing, work, part)
            given = work / LEARNED_ON[part] if part in LEARNED_ON else None
            kept_as = work / part if part in LEARNED_ON.values() else None
            results["evicting"][part] = compared(trace, EVICTING, given, kept_as)
            if part.endswith("test"):
                results["fetching"][part] = compared(trace, FETCHING)
            show(part, results)
    (HERE / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def show(part: str, results: dict[str, Any]) -> None:
    """The rows of a part."""
    for size, of in results["evicting"][part].items():
        shares = " | ".join(
            f"{of[p]['hits']:.1%} ({of[p]['share']:+.1%})" if p in of else ""
            for p in (*EVICTING, WARM)
        )
        ends = f"{of['lru']['hits']:.1%} | {of['belady']['hits']:.1%}"
        print(f"| {part} | {size} | {ends} | {shares} |", flush=True)
    for name in FETCHING if part in results["fetching"] else ():
        cells = []
        for of in results["fetching"][part].values():
            r, fetched = of[name], of[name]["prefetch"]
            n = max(fetched["issued"], 1)
            told = "/".join(f"{fetched[k] / n:.0%}" for k in ("useful", "late", "wasted"))
            more = f", {told}" if fetched["issued"] else ""
            cells.append(f"{r['decode_tokens_per_s']:.1f}, {r['gb_in']:,.0f} GB{more}")
        print(f"| {part} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    for script in ("misses.py", "pieces.py", "negative.py") if "--all" in sys.argv[2:] else ():
        subprocess.run([sys.executable, str(HERE / script), sys.argv[1]], check=True)
