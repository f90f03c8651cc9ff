"""Where a result may be written."""

from __future__ import annotations

from pathlib import Path

from traces.errors import InputError


def check_target(path: str | Path) -> Path:
    """``path``, if a file can take that name: a rename would replace a device node or a pipe.

    Raises `InputError` where something else than a file is there, or the folder is missing.
    """
    p = Path(path)
    if p.is_dir():
        raise InputError(f"{p}: is a folder; name a file in it")
    if p.exists() and not p.is_file():
        raise InputError(f"{p}: is no regular file; name a file to write to")
    if not p.absolute().parent.is_dir():
        raise InputError(
            f"{p}: cannot be written: there is no folder {p.absolute().parent}; make it first"
        )
    return p
