"""All importers, found by looking: every module of this folder with ``FORMATS``."""

from __future__ import annotations

import functools
import pkgutil
from importlib import import_module
from pathlib import Path

import traces.importers as folder
from traces.errors import InputError
from traces.faults import FaultTrace
from traces.files.ipc import require_file
from traces.importers.format import Format

HEAD = 4096
"""Bytes of a file that `Format.recognises` is shown."""
NOT_FORMATS = ("dump", "format", "formats")


@functools.cache
def formats() -> dict[str, Format]:
    """By name: routing first, then page faults."""
    found: list[Format] = []
    for info in pkgutil.iter_modules(folder.__path__):
        if info.name not in NOT_FORMATS:
            found += import_module(f"{folder.__name__}.{info.name}").FORMATS
    return {f.name: f for f in sorted(found, key=lambda f: (f.faults, f.name))}


def sniff(path: Path) -> Format:
    """The format of a file, by its content or its name. Raises `InputError` where neither tells."""
    try:
        with path.open("rb") as f:
            head = f.read(HEAD)
    except OSError:
        head = b""  # the importer says what is wrong
    known = formats().values()
    for found in known:
        if found.recognises and found.recognises(head):
            return found
    for found in known:
        if found.endings and path.name.lower().endswith(found.endings):
            return found
    if path.name.lower().endswith((".nsys-rep", ".qdrep")):
        raise InputError(
            f"{path}: an Nsight Systems report; run `nsys export --type sqlite {path.name}` and "
            "import the .sqlite file"
        )
    raise InputError(
        f"{path}: the file name does not tell its format; add --format {'|'.join(formats())}"
    )


def named(name: str) -> Format:
    """The format of that name; raises `InputError` for another."""
    if name not in formats():
        raise InputError(f"--format {name}: unknown; choose one of {', '.join(formats())}")
    return formats()[name]


def import_faults(path: Path, name: str) -> FaultTrace:
    """Read a file of page faults, in a format of that kind, into a trace in memory.

    What the importer left out or changed is in ``meta["notes"]``.
    """
    require_file(path)
    if not path.stat().st_size:
        raise InputError(f"{path}: empty file; record or export it again")
    trace: FaultTrace = named(name).load(path)
    trace.meta |= {"format": name, "source": f"imported from {path.name}"}
    return trace
