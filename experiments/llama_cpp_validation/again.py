"""Fit the shipped engine to the committed calibration runs, and predict the measured cells with it.

Predictions made *after* the measurements: they say how good the model of time is now, and nothing of
how good it was when `results/h100-a` was predicted. No constant is fitted to a cell. The expert cache
is left out, whose misses a token need the routing of the very tokens.

python experiments/llama_cpp_validation/again.py            # prints, writes results/again.json
python experiments/llama_cpp_validation/again.py --preset   # and the engine preset, anew
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from models import MODELS

from replay.llama_cpp import design
from replay.llama_cpp.collect import UNTIMED, Collected, Equation
from replay.llama_cpp.count import Routing, chunks, micro_batch
from replay.llama_cpp.expected import expected
from replay.llama_cpp.fit import Fit, fit
from replay.llama_cpp.profile import engine_table, floors
from replay.llama_cpp.synthetic import Shape, header
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llama_terms import stem_of
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.model_file import LlamaModel

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PRESET = HERE.parents[1] / "uvmsim/machine/presets/engines/llama.cpp-h100.toml"
SMALL = Shape()
CALIBRATED_A = {
    "f16-small": Shape(n_layers=8, n_embd=1024, n_ff_expert=512),
    "f16-large": Shape(
        n_layers=3, n_embd=2048, n_heads=16, n_kv_heads=4, head_dim=128, n_experts=24, top_k=6,
        n_ff_expert=1024, n_vocab=16384),
    "q4k-small": Shape(n_layers=8, n_embd=1024, n_ff_expert=512, experts="Q4_K", dense="Q8_0"),
    "q4k-large": replace(design.GPU_SHAPES["q4k-large"], n_layers=3),
    "mxfp4-small": Shape("gpt-oss", n_layers=6, n_embd=1024, n_ff_expert=1024, experts="MXFP4",
                         dense="Q8_0"),
    "mxfp4-large": design.GPU_SHAPES["mxfp4-large"],
    "q8-small": replace(design.GPU_SHAPES["q8-deep"], n_layers=6),
    "q8-large": design.GPU_SHAPES["q8-large"],
    "q6k": replace(design.GPU_SHAPES["q6k-deep"], n_layers=4),
}  # fmt: skip
"""Run A's calibration had another design than `replay.llama_cpp.design` has now."""
SIX = {
    "f16_3": replace(SMALL, n_layers=3, n_ff_expert=512),
    "f16_9": replace(SMALL, n_layers=9, n_ff_expert=512),
    "q4k_3": replace(SMALL, n_layers=3, n_ff_expert=512, experts="Q4_K", dense="Q8_0"),
    "q4k_9": replace(SMALL, n_layers=9, n_ff_expert=512, experts="Q4_K", dense="Q8_0"),
    "mx_6": Shape("gpt-oss", n_layers=6, n_ff_expert=1024, experts="MXFP4", dense="Q8_0"),
    "q8_6": replace(SMALL, n_layers=6, n_ff_expert=2048, experts="Q8_0", dense="F16"),
}
"""Timed before the calibration was written."""
VALIDATED = MODELS | {
    "qwen3-q4k": Shape(n_layers=16, n_embd=2048, n_heads=32, n_kv_heads=4, head_dim=128,
                       n_experts=128, top_k=8, n_ff_expert=768, n_vocab=32768, experts="Q4_K",
                       dense="Q8_0"),
    "mixtral-q8": Shape(n_layers=6, n_embd=2048, n_heads=32, n_kv_heads=8, head_dim=64, n_experts=8,
                        top_k=2, n_ff_expert=7168, n_vocab=32768, experts="Q8_0", dense="Q8_0"),
}  # fmt: skip
"""Those of run B, and two that run A had."""
ROUTED = {
    "experts", "expert_bytes", "sorted", "sorted_call", "cpu.experts", "cpu.row_experts", "pageable",
    "pinned", "copy", "upload", "remote_batch",
}  # fmt: skip
"""Terms that hang on which experts were chosen: kept as they were counted from the routing then."""
_TEST = re.compile(r"(pp|tg)(\d+)(?:@ub(\d+)|@d(\d+))?(?:@(\d+))?")


def models(shapes: dict[str, Shape], folder: Path) -> dict[str, LlamaModel]:
    return {n: LlamaModel.load(header(folder / f"{n}.gguf", s)) for n, s in shapes.items()}


def token_by_token(model: LlamaModel, config: LlamaConfig, n: int, depth: int, variant: Any) -> Any:
    total: Counter[str] = Counter()
    for i in range(n):
        total.update(micro_batch(model, config, 1, depth + i + 1, variant=variant)[0])
    return total


