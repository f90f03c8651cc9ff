"""Prediction against measurement: errors, equality of counters, order of the policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from replay.validate.kendall import kendall

Row = dict[str, Any]


def main_speed(part: Row) -> float | None:
    """Decode tokens/s, or prefill's where nothing was decoded."""
    return part.get("decode_tokens_per_s") or part.get("prefill_tokens_per_s")


def compare_cell(predicted: Row, measured: Row) -> Row:
    """``error`` (signed: predicted over measured less 1), ``prefill_error``, ``unequal`` counters
    as ``{name: [predicted, measured]}``, and ``status``.

    ``status``: ``ok``; ``unequal`` (counters differ); ``unverified`` (the replay could not show that
    it computed the right thing); ``failed`` (no measurement); ``out-of-memory`` (predicted).
    """
    if predicted["status"] != "ok":
        return {"status": predicted["status"]}
    if measured.get("status") != "ok":
        return {"status": "failed", "why": measured.get("why", "not measured")}
    theirs = measured["counters"]
    unequal = {k: [v, theirs[k]] for k, v in predicted["counters"].items() if theirs.get(k, v) != v}
    made: Row = {"unequal": unequal}
    for name, key in (("error", None), ("prefill_error", "prefill_tokens_per_s")):
        p, m = (x.get(key) if key else main_speed(x) for x in (predicted, measured))
        made[name] = p / m - 1 if p and m else None
    made["status"] = "unequal" if unequal else "ok" if measured.get("verified") else "unverified"
    return made


def overall(rows: Sequence[Row], targets: dict[str, float]) -> Row:
    """Over all cells: number of each status, errors, rank correlation of each group.

    A row has ``trace``, ``mode``, ``size``, ``policy``, ``predicted``, ``measured`` and what
    `compare_cell` returns. A group is the policies of one (trace, mode, size).
    """
    errors = [r["error"] for r in rows if r.get("error") is not None]
    prefill = [r["prefill_error"] for r in rows if r.get("prefill_error") is not None]
    groups = rankings(rows)
    taus = [g["tau"] for g in groups if g["tau"] is not None]
    status: dict[str, int] = {}
    for r in rows:
        status[r["status"]] = status.get(r["status"], 0) + 1
    worst = max(rows, key=lambda r: abs(r.get("error") or 0.0), default=None)
    made: Row = {
        "cells": len(rows),
        "status": status,
        "mape": fmean(map(abs, errors)) if errors else None,
        "bias": fmean(errors) if errors else None,
        "worst": max(map(abs, errors)) if errors else None,
        "worst_cell": worst["cell"] if worst and errors else None,
        "prefill_mape": fmean(map(abs, prefill)) if prefill else None,
        "tau_mean": fmean(taus) if taus else None,
        "tau_least": min(taus) if taus else None,
        "groups": groups,
        "counters_equal": not any(r.get("unequal") for r in rows),
    }
    made["reached"] = {
        "mape": _at_most(made["mape"], targets["mape"]),
        "worst": _at_most(made["worst"], targets["worst"]),
        "tau": None if made["tau_mean"] is None else made["tau_mean"] >= targets["tau"],
        "counters": made["counters_equal"],
    }
    bad = {"unequal", "unverified", "failed"} & set(status)
    made["passed"] = not bad and bool(errors or not rows)
    return made


def rankings(rows: Sequence[Row]) -> list[Row]:
    """Kendall's tau over the policies of each (trace, mode, size) with at least two of them."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        if r.get("error") is not None and r["policy"]:
            groups.setdefault((r["trace"], r["mode"], r["size"]), []).append(r)
    made = []
    for (trace, mode, size), members in groups.items():
        if len(members) < 2:
            continue
        p, m = ([main_speed(r[k]) or math.nan for r in members] for k in ("predicted", "measured"))
        rank = kendall(p, m)
        made.append(
            {
                "trace": trace, "mode": mode, "size": size, "policies": len(members),
                "tau": rank.tau, "pairs": rank.pairs, "discordant": rank.discordant,
                "widest_discordant": rank.widest,
            }
        )  # fmt: skip
    return made


def _at_most(value: float | None, limit: float) -> bool | None:
    return None if value is None else value <= limit
