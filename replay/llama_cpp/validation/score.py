"""How far off predictions were: errors, order of configurations, and what a wrong choice costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from replay.validate.kendall import kendall

REQUESTS = ((2000, 500), (200, 1000), (8000, 200))
"""Users' requests for the regret: prompt and generated tokens."""
BUDGETS = (0.25, 0.5, 0.75, 1.0)
"""Users' device memory, as a share of what the whole model takes."""


def rows_of(
    cells: dict[str, dict[str, Any]], predicted: dict[str, Any], measured: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row a cell and test: tokens/s both ways and the error (predicted / measured - 1)."""
    rows = []
    for key, about in cells.items():
        p, m = predicted[key], measured.get(key, {"status": "failed", "why": "not run"})
        for name in about["tests"]:
            row = about | {"cell": key, "test": name}
            del row["tests"]
            theirs = m.get("tests", {}).get(name)
            if p.get("why") or theirs is None:
                rows.append(row | {"status": "failed", "why": p.get("why") or m.get("why", "")})
                continue
            a, b = p["tests"][name]["tokens_per_s"], theirs["tokens_per_s"]
            rows.append(row | {
                "status": "ok", "predicted": a, "measured": b, "error": a / b - 1,
                "spread": [float(min(theirs["ns"]) / np.median(theirs["ns"])),
                           float(max(theirs["ns"]) / np.median(theirs["ns"]))],
            })  # fmt: skip
    return rows


def overall(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and worst error by kind of test and by mode, and the order of configurations."""
    good = [r for r in rows if r["status"] == "ok"]
    by_kind = {k: _errors(r for r in good if r["test"].startswith(k)) for k in ("tg", "pp")}
    by_mode = {
        f"{mode} {kind}": _errors(
            r for r in good if r["mode"] == mode and r["test"].startswith(kind)
        )
        for mode in dict.fromkeys(r["mode"] for r in good)
        for kind in ("tg", "pp")
    }
    taus, groups = [], []
    for (model, test), same in _grouped(good, "model", "test").items():
        found = kendall([r["predicted"] for r in same], [r["measured"] for r in same])
        if found.tau is not None and len(same) > 2:
            taus.append(found.tau)
            groups.append({
                "model": model, "test": test, "configurations": len(same), "tau": found.tau,
                "discordant": found.discordant, "widest": found.widest,
            })  # fmt: skip
    return {
        "cells": len({r["cell"] for r in rows}), "tests": len(good),
        "failed": [{k: r[k] for k in ("cell", "test", "why")} for r in rows if r["status"] != "ok"],
        "by_kind": by_kind, "by_mode": {k: v for k, v in by_mode.items() if v["n"]},
        "tau_mean": float(np.mean(taus)) if taus else None, "groups": groups,
    }  # fmt: skip


def _errors(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    found = list(rows)
    if not found:
        return {"n": 0, "mean": None, "worst": None, "worst_cell": None, "p5": None, "p95": None}
    errors = np.array([r["error"] for r in found])
    at = int(np.abs(errors).argmax())
    ratio = 1 / (1 + errors)
    return {
        "n": len(found), "mean": float(np.abs(errors).mean()), "worst": float(errors[at]),
        "worst_cell": f"{found[at]['cell']} {found[at]['test']}",
        "p5": float(np.quantile(ratio, 0.05)), "p95": float(np.quantile(ratio, 0.95)),
    }  # fmt: skip


def _grouped(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[Any]]:
    out: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for r in rows:
        out[tuple(r[k] for k in keys)].append(r)
    return dict(out)


def memory(
    cells: dict[str, dict[str, Any]], predicted: dict[str, Any], measured: dict[str, Any]
) -> dict[str, Any]:
    """Predicted VRAM against what llama.cpp reported, cell by cell and micro-batch."""
    errors = []
    for key in cells:
        theirs = measured.get(key, {}).get("vram_bytes", {})
        for ubatch, said in theirs.items():
            ours = predicted[key].get("vram_bytes", {}).get(ubatch)
            if ours is not None and said:
                errors.append((ours / said - 1, f"{key} ub{ubatch}"))
    if not errors:
        return {"n": 0, "worst": None, "worst_cell": None}
    worst = max(errors, key=lambda e: abs(e[0]))
    return {"n": len(errors), "worst": worst[0], "worst_cell": worst[1]}


def counters(
    cells: dict[str, dict[str, Any]], predicted: dict[str, Any], measured: dict[str, Any]
) -> list[dict[str, Any]]:
    """Hits and misses of llama.cpp's expert cache, predicted and as it counted them itself."""
    out = []
    for key in cells:
        for ubatch, theirs in measured.get(key, {}).get("moe_cache", {}).items():
            ours = predicted[key].get("moe_cache", {}).get(ubatch)
            if ours is not None:
                out.append({
                    "cell": key, "ubatch": int(ubatch), "predicted": ours, "measured": theirs,
                    "equal": ours == theirs,
                })  # fmt: skip
    return out


def regret(
    rows: list[dict[str, Any]], cells: dict[str, dict[str, Any]], predicted: dict[str, Any]
) -> dict[str, Any]:
    """How much slower the recommended configuration is than the fastest measured, user by user.

    A user has a model, a request (`REQUESTS`) and device memory (`BUDGETS`); what does not fit it is
    not offered. The recommended one is the fastest predicted.
    """
    speeds: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for r in rows:
        if r["status"] == "ok":
            speeds[r["cell"]][r["test"]] = r
    users = []
    for model in dict.fromkeys(c["model"] for c in cells.values()):
        mine = {k: v for k, v in speeds.items() if cells[k]["model"] == model}
        pair = _pair(list(mine.values()))
        if pair is None:
            continue
        needs = {k: max(predicted[k]["vram_bytes"].values(), default=0) for k in mine}
        whole = max(needs.values(), default=0)
        for prompt, generated in REQUESTS:
            for share in BUDGETS:
                open_to = [
                    k for k, n in needs.items()
                    if n <= share * whole and cells[k]["mode"] != "managed"
                ]  # fmt: skip
                if len(open_to) < 2:
                    continue
                seconds = {
                    side: {k: _seconds(mine[k], pair, prompt, generated, side) for k in open_to}
                    for side in ("predicted", "measured")
                }
                ours = min(seconds["predicted"], key=seconds["predicted"].__getitem__)
                best = min(seconds["measured"], key=seconds["measured"].__getitem__)
                lost = seconds["measured"][ours] / seconds["measured"][best] - 1
                users.append({
                    "model": model, "prompt": prompt, "generate": generated, "vram": share,
                    "offered": len(open_to), "recommended": ours, "fastest": best, "regret": lost,
                })  # fmt: skip
    values = [u["regret"] for u in users]
    return {
        "users": users, "mean": float(np.mean(values)) if values else None,
        "worst": max(values) if values else None,
    }  # fmt: skip


def _pair(cells: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Of the tests that all cells have: the longest prompt of the usual micro-batch, and generation
    from an empty context."""
    common = set.intersection(*(set(c) for c in cells)) if cells else set()
    pp = sorted(
        (t for t in common if t.startswith("pp") and "@" not in t), key=lambda t: int(t[2:])
    )
    tg = sorted(t for t in common if t.startswith("tg") and "@" not in t)
    return (pp[-1], tg[0]) if pp and tg else None


def _seconds(
    tests: dict[str, Any], pair: tuple[str, str], prompt: int, generated: int, side: str
) -> float:
    return float(prompt / tests[pair[0]][side] + generated / tests[pair[1]][side])
