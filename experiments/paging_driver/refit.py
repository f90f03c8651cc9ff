"""The ``[uvm]`` table anew from a calibration's rows, without a GPU.

    python experiments/paging_driver/refit.py machine.measurements.json machine.toml -o refitted.toml

For rows measured when pages that moved were counted by an incomplete record: what moved is taken from
the page table, which each row has too. Everything else of the profile stays.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from replay.calibrate.stats import Row  # noqa: E402
from replay.paging.touches import PAGE  # noqa: E402
from replay.paging.uvm_table import table  # noqa: E402


def corrected(rows: list[Row]) -> list[Row]:
    """Rows whose ``moved`` is what arrived by the page table."""
    made = []
    for r in rows:
        moved = (r["whole"]["arrived_bytes"] - r["placed_bytes"]) // PAGE
        made.append(r | {"counts": r["counts"] | {"moved": moved, "runs": 1}})
    return made


def plain_rates(profile: dict[str, Any]) -> tuple[float, float]:
    """Bytes a second of plain copies, in and out."""
    rates = (profile[k]["value"] for k in ("h2d_bytes_per_s", "d2h_bytes_per_s"))
    found = [float(str(r).split()[0]) * (1e9 if "GB/s" in str(r) else 1.0) for r in rates]
    return found[0], found[1]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("measurements", type=Path)
    p.add_argument("profile", type=Path)
    p.add_argument("-o", "--out", required=True, type=Path)
    given = p.parse_args()
    tables = json.loads(given.measurements.read_text(encoding="utf-8"))["tables"]
    text = given.profile.read_text(encoding="utf-8")
    profile = tomllib.loads(text)
    h2d, d2h = plain_rates(profile)
    found = table(
        corrected(tables["paging"]), tables["paging_out"], tables["paging_device"][0], d2h, h2d
    )
    stamp = profile["uvm"]["batch_ns"]["source"].split(": ")[0]
    lines = [text[: text.index("[uvm.")].rstrip(), ""]
    for key, (value, how) in found.items():
        value = str(value).lower() if isinstance(value, bool) else value
        lines += [
            f"[uvm.{key}]",
            f"value = {value}",
            f"source = {json.dumps(f'{stamp}: {how}')}",
            "",
        ]
        print(f"{key} = {value}: {how}")
    given.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