def calibration(path: Path, known: dict[str, LlamaModel], tag: str) -> list[Equation]:
    """A calibration's runs, counted as `uvmsim` counts today."""
    out = []
    for run in json.loads(path.read_text())["runs"]:
        run.pop("error")
        e = Equation(**{**run, "spread": tuple(run["spread"])})
        m = _TEST.fullmatch(e.test)
        assert m is not None
        n, depth, ubatch = int(m[2]), int(m[4] or 0), int(m[5])
        model = known[e.name]
        offloaded = e.mode in (design.MAPPED, design.PINNED, design.CACHE)
        n_ctx = {design.RESIDENT: 3328 if ubatch == 512 else n}.get(e.mode, 512)
        config = LlamaConfig(
            n_cpu_moe=model.n_layers if offloaded else 0, n_ctx=-(-max(n_ctx, n + depth) // 256) * 256,
            n_batch=2048, n_ubatch=ubatch, moe_cache_mib=200 if e.mode == design.CACHE else 0,
            mmap=e.mode not in (design.PINNED, design.CACHE), flash_kernels=False,
        )  # fmt: skip
        variant = UNTIMED.get(e.mode)
        if m[1] == "tg":
            total = token_by_token(model, config, n, depth, variant)
            total |= {k: e.counts[k] for k in ("upload", "pinned") if k in e.counts}
        else:
            total = Counter()
            nobody = [np.zeros(model.n_expert, np.int64)] * model.n_layers
            for size, n_kv in chunks(n, ubatch):
                total.update(micro_batch(model, config, size, n_kv, nobody, variant=variant)[0])
            for k, x in e.counts.items():
                if stem_of(k) in ROUTED and k != "remote_batch.F32":
                    total[k] += x
        e.counts.clear()
        e.counts.update({k: float(x) for k, x in total.items() if x})
        e.name += f"/{tag}"
        out.append(e)
    return out


def six(known: dict[str, LlamaModel]) -> list[Equation]:
    out = []
    config = LlamaConfig(n_ctx=2048, flash_kernels=False)
    for run in json.loads((RESULTS / "h100_small.json").read_text()):
        total = token_by_token(known[run["model"]], config, run["n"], 0, None)
        ns = float(np.median(run["ns"]))
        name = f"tg{run['n']}@512"
        out.append(
            Equation(f"{run['model']}/six", design.RESIDENT, name, dict(total), ns, (ns, ns))
        )
    return out


def cells(found: Fit, known: dict[str, LlamaModel]) -> list[dict[str, Any]]:
    routing = np.load(RESULTS / "routing_counts.npz")
    out = []
    for run in ("a", "b"):
        report = json.loads((RESULTS / f"h100-{run}" / "report.json").read_text())
        for row in report["rows"]:
            if row["mode"].startswith("cache") or not row["measured"]:
                continue
            m = _TEST.fullmatch(row["test"])
            assert m is not None
            n, ubatch, depth = int(m[2]), int(m[3] or 512), int(m[4] or 0)
            model = known[row["model"]]
            config = LlamaConfig(
                n_cpu_moe=row["ncmoe"], n_ctx=4352, n_ubatch=ubatch, flash_kernels=False,
                swa_full=row["model"] == "gpt-oss-mxfp4",  # as those contexts were made
            )  # fmt: skip
            variant = UNTIMED.get(
                {"managed": design.MANAGED, "preferred-host": design.REMOTE}.get(row["mode"], "")
            )
            kernels = 0
            if m[1] == "tg":
                total = token_by_token(model, config, n, depth, variant)
            else:
                total = Counter()
                at = f"{row['model']}@{ubatch if n > 128 else 128}"
                for i, (size, n_kv) in enumerate(chunks(n, ubatch)):
                    if ubatch == 2048 and n < 2048:
                        raise ValueError("no routing for that")
                    counts: Routing = list(routing[at][i].astype(np.int64))
                    made, launched = micro_batch(model, config, size, n_kv, counts, variant=variant)
                    total.update(made)
                    # From the third on, micro-batches of one shape and context run as a graph; in a
                    # prompt of several the context grows, and no two are alike.
                    kernels = launched if n > ubatch else 0
            ns = sum(x * found.ns.get(k, 0.0) for k, x in total.items())
            ns += kernels * found.ns.get("launch", 0.0)
            predicted = n / (ns / 1e9)
            out.append(
                {"run": run, "model": row["model"], "mode": row["mode"], "size": row["size"],
                 "test": row["test"], "measured": row["measured"], "predicted": predicted,
                 "error": predicted / row["measured"] - 1}
            )  # fmt: skip
    return out


def show(rows: list[dict[str, Any]]) -> None:
    groups: dict[str, list[float]] = defaultdict(list)
    for r in rows:
        kind = r["test"][:2]
        groups[f"{r['mode']} {kind}"].append(r["error"])
        groups[kind].append(r["error"])
    for name, errors in groups.items():
        worst = max(errors, key=abs)
        mean = float(np.mean(np.abs(errors)))
        print(f"{name:20s} {len(errors):3d} tests  mean {mean:6.1%}  worst {worst:+.0%}")


def preset(found: Fit, equations: list[Equation], machine: Hardware, build: str) -> str:
    stamp = (
        "measured 2026-11-27, NVIDIA H100 80GB HBM3, driver 580.159.04, 16 cores "
        "(experiments/llama_cpp_validation/again.py)"
    )
    text = "\n".join(
        engine_table(Collected(equations, build, True, False), found, machine, stamp, {})
    )
    text = text.replace("[engine.", "[").replace("[engine]\n", "").lstrip() + "\n"
    head = (
        'name = "llama.cpp-h100"\nsummary = "llama.cpp b11549 (ggml 0.26.0) without flash attention '
        'on an H100: calibrated on synthetic models"\nmachine = "h100"'
    )
    return re.sub(r'name = "llama.cpp"\nsummary = .*', head, text)


def main() -> None:
    machine = Hardware.load(str(RESULTS / "h100-a" / "h100.toml"))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        a = RESULTS / "h100-a" / "h100.measurements.json"
        b = RESULTS / "h100-b" / "h100.measurements.json"
        equations = six(models(SIX, folder))
        equations += calibration(a, models(CALIBRATED_A, folder), "a")
        equations += calibration(b, models(design.GPU_SHAPES, folder), "b")
        found = fit(equations, floors(machine), expected(machine))
        if "--preset" in sys.argv:
            build = json.loads(a.read_text())["build"]
            PRESET.write_text(preset(found, equations, machine, build), encoding="utf-8")
        rows = cells(found, models(VALIDATED, folder))
    show(rows)
    text = json.dumps({"ns": found.ns, "cells": rows}, indent=1, sort_keys=True)
    (RESULTS / "again.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
