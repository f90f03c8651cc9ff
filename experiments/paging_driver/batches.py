"""What a batch of faults holds, in runs that order.py recorded.

    python experiments/paging_driver/batches.py FOLDER -o results/batches.json

By run, over batches that brought something: entries, distinct pages, pages that were missing, blocks in
which these lie, and units of the GPU (translation buffers) that asked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from replay.paging.touches import PAGE, PAGES
from replay.paging.tree_check import Blocks, Brought, serve


def cold_from(folder: Path, name: str, z: Any) -> int:
    """Time of the first cold event; 0 where all are."""
    said = json.loads((folder / f"{name}.json").read_text())
    looks = said.get("meta", {}).get("recording", {}).get("looks")
    return int(z["origin"][0]) + looks[0]["from_ns"] if looks else 0


def rows_of(folder: Path, name: str) -> np.ndarray:
    """int64 [batches, 6]: entries, distinct pages, pages missing, blocks, blocks that got pages,
    units."""
    z = np.load(folder / f"{name}.npz")
    kept = z["gpu_fault_time"].astype(np.int64) >= cold_from(folder, name, z)
    page = z["gpu_fault_address"][kept].astype(np.int64) // PAGE
    unit = z["gpu_fault_gpc"][kept].astype(np.int64) << 16 | z["gpu_fault_client"][kept]
    _, batch = np.unique(z["gpu_fault_batch"][kept], return_inverse=True)
    order = np.argsort(batch, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(batch))[:-1])
    blocks, rows = Blocks(), []
    for w in parts:
        pages = np.unique(page[w])
        new = got = 0
        at = np.unique(pages // PAGES)
        for block in at.tolist():
            mine, out = pages[pages // PAGES == block] % PAGES, Brought()
            got += serve(blocks, block, mine, 51, out) > 0
            new += int(out.pages[0])
        rows.append((len(w), len(pages), new, len(at), got, len(np.unique(unit[w]))))
    return np.array(rows, np.int64)


def described(rows: np.ndarray) -> dict[str, Any]:
    good = rows[rows[:, 2] > 0]
    names = ("entries", "pages", "missing", "blocks", "blocks_served", "units")
    return {
        "batches": len(rows), "of_nothing_new": int(len(rows) - len(good)),
        "services": int(rows[:, 3].sum()), "services_that_brought": int(rows[:, 4].sum()),
        "mean": {k: round(float(v), 1) for k, v in zip(names, good.mean(axis=0), strict=True)},
        "p10_p50_p90": {
            k: np.percentile(good[:, i], (10, 50, 90)).round(0).tolist() for i, k in enumerate(names)
        },
        "entries_a_missing_page": round(float(good[:, 0].sum() / good[:, 2].sum()), 2),
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path)
    p.add_argument("-o", "--out", type=Path, required=True)
    given = p.parse_args()
    names = sorted(f.stem for f in given.folder.glob("*.npz"))
    found = {name: described(rows_of(given.folder, name)) for name in names}
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, row in found.items():
        print(name, row["batches"], row["services"], row["mean"], row["entries_a_missing_page"])


if __name__ == "__main__":
    main()
