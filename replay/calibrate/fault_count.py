"""Counting the driver's page faults, in a process that CUPTI watches from before CUDA starts.

A recording that starts in a process that already uses CUDA misses most of it, and one that is open
slows paging down: so nothing is timed in that process, and this one never records.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHILD = "from replay.calibrate.fault_child import main; main()"
DEBUG = "UVMSIM_FAULT_TRACE"
"""Environment: a file name that the last recording is kept under."""


def count(request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What `replay.calibrate.fault_child.answer` makes of ``request``; never raises for a child that
    fails or needs more than ``seconds``.

    ``windows``: what was counted, in the order asked for; empty with the reason in ``why``.
    ``recording``: what CUPTI delivered, for finding out why something is missing.
    """
    found: dict[str, Any] = {"windows": [], "recording": {}, "why": ""}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        request = request | {"out": str(out), "trace": str(Path(folder) / "faults.arrow")}
        path = os.pathsep.join(p for p in sys.path if p)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", CHILD], input=json.dumps(request), timeout=seconds,
                capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return found | {"why": f"counting page faults took more than {seconds:.0f} s"}
        try:
            return found | json.loads(out.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = " ".join(done.stderr.split())[-300:]
            return found | {"why": f"counting page faults failed (exit {done.returncode}): {said}"}
