"""Routing statistics of model families, and how close routing made of them comes to the real one.

python experiments/routing_families/fit.py DATA [--write]

DATA holds the recorded traces (``gpt-oss-20b/gpqa_main.npz`` and so on, see README.md). ``--write``
puts the statistics into uvmsim/studies/advise/families.toml; results.json is written either way. None
of a trace goes there: only means over layers and tokens.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from traces.importers.dump import ImportOptions, import_routing
from traces.routing import RoutingTrace
from traces.routing.by_token import DenseRouting
from traces.routing.stats import expert_sets, overlap
from traces.synth.generate import TIMES, SynthModel, fit
from uvmsim.experts.cache_misses import cache_misses
from uvmsim.studies.advise.families import QUANTILES, THIRDS, Family, Part, families, third_of

HERE = Path(__file__).parent
HOME = HERE.parents[1]
SOURCES = {
    "gpt-oss": (
        "gpt-oss-20b/gpqa_main.npz", "gpt-oss-20b", ["gpt-oss"],
        "gpt-oss-20b answering GPQA (AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0)",
    ),
    "olmoe": (
        "olmoe-1b-7b/trace_olmoe_299.jsonl", "OLMoE-1B-7B", ["olmoe"],
        "OLMoE-1B-7B, one text (sqliteai/warp, Apache-2.0)",
    ),
    "glm4moe": (
        "glm-4.5-air/glm45air_routing.jsonl", "GLM-4.5-Air", ["glm4moe"],
        "GLM-4.5-Air, three texts (gabrielekarra/locali, MIT)",
    ),
}  # fmt: skip
LAGS = (1, 2, 8, 32)
SHARES = (0.125, 0.25, 0.5)
COPIES = 5


def load(path: Path, model: str) -> RoutingTrace:
    return import_routing(path, ImportOptions(model_name=model))


def statistics(d: DenseRouting, made: SynthModel) -> list[Part]:
    """Means over each third of the layers of what `traces.synth.generate.fit` finds."""
    n = len(d.layers)
    home = np.array([third_of(i, n) for i in range(n)])
    parts = []
    for third in THIRDS:
        mine = home == THIRDS.index(third)
        ranked = np.sort(made.logits[mine], axis=1).mean(axis=0)
        at = np.linspace(0, len(ranked) - 1, QUANTILES)
        curve = np.interp(at, np.arange(len(ranked)), ranked)
        parts.append(
            Part(
                third=third,
                log_popularity=[round(float(x), 3) for x in curve - curve.mean()],
                persistence=[round(float(x), 4) for x in made.share[mine].mean(axis=0)],
            )
        )
    return parts


def lru_hits(d: DenseRouting, ids: np.ndarray, share: float) -> float:
    """Hit rate of llama.cpp's rule for its cache: one pool for all layers, a token at a time."""
    n_layers = len(d.layers)
    flat = ids.astype(np.int64) + np.arange(n_layers)[None, :, None] * d.n_experts
    known = flat.reshape(-1)[(ids >= 0).reshape(-1)]
    capacity = int(share * n_layers * d.n_experts)
    return 1.0 - cache_misses(known, capacity, "lru") / len(known)


def main() -> None:
    data, write = Path(sys.argv[1]), "--write" in sys.argv
    found: dict[str, Family] = {}
    results: dict[str, dict] = {}
    traces: dict[str, DenseRouting] = {}
    for name, (file, model, architectures, source) in SOURCES.items():
        d = load(data / file, model).dense
        d = replace(d, seq=np.asarray(d.seq)).by_sequence()
        decode = d.phase == 1
        d = d.take(decode) if decode.any() and not decode.all() else d
        traces[name] = d
        made = fit(d)
        found[name] = Family(
            name=name, architectures=architectures, source=source, model=model,
            tokens=len(d.ids), sequences=len(d.sequence_starts()) - 1,
            layers=len(d.layers), experts=d.n_experts, top_k=d.ids.shape[2],
            parts=statistics(d, made),
        )  # fmt: skip
    if write:
        (HOME / "uvmsim/studies/advise/families.toml").write_text(toml(found), encoding="utf-8")
        families.cache_clear()
    for name, family in found.items():
        d = traces[name]
        bounds = d.sequence_starts()
        k = d.ids.shape[2]
        real = expert_sets(d)
        row: dict = {"tokens": len(d.ids), "lru": {}, "overlap": {}}
        copies = [
            family.generator(len(d.layers), d.n_experts, k, seed).generate(bounds, seed)[0]
            for seed in range(COPIES)
        ]
        for share in SHARES:
            synthetic = [lru_hits(d, ids, share) for ids in copies]
            row["lru"][f"{share:g}"] = {
                "recorded": round(lru_hits(d, d.ids, share), 4),
                "made": round(float(np.mean(synthetic)), 4),
                "made_least": round(min(synthetic), 4),
                "made_most": round(max(synthetic), 4),
            }
        lags = [x for x in LAGS if (np.diff(bounds) > x).any()]
        a = overlap(real, k, lags)
        b = overlap(expert_sets(replace(d, ids=copies[0])), k, lags)
        row["overlap"] = {
            str(x): [round(float(np.nanmean(a[x])), 4), round(float(np.nanmean(b[x])), 4)]
            for x in lags
        }
        results[name] = row
        print(name, json.dumps(row))
    (HERE / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def toml(found: dict[str, Family]) -> str:
    head = (
        "# Written by experiments/routing_families/fit.py: means over the tokens and a third of the\n"
        "# layers of recorded routing. log_popularity: by rank, the least popular expert first, at\n"
        f"# even steps; persistence: parts of the variance that last {list(TIMES)} tokens.\n"
    )
    rows = [head]
    for family in found.values():
        for key, value in family.model_dump(exclude={"parts"}).items():
            if key == "name":
                rows.append(f"[{value}]")
            rows.append(f"{key} = {json.dumps(value)}")
        for part in family.parts:
            rows.append(f"\n[[{family.name}.parts]]")
            rows += [f"{k} = {json.dumps(v)}" for k, v in part.model_dump().items()]
        rows.append("")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
