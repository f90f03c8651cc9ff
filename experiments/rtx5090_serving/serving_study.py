"""Which runs the study is made of: the fit, the published rows, predictions, what a cause carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from serving_cells import BREAKS_B11549, EACH, ZIPF, Cell, mean, run_all, slots_at

HERE = Path(__file__).parent
PUBLISHED = HERE / "published.json"
SEEDS, DRAWS = (0, 1, 2), (0, 1)
"""Of routing for the fixed load; of routing and lengths for the drawn one."""
BRACKET, HALVINGS = (0.2, 0.4), 5
DEFAULT = Cell("uvm", "default")
CONFIGURATIONS = {
    "UVM, default": DEFAULT,
    "UVM, prefetch_always_max": Cell("uvm", "prefetch_always_max"),
    "zero-copy (preferred location CPU)": Cell("zero-copy"),
    "-ncmoe 32": Cell("cpu-offload", ncmoe=32),
    "-ncmoe 64": Cell("cpu-offload", ncmoe=64),
}
PHASES = {
    f"UVM, {p}": Cell("uvm", p)
    for p in (
        "phase:copy-used,prefetch_always_max", "phase:copy-used,default",
        "phase:prefetch_always_max,default", "phase:default,prefetch_always_max",
        "prefetch_llama_phase", "prefetch_serving_adaptive",
    )
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no checkpoint break": {"breaks": ()},
    "breaks of b11549 (516, 4)": {"breaks": BREAKS_B11549},
    "no warm-up request": {"warmup": False},
    "no prompts between (1 token in)": {"prompts": False},
    "routing of llama-bench's random tokens": {"routing": "random"},
    "both: random tokens, no prompts": {"routing": "random", "prompts": False},
}
DRAWN_CHANGES = tuple(n for n in CHANGES if n not in ("as it is", "breaks of b11549 (516, 4)"))
CACHES = ("lru", "lfu", "lrfu")
BAND = ("UVM, default", "UVM, prefetch_always_max")
OTHER_ZIPF = (0.3, 0.9)
Seeds = Sequence[int]


def averaged(
    groups: Mapping[str, tuple[Mapping[str, Cell], Seeds]], workers: int = 2
) -> dict[str, dict[str, Any]]:
    """By group and cell: the mean over the group's seeds, and throughput, TTFT and TPOT of each."""
    todo = [replace(c, seed=s) for cells, seeds in groups.values()
            for c in cells.values() for s in seeds]  # fmt: skip
    rows = iter(run_all(todo, workers))
    made: dict[str, dict[str, Any]] = {}
    for group, (cells, seeds) in groups.items():
        made[group] = {}
        for name, cell in cells.items():
            own = [next(rows) for _ in seeds]
            made[group][name] = {
                "cell": asdict(cell), "seeds": list(seeds), "mean": mean(own),
                "each": {k: [r[k] for r in own] for k in EACH},
            }  # fmt: skip
    return made


def fitted(
    target: float, cases: Mapping[str, tuple[float, Seeds]], workers: int = 2
) -> dict[str, dict[str, Any]]:
    """By case (slope of the popularity, seeds): the overlap of neighbouring tokens at which UVM under
    the default policy makes ``target`` tokens/s. Bisection, then a straight line between the last two,
    to three decimals."""
    ends = {name: list(BRACKET) for name in cases}
    speed: dict[str, dict[float, float]] = {name: {} for name in cases}

    def look(points: Mapping[str, Sequence[float]]) -> None:
        cells = {
            f"{name} {s}": ({"": replace(DEFAULT, stickiness=s, zipf=cases[name][0])}, cases[name][1])
            for name, values in points.items() for s in values
        }  # fmt: skip
        found = averaged(cells, workers)
        for name, values in points.items():
            for s in values:
                speed[name][s] = found[f"{name} {s}"][""]["mean"]["output_throughput"]

    for _ in range(HALVINGS):
        half = {name: round(sum(x) / 2, 5) for name, x in ends.items()}
        look({name: [s] for name, s in half.items()})
        for name, s in half.items():
            ends[name][int(speed[name][s] >= target)] = s
    look({name: [s for s in x if s not in speed[name]] for name, x in ends.items()})
    made = {}
    for name, (lo, hi) in ends.items():
        low, high = speed[name][lo], speed[name][hi]
        s = lo + (hi - lo) * (target - low) / (high - low)
        made[name] = {"stickiness": round(s, 3), "tried": sorted(speed[name].items())}
    return made


def study(workers: int = 2) -> dict[str, Any]:
    """All of it."""
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    target = published["rows"][0]["output_throughput"]
    cases: dict[str, tuple[float, Seeds]] = {"fit": (ZIPF, SEEDS)}
    cases |= {f"zipf {z}": (z, SEEDS[:1]) for z in OTHER_ZIPF}
    fits = fitted(target, cases, workers)
    s = fits["fit"]["stickiness"]

    def at(cells: Mapping[str, Cell], seeds: Seeds, **change: Any) -> tuple[dict[str, Cell], Seeds]:
        given = {"stickiness": s} | change
        return {n: replace(c, **given) for n, c in cells.items()}, seeds

    rows = {
        r["row"]: Cell(r["mechanism"], r.get("policy"), r.get("ncmoe")) for r in published["rows"]
    }
    caches = {p: Cell("expert-cache", p, slots=slots_at(0.75), breaks=()) for p in CACHES}
    changes = {n: replace(DEFAULT, **c) for n, c in CHANGES.items()}
    longer = {"answers ten times as long": replace(DEFAULT, load="long")}
    small = {"UVM": DEFAULT, "resident": Cell("resident")}
    band = {n: CONFIGURATIONS[n] for n in BAND}
    drawn = {"load": "sharegpt"}
    groups = {
        "rows": at(rows, SEEDS),
        "rows_b11549": at(rows, SEEDS, breaks=BREAKS_B11549),
        "caches": at(caches, SEEDS),
        "colocation": at(small, SEEDS[:1], model="gpt-oss-20b", load="colocation"),
        "ablation": at(changes | longer, SEEDS),
        "manual": at(CONFIGURATIONS | PHASES, DRAWS, **drawn),
        "manual_b11549": at(CONFIGURATIONS, DRAWS, breaks=BREAKS_B11549, **drawn),
        "manual_ablation": at({n: changes[n] for n in DRAWN_CHANGES}, DRAWS, **drawn),
    }
    for by in (-0.1, 0.1):
        moved = round(s * (1 + by), 4)
        groups[f"rows s {by:+.0%}"] = at({BAND[0]: DEFAULT}, SEEDS, stickiness=moved)
        groups[f"manual s {by:+.0%}"] = at(band, DRAWS[:1], stickiness=moved, **drawn)
    for z in OTHER_ZIPF:
        other = {"stickiness": fits[f"zipf {z}"]["stickiness"], "zipf": z}
        groups[f"rows zipf {z}"] = at({BAND[0]: DEFAULT}, SEEDS[:1], **other)
        groups[f"manual zipf {z}"] = at(band, DRAWS[:1], **other, **drawn)
    return {"fits": fits} | averaged(groups, workers)
