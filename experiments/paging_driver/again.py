"""A finished validation compared anew, and its runs predicted anew, without a GPU.

    python experiments/paging_driver/again.py FOLDER --profile machine.toml -o validation.json

FOLDER is what `uvmsim validate` wrote. Each run gets what was predicted before the driver decided, the
driver's side by today's reading of the recorded faults (where the trace is still there), and what the
page model says today with ``--profile`` for the recorded routing. Only the first was a prediction.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from models import MODELS  # noqa: E402

from replay.llama_cpp.synthetic import header  # noqa: E402
from replay.paging.validation import llama, predict  # noqa: E402
from replay.paging.validation.compare import errors, exact, observed_run  # noqa: E402
from replay.paging.validation.config import LlamaRun  # noqa: E402
from replay.paging.validation.traced import partial_blocks, seen_of  # noqa: E402
from traces.faults import open_faults  # noqa: E402

KEYS = (
    "bytes_in", "demand_bytes", "tree_bytes", "batches", "services", "operations", "entries",
    "faulted_pages", "recorded_bytes_in", "unrecorded_bytes", "handler_total_ns",
)  # fmt: skip


def driver_side(folder: Path, name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """By today's reading, or as it was read then where the trace is gone."""
    faults, looks = folder / f"{name}.faults.arrow", measured["looks"]
    came = sum(x["came"] for x in looks)
    if not faults.exists():
        found = measured["driver"] | {"bytes_in": came, "read": "then; bytes by cause incomplete"}
        left_out = ("given_faults", "tree_bytes", "demand_bytes")
        return {k: v for k, v in found.items() if k not in left_out}
    t = open_faults(faults)
    seen = seen_of(t, looks[0]["from_ns"])
    return observed_run(seen, partial_blocks(t), came=came) | {"read": "anew"}


def short(p: dict[str, Any]) -> dict[str, Any]:
    """Counts and the whole time."""
    made = {k: p[k] for k in KEYS if k in p}
    return made | ({"time_ns": int(sum(p["step_ns"]))} if "step_ns" in p else {})


def one(folder: Path, name: str, kept: dict[str, Any], profiles: list[str], models: Path) -> Any:
    predicted, measured = kept["predictions"][name], kept["measurements"][name]
    config = kept["config"][name] | {"model": str(models / kept["config"][name]["model"])}
    cell = LlamaRun(**config)
    driver = driver_side(folder, name, measured)
    steps = measured["step_ns"]
    routing = folder / f"{name}.routing.arrow"
    ctx = int(llama.opened(routing).meta.extra.get("n_ctx") or cell.prompt + cell.predict)
    made: dict[str, Any] = {
        "predicted_first": short(predicted) | {"errors": errors(predicted, driver, steps)},
        "driver": short(driver) | {
            "read": driver["read"],
            "time_ns": int(np.median(np.array(steps, np.float64), axis=0).sum()),
            "looks": measured["looks"],
        },
        "said_anew": {},
    }  # fmt: skip
    if "given_faults" in driver:
        given = driver["given_faults"]
        made["driver"]["services_read"] = {
            k: given[k] for k in ("services", "recorded", "equal", "nothing", "unrecorded")
        }
        made["given_faults"] = exact(driver)
    for profile in profiles:
        p = predict.llama(cell, routing, profile, ctx)
        made["said_anew"][Path(profile).stem] = short(p) | {"errors": errors(p, driver, steps)}
    return made


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--profile", action="append", required=True)
    p.add_argument("-o", "--out", required=True, type=Path)
    given = p.parse_args()

    def file(name: str) -> Any:
        return json.loads((given.folder / f"{name}.json").read_text(encoding="utf-8"))

    first = file("predictions")
    kept = {
        "predictions": first["runs"], "measurements": file("measurements")["runs"],
        "config": {r["name"]: r for r in first["config"]["llama"]},
    }  # fmt: skip
    made: dict[str, Any] = {"written_first": first["written"], "hardware": first["hardware"]["gpu"]}
    with tempfile.TemporaryDirectory() as models:
        for name, shape in MODELS.items():
            header(Path(models) / f"{name}.gguf", shape)
        for name in [n for n in kept["predictions"] if n in kept["measurements"]]:  # not cut off
            made[name] = one(given.folder, name, kept, given.profile, Path(models))
            print(name, json.dumps(made[name])[:400], flush=True)
    given.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
