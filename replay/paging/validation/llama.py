"""Cold runs of llama.cpp in managed memory: its routing, its times, the driver's events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from replay.paging.validation.config import LlamaRun
from traces.capture.find_library import find_library, preload_environment
from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.studies.resolve import open_trace

CHILD = "from replay.paging.validation.llama_child import main; main()"


def run(
    cell: LlamaRun, library: str | None, out: Path, *, managed: bool, cold: bool,
    faults: Path | None = None, seconds: float = 240,
) -> dict[str, Any]:  # fmt: skip
    """One capture to ``out``. Raises `InputError` where it fails, with the end of what it said."""
    for path in (out, faults):
        if path is not None:
            path.unlink(missing_ok=True)
    file = find_library(library)
    environment = dict(preload_environment(file) or os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = {
            "model": cell.model, "library": str(file.path), "out": str(out), "prompt": cell.prompt,
            "predict": cell.predict, "seed": cell.seed, "managed": managed, "cold": cold,
            "faults": faults and str(faults), "answer": str(answer),
        }  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", CHILD], input=json.dumps(request), timeout=seconds,
                capture_output=True, text=True, check=False, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise InputError(f"llama.cpp took more than {seconds:.0f} s") from None
        if not answer.exists():
            said = " / ".join(done.stderr.strip().splitlines()[-4:])[-700:]
            raise InputError(f"llama.cpp failed (exit {done.returncode}): {said}")
        made: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return made


def opened(routing: Path) -> RoutingTrace:
    """The routing trace of a run."""
    return open_trace(str(routing))


def step_ns(trace: RoutingTrace) -> np.ndarray:
    """int64 [S]: how long each step took."""
    assert trace.duration_ns is not None
    first = np.flatnonzero(np.diff(trace.step, prepend=trace.step[:1] - 1))
    return np.asarray(trace.duration_ns[first], np.int64)


def step_starts(trace: RoutingTrace) -> np.ndarray:
    """int64 [S]: when each began, on the recording's clock."""
    assert trace.time_ns is not None
    first = np.flatnonzero(np.diff(trace.step, prepend=trace.step[:1] - 1))
    return np.asarray(trace.time_ns[first], np.int64)


def same_routing(a: RoutingTrace, b: RoutingTrace) -> bool:
    """Whether two runs chose the same experts throughout."""
    return a.experts.shape == b.experts.shape and bool((a.experts == b.experts).all())
