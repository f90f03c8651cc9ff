"""What an importer says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """One format of other people's dumps. A module of this folder lists its own as ``FORMATS``."""

    name: str
    """As ``--format`` has it."""
    load: Callable[..., Any]
    """Routing: ``load(path, options: ImportOptions) -> Dump``; faults: ``load(path) -> FaultTrace``.
    Refuses with an `InputError` that names the file, the line or array, and the mend."""
    endings: tuple[str, ...] = ()
    """File name endings that tell it, in lower case."""
    recognises: Callable[[bytes], bool] | None = None
    """Whether the first 4 KiB of a file tell it; asked before endings are looked at."""
    faults: bool = False
    """Whether it holds page faults, and not routing."""
