"""The ways a replay can serve a missing expert, by name."""

from __future__ import annotations

from traces.errors import InputError

MODES = ("expert-cache", "hybrid", "resident", "stream", "zero-copy", "managed")
"""``managed``: managed memory, which the driver pages in on faults. The others are called as the
simulator's mechanisms are."""
OLD_NAMES = {"uvm": "managed"}
"""What modes were called before; understood for one more release."""


def mode_named(text: str) -> str:
    """One of `MODES`; raises `InputError` for another word."""
    mode = OLD_NAMES.get(text, text)
    if mode not in MODES:
        raise InputError(f"{text}: must be one of {', '.join(MODES)}", argument="mechanisms")
    return mode
