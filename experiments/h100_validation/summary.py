"""One page of what a run of this folder found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def summarise(out: Path, record: dict[str, str]) -> str:
    """Markdown, from the files in ``out``; what is not there is left out."""
    lines = ["# H100 validation", ""]
    for name, outcome in record.items():
        if outcome != "ok":
            lines.append(f"- {name}: {outcome}")
    for part in ("grid", "modes", "uvm"):
        report = _read(out / part / "report.json")
        if report:
            from replay.validate.report import headline

            lines += [f"- {part}: {headline(report)} ([report]({part}/report.md))"]
    lines += ratios(_read(out / "calibration.measurements.json"))
    ours, torch = _read(out / "ufm.json"), _read(out / "ufm_torch.json")
    if ours or torch:
        lines += ["", "## UFM benchmark, tokens/s", "", *ufm_table(ours, torch)]
    return "\n".join(lines) + "\n"


def ratios(calibration: dict[str, Any]) -> list[str]:
    """What the engine reaches of what the card reaches, both of the same calibration."""
    tables = calibration.get("tables", {})
    lines = []
    reads = [r["bytes_per_s"] for r in tables.get("reads", [])]
    experts = [
        r for r in tables.get("kernels", []) if r["kernel"] == "experts" and r["tokens"] == 1
    ]
    for dtype in dict.fromkeys(r["dtype"] for r in experts if reads):
        best = max((r for r in experts if r["dtype"] == dtype), key=lambda r: r["bytes_per_s"])
        lines.append(
            f"| expert product, {dtype}, {best['experts']} of {best['expert_bytes'] / 1e6:.3g} MB | "
            f"{best['bytes_per_s'] / 1e9:,.0f} GB/s | {best['bytes_per_s'] / max(reads):.0%} of the "
            "device memory's read speed |"
        )
    copies = [r["bytes_per_s"] for r in tables.get("copies_h2d", [])]
    fitted = calibration.get("fitted", {}).get("h2d_bytes_per_s")
    if copies and fitted:
        lines.append(
            f"| demand copies in the engine | {fitted['value'] / 1e9:.1f} GB/s | "
            f"{fitted['value'] / max(copies):.0%} of the pinned peak |"
        )
    head = ["", "## Engine against card", "", "| what | speed | share |", "|---|---|---|"]
    return [*head, *lines] if lines else []


def ufm_table(ours: dict[str, Any], torch: dict[str, Any]) -> list[str]:
    """A row a way to run it, a column a number of experts; times naive offload at the end."""
    rows = [*(torch.get("rows") or []), *(ours.get("rows") or [])]
    counts = sorted({r["experts"] for r in rows})
    at = {(r["name"], r["experts"]): r for r in rows}
    naive = at.get(("naive_offload (PyTorch)", counts[-1]), {}).get("measured")
    head = ["", *(f"{n} experts" for n in counts), f"x naive at {counts[-1]}"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in dict.fromkeys(r["name"] for r in rows):
        cells = [_cell(at.get((name, n), {})) for n in counts]
        last = at.get((name, counts[-1]), {}).get("measured")
        cells.append(f"{last / naive:.1f}" if last and naive else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", "Measured, and in brackets the prediction's error where there is one."]


def _cell(row: dict[str, Any]) -> str:
    measured, predicted = row.get("measured"), row.get("predicted")
    if not measured:
        return "error" if "error" in row else "-"
    text = f"{measured:,.0f}" if measured >= 100 else f"{measured:.1f}"
    if predicted:
        text += f" ({predicted / measured - 1:+.1%})"
    return text + ("" if row.get("verified", True) and row.get("counters_equal", True) else " VOID")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
