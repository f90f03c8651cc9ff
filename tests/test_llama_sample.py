"""The committed routing and page faults of one llama.cpp run under unified memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from traces.commands.trace import trace
from traces.faults import open_faults
from traces.routing import open_routing

FOLDER = Path(__file__).parents[1] / "experiments/llama_cpp_validation/results/h100-c"
ROUTING, FAULTS = FOLDER / "sample.arrow", FOLDER / "sample.faults.arrow"


def test_both_traces_are_of_one_run_on_one_time_axis() -> None:
    done = CliRunner().invoke(trace, ["check", str(ROUTING), "--faults", str(FAULTS)])
    assert done.exit_code == 0 and "0 errors, 0 warnings" in done.output
    routing, faults = open_routing(str(ROUTING)), open_faults(str(FAULTS))
    assert routing.meta.extra["time"]["origin_ns"] == faults.meta["origin_ns"]
    assert ROUTING.stat().st_size + FAULTS.stat().st_size < 1 << 20


def test_faults_lie_in_the_steps_and_in_the_model() -> None:
    faults = open_faults(str(FAULTS))
    tensors = faults.meta["recording"]["tensors"]
    spans = np.array([(at, at + n) for name, (at, n) in tensors.items() if "_exps" in name])
    address = np.asarray(faults.table["address"].to_numpy(), np.uint64)
    kind = np.array(faults.table["kind"].to_pylist())
    asked = address[kind == "gpu_fault"]
    inside = ((asked[:, None] >= spans[:, 0]) & (asked[:, None] < spans[:, 1])).any(axis=1)
    assert len(asked) == 814 and inside.mean() > 0.5
    assert (kind == "migration_out").sum() == 204  # room for half of it: the driver evicts
