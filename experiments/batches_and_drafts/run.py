"""Whether batches and drafts pay, from recorded routing, beside what others published.

    python experiments/batches_and_drafts/run.py ../shared/data/routing

The folder holds gpt-oss-20b/gpqa_main.npz, olmoe-1b-7b/ and glm-4.5-air/ (README.md says where they are
from); what is absent is left out, and said. Writes results.json and prints the tables of README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traces.importers.dump import ImportOptions, import_routing
from traces.routing import RoutingTrace
from traces.routing.filter import filtered
from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario

HERE = Path(__file__).resolve().parent
FILES = {
    "gpt-oss-20b": "gpt-oss-20b/gpqa_main.npz",
    "olmoe-1b-7b": "olmoe-1b-7b/trace_olmoe_299.jsonl",
    "glm-4.5-air": "glm-4.5-air/glm45air_routing.jsonl",
}
SIZE = "13.3MB"
"""An expert of gpt-oss-20b; the others' bytes are scaled to it."""
POLICIES = ("lru", "learned")
RESIDENT = ("12.5%", "25%", "50%", "100%")
RATES = (0.6, 0.8, 0.9)
KS = (1, 2, 3, 4)
BATCHES = (1, 2, 4, 8, 16)
FINE = ("15%", "17.5%", "20%", "22.5%", "25%", "27.5%", "30%", "35%", "40%", "50%", "60%", "75%")
DS4 = (2.66 / 2.65, 1.25 / 2.65, 0.99 / 2.65)
"""antirez/ds4#495: tokens/s with drafts of 1, 2, 3 over none."""
KEPT = (
    "policy", "batch", "draft", "slots", "hit_rate", "misses", "bytes_h2d", "decode_steps",
    "decode_tokens_per_s", "sequence_tokens_per_s", "sequences_per_step", "tokens_per_step",
    "experts_per_layer", "rejected_tokens", "misses_over_belady",
)  # fmt: skip


def traces_in(folder: Path) -> dict[str, RoutingTrace]:
    """The traces that are there."""
    found = {}
    for model, name in FILES.items():
        if not (folder / name).is_file():
            print(f"left out: {folder / name} is not here")
            continue
        found[model] = import_routing(folder / name, ImportOptions(model_name=model))
    return found


def rows(t: RoutingTrace, sizes: Sequence[str], **how: Any) -> list[dict[str, Any]]:
    """One a run: what is kept of it."""
    s = Scenario(t, expert_size=SIZE, slots=sizes, **{"policies": POLICIES, **how})
    made = []
    for run in compare(s).to_json()["runs"]:
        row = {k: run[k] for k in KEPT if k in run}
        made.append(row)
    return made


def one(found: list[dict[str, Any]], **which: Any) -> dict[str, Any]:
    """The row that has these values."""
    return next(r for r in found if all(r[k] == v for k, v in which.items()))


def drafts(t: RoutingTrace) -> dict[str, Any]:
    """k = 0 .. 4 at every rate and residency: both ways to borrow, and with a drafter that costs."""
    every = ["0", *(f"{k}:{p:g}" for p in RATES for k in KS)]
    some = ["0", *(f"{k}:0.8" for k in KS)]
    return {
        "true": rows(t, RESIDENT, draft=every),
        "random": rows(t, RESIDENT, draft=every, draft_reject="random"),
        "cost_0.1": rows(t, RESIDENT, draft=some, draft_cost=0.1),
        "fine": rows(t, FINE, draft=every, policies=("lru",)),
        "fine_random": rows(t, FINE, draft=every, policies=("lru",), draft_reject="random"),
    }


def batches(t: RoutingTrace) -> list[dict[str, Any]]:
    """Sequences side by side at every residency."""
    return rows(t, RESIDENT, batch=BATCHES)


def union(t: RoutingTrace, batch: Sequence[int]) -> dict[str, float]:
    """Distinct experts a layer of a step, all slots taken, by sequences side by side."""
    told = {}
    d = t.dense.by_sequence()
    starts = d.sequence_starts()
    for b in batch:
        longest = min(sorted((starts[1:] - starts[:-1]).tolist(), reverse=True)[:b])
        if len(starts) - 1 < b:
            continue
        picked = [i for i in range(len(starts) - 1) if starts[i + 1] - starts[i] >= longest][:b]
        n = [
            len({int(e) for i in picked for e in d.ids[starts[i] + j, layer]} - {-1})
            for j in range(longest)
            for layer in range(d.ids.shape[1])
        ]
        told[str(b)] = sum(n) / len(n)
    return told


def consecutive(t: RoutingTrace, most: int) -> dict[str, float]:
    """Distinct experts a layer of so many tokens in a row of one sequence."""
    d = t.dense.by_sequence()
    starts = d.sequence_starts()
    told = {}
    for w in range(1, most + 1):
        n = [
            len({int(e) for e in d.ids[j : j + w, layer].reshape(-1)} - {-1})
            for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
            for j in range(a, b - w + 1, w)
            for layer in range(d.ids.shape[1])
        ]
        told[str(w)] = sum(n) / len(n)
    return told


