"""What records page faults: CUPTI, or the paging driver's own event queue below it.

The queue is taken where the driver gives one and notes all that is done when it is asked to: then no
copy is missing from the record. CUPTI, which does not say what it lost, is taken elsewhere. It wants to
be there before CUDA is started in a process, so a process of its own finds out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from traces.capture.uvm_queue import DEVICE, EventQueue
from traces.errors import InputError

AUTO, CUPTI, DRIVER = "auto", "cupti", "driver"
TRACERS = (AUTO, CUPTI, DRIVER)
PROBE = "from traces.capture.tracers import probe; raise SystemExit(0 if probe() else 1)"
PROBE_S = 60
"""Starting CUDA takes seconds on machines with many GPUs."""


def probe() -> bool:
    """Whether the driver gives this process a queue and notes what is done when asked. Starts CUDA."""
    from traces.capture import cuda_driver

    try:
        cuda_driver.start()
        cuda_driver.retain()
        with EventQueue(1 << 10) as queue:
            return queue.flush()
    except InputError:
        return False


def chosen(tracer: str) -> str:
    """`CUPTI` or `DRIVER`: what one of `TRACERS` is on this machine."""
    if tracer != AUTO:
        return tracer
    if not Path(DEVICE).exists():
        return CUPTI
    words = [sys.executable, "-P", "-c", PROBE]
    try:
        done = subprocess.run(words, capture_output=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return CUPTI
    return DRIVER if done.returncode == 0 else CUPTI


def recording_by(tracer: str, path: Path, meta: dict[str, Any]) -> Any:
    """A recording to ``path``, not yet begun, by `CUPTI` or `DRIVER`: `FaultRecording` or
    `DriverRecording`."""
    if tracer == DRIVER:
        from traces.capture.driver_recording import DriverRecording

        return DriverRecording(path, meta=meta)
    from traces.capture.cupti import FaultRecording

    return FaultRecording(path, meta=meta)
