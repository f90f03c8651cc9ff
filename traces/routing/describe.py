"""What a trace is, in a few lines: for ``trace info`` and after an import."""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.files.schema import PHASES, guess_width
from traces.routing import RoutingTrace
from traces.routing.recall import recall


def describe(t: RoutingTrace) -> dict[str, Any]:
    """A dictionary of plain JSON types; sizes in bytes."""
    m = t.meta.model
    d = t.dense
    phases = {}
    for code, name in enumerate(PHASES):
        of = d.phase == code
        if of.any():
            phases[name] = {"tokens": int(of.sum()), "steps": len(np.unique(d.step[of]))}
    return {
        "file": str(t.path) if t.path else None,
        "file_bytes": t.path.stat().st_size if t.path else None,
        "complete": t.complete,
        "model": {
            "name": m.name,
            "architecture": m.architecture,
            "quantisation": m.quantisation,
            "n_layers": m.n_layers,
            "moe_layers": list(m.moe_layers),
            "n_experts": m.n_experts,
            "top_k": m.top_k,
            "routed_bytes": sum(m.expert_bytes) * m.n_experts if m.expert_bytes else None,
            "source": m.source,
        },
        "layers": list(t.layers),
        "rows": t.n_rows,
        "missing_rows": int((t.experts < 0).all(axis=1).sum()),
        "tokens": t.n_tokens,
        "sequences": len(np.unique(d.seq)),
        "steps": t.n_steps,
        "phases": phases,
        "columns": list(t.columns),
        "ids_order": t.meta.ids_order,
        "capabilities": sorted(t.capabilities),
        "tool": t.meta.tool,
        "command": t.meta.command,
        "prompt_source": t.meta.prompt_source,
        "machine": t.meta.machine,
        "extra": t.meta.extra,
        "sha256": t.sha256,
    } | ({"predictors": _recalls(t)} if t.predictions else {})


def _recalls(t: RoutingTrace) -> dict[str, dict[str, Any]]:
    return {
        name: {n: found[n] for n in ("at_k", "at_2k", "guesses")}
        for name, found in recall(t).items()
    }


def _recalled(found: dict[str, Any], model: dict[str, Any]) -> str:
    if not found["guesses"]:
        return "no guess of a layer that was observed"
    k, width = model["top_k"], guess_width(model["top_k"], model["n_experts"])
    recalls = f"{found['at_k']:.1%} at {k}, {found['at_2k']:.1%} at {width}"
    return f"{found['guesses']:,} guesses, recall {recalls}"


ORDERS = {
    "ranked": "ranked: the first id is the router's first choice",
    "sorted": "sorted: ascending ids, ranks lost",
    "unknown": "unknown",
}


def print_description(d: dict[str, Any]) -> None:
    """Print what `describe` returns."""
    from rich.console import Console
    from rich.table import Table

    m = d["model"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            table.add_row(name, str(value))

    row("file", d["file"])
    row("size", f"{d['file_bytes'] / 1e6:,.2f} MB" if d["file_bytes"] is not None else None)
    row("state", "complete" if d["complete"] else "INCOMPLETE: the recording was cut off")
    kind = ", ".join(x for x in (m["architecture"], m["quantisation"]) if x and x != "unknown")
    row("model", m["name"] + (f" ({kind})" if kind else ""))
    shape = f"{len(m['moe_layers'])} MoE layers of {m['n_layers']}, {m['n_experts']} experts"
    row("shape", f"{shape}, top-{m['top_k']}")
    row("routed experts", f"{m['routed_bytes'] / 1e9:,.3f} GB" if m["routed_bytes"] else None)
    row("tokens", f"{d['tokens']:,} in {d['sequences']:,} sequences, {d['steps']:,} steps")
    for name, p in d["phases"].items():
        row(f"  {name}", f"{p['tokens']:,} tokens in {p['steps']:,} steps")
    row("rows", f"{d['rows']:,}, {d['missing_rows']:,} of them missing routing")
    row("columns", ", ".join(d["columns"]))
    row("ids", ORDERS.get(d["ids_order"], d["ids_order"]))
    for name, found in d.get("predictors", {}).items():
        row(f"  {name}", _recalled(found, m))
    row("prompt", d["prompt_source"])
    row("tool", d["tool"])
    row("command", d["command"])
    for key, value in sorted(d["machine"].items()):
        row(f"  {key}", value)
    extra = dict(d["extra"])
    for key, value in sorted(extra.pop("inferred", {}).items()):
        row("inferred", f"{key} = {value}")
    for note in extra.pop("notes", []):
        row("note", note)
    for key, value in sorted(extra.items()):
        row(key, value)
    row("sha256", d["sha256"])
    Console(soft_wrap=True, highlight=False).print(table)