def table(head: str, lines: list[list[str]], columns: list[str]) -> None:
    """Markdown."""
    print(f"\n{head}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def show(made: dict[str, Any]) -> None:
    """The tables of README.md."""
    total_slots = 768
    for reject in ("true", "random"):
        found = made["drafts"][reject]
        for policy in POLICIES:
            lines = []
            for size in RESIDENT:
                slots = int(float(size[:-1]) / 100 * total_slots)
                plain = one(found, policy=policy, slots=slots, draft="0")["decode_tokens_per_s"]
                for p in RATES:
                    got = [one(found, policy=policy, slots=slots, draft=f"{k}:{p:g}") for k in KS]
                    cells = [f"{r['decode_tokens_per_s'] / plain:.2f}" for r in got]
                    lines.append([size, f"{p:g}", f"{plain:.0f}", *cells])
            heads = ["resident", "P", "tok/s, none", *(f"k = {k}" for k in KS)]
            table(f"{policy}, rejected as {reject}: tokens/s over none", lines, heads)
    for policy in POLICIES:
        lines = []
        for size in RESIDENT:
            slots = int(float(size[:-1]) / 100 * total_slots)
            got = [one(made["batches"], policy=policy, slots=slots, batch=b) for b in BATCHES]
            lines.append(
                [size, *(f"{r['decode_tokens_per_s']:.0f} ({r['hit_rate']:.1%})" for r in got)]
            )
        table(f"{policy}: tokens/s (hits) by batch", lines, ["resident", *map(str, BATCHES)])
    found = made["drafts"]["fine"]
    lines = []
    for slots in sorted({r["slots"] for r in found}):
        got = [one(found, slots=slots, draft=d) for d in ("0", *(f"{k}:0.8" for k in KS))]
        plain = got[0]["decode_tokens_per_s"]
        step = plain / got[0]["tokens_per_step"]
        cost = [step / (r["decode_tokens_per_s"] / r["tokens_per_step"]) for r in got[1:]]
        gain = [r["decode_tokens_per_s"] / plain for r in got[1:]]
        lines.append(
            [f"{slots / total_slots:.1%}", f"{got[0]['hit_rate']:.1%}"]
            + [f"{g:.2f} ({c:.2f})" for g, c in zip(gain, cost, strict=True)]
        )
    table("lru, P = 0.8: tokens/s over none (time of a step over none)", lines,
          ["resident", "hits", *(f"k = {k}" for k in KS)])  # fmt: skip
    for size in RESIDENT:
        found = [r for r in made["drafts"]["cost_0.1"] if r["policy"] == "learned"]
        slots = int(float(size[:-1]) / 100 * total_slots)
        got = [one(found, slots=slots, draft=d) for d in ("0", *(f"{k}:0.8" for k in KS))]
        gain = [f"{r['decode_tokens_per_s'] / got[0]['decode_tokens_per_s']:.2f}" for r in got]
        print("learned, P = 0.8, a draft costs 0.1 of a pass:", size, *gain)
    for name in ("fine", "fine_random"):
        for off, slots, rate, gain in nearest(made["drafts"][name])[:3]:
            told = ", ".join(f"{g:.2f}" for g in gain)
            print(
                f"{name}: {slots / total_slots:.1%} at P = {rate:g}: {told}; off by up to {off:.2f}"
            )
    print(json.dumps({k: made[k] for k in ("union", "consecutive")}, indent=1))


def nearest(found: list[dict[str, Any]]) -> list[tuple[float, int, float, list[float]]]:
    """Sizes and rates, those first whose gains of k = 1, 2, 3 are nearest to `DS4`."""
    made = []
    for slots in sorted({r["slots"] for r in found}):
        plain = one(found, slots=slots, draft="0")["decode_tokens_per_s"]
        for rate in RATES:
            got = [one(found, slots=slots, draft=f"{k}:{rate:g}") for k in KS[:3]]
            gain = [r["decode_tokens_per_s"] / plain for r in got]
            off = max(abs(a - b) for a, b in zip(gain, DS4, strict=True))
            made.append((off, slots, rate, gain))
    return sorted(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/data/routing"))
    found = traces_in(parser.parse_args().folder)
    made: dict[str, Any] = {
        "union": {m: union(t, BATCHES[:4]) for m, t in found.items()},
        "consecutive": {m: consecutive(t, 5) for m, t in found.items()},
    }
    if "gpt-oss-20b" not in found:
        sys.exit("nothing to compare without gpt-oss-20b/gpqa_main.npz")
    t = found["gpt-oss-20b"]
    made |= {"drafts": drafts(t), "batches": batches(t)}
    clean, _ = filtered(t, no_loops=True)
    made["no_loops"] = {
        "tokens": clean.n_tokens,
        "rows": rows(clean, ["25%", "50%"], draft=["0", "1:0.8", "3:0.8"]),
        "union": union(clean, BATCHES[:4]),
        "consecutive": consecutive(clean, 5),
    }
    path = HERE / "results.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)
    show(made)


if __name__ == "__main__":
    main()
