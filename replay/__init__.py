"""The policies of the simulator on a real GPU: engine, calibration, validation.

`replay` answers a scenario (`uvmsim.replay` is the same); `run` replays one job, and a `Session` shares
a device and its memory among several. Names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.session import How as How
    from replay.session import Session as Session
    from replay.study import replay as replay

_HOME = {"How": "replay.session", "Session": "replay.session", "replay": "replay.study"}
__all__ = ["run", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(job: Any, mode: str = "expert-cache", backend: Any = "cuda", how: Any = None) -> Any:
    """`replay.session.run`, imported when it is called."""
    from replay.session import run as once

    return once(job, mode, backend, how)
