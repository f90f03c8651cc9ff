"""The engine that ships, `llama.cpp-h100`: fitted anew to the runs of run C's calibration.

python experiments/llama_cpp_validation/preset.py           # prints how well it meets the runs
python experiments/llama_cpp_validation/preset.py --write   # and writes the preset
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from replay.llama_cpp.collect import Collected, Equation
from replay.llama_cpp.expected import expected
from replay.llama_cpp.fit import Fit, fit
from replay.llama_cpp.profile import engine_table, floors
from uvmsim.machine.hardware import Hardware

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "h100-c"
PRESET = HERE.parents[1] / "uvmsim/machine/presets/engines/llama.cpp-h100.toml"
STAMP = (
    "measured 2026-11-27, NVIDIA H100 80GB HBM3, driver 580.159.04, 16 cores "
    "(experiments/llama_cpp_validation)"
)
HEAD = (
    'name = "llama.cpp-h100"\nsummary = "llama.cpp b11549 (ggml 0.26.0) on an H100: calibrated on '
    'synthetic models"\nmachine = "h100"'
)


def equations(raw: dict) -> list[Equation]:
    """The timed runs, with what each consisted of."""
    runs = [{k: v for k, v in run.items() if k != "error"} for run in raw["runs"]]
    return [Equation(**{**run, "spread": tuple(run["spread"])}) for run in runs]


def show(found: Fit, runs: list[Equation]) -> None:
    groups: dict[str, list[float]] = defaultdict(list)
    for e in runs:
        groups[f"{e.mode} {'one by one' if e.row else 'prompts'}"].append(found.errors[e.key])
    for name, errors in groups.items():
        worst, mean = max(errors, key=abs), float(np.mean(np.abs(errors)))
        print(f"{name:22s} {len(errors):3d} runs  mean {mean:6.1%}  worst {worst:+.0%}")


def preset(found: Fit, runs: list[Equation], machine: Hardware, build: str) -> str:
    collected = Collected(runs, build, gpu=True, flash=True)
    text = "\n".join(engine_table(collected, found, machine, STAMP, {}))
    text = text.replace("[engine.", "[").replace("[engine]\n", "").lstrip() + "\n"
    return re.sub(r'name = "llama.cpp"\nsummary = .*', HEAD, text)


def main() -> None:
    machine = Hardware.load(str(RESULTS / "machine.toml"))
    raw = json.loads((RESULTS / "machine.measurements.json").read_text(encoding="utf-8"))
    runs = equations(raw)
    found = fit(runs, floors(machine), expected(machine))
    show(found, runs)
    if "--write" in sys.argv:
        PRESET.write_text(preset(found, runs, machine, raw["build"]), encoding="utf-8")


if __name__ == "__main__":
    main()
