"""The policies of the simulator on a real GPU: engine, calibration, validation.

`run` replays one job; `replay.session.Session` shares a device and its memory among several.
"""

from __future__ import annotations

from typing import Any


def run(job: Any, mode: str = "expert-cache", backend: Any = "cuda", how: Any = None) -> Any:
    """`replay.session.run`, imported when it is called."""
    from replay.session import run as once

    return once(job, mode, backend, how)
