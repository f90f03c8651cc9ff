"""Importers: one module a format, one line here.

An importer of routing dumps is a function ``load(path: Path, options: ImportOptions) -> Dump``, one
of page faults ``load(path: Path) -> FaultTrace``; whatever it cannot read it refuses with an
`InputError` that names the file, the line or array, and the mend.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from traces.faults import FaultTrace
    from traces.importers.dump import Dump, ImportOptions

FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    # format: (module and function, file name endings)
    "npz": ("traces.importers.npz:load", (".npz",)),
    "jsonl": ("traces.importers.jsonl:load", (".jsonl", ".ndjson", ".json")),
    "csv": ("traces.importers.tabular:load_csv", (".csv", ".tsv")),
    "parquet": ("traces.importers.tabular:load_parquet", (".parquet", ".pq")),
}


FAULT_FORMATS: dict[str, str] = {
    # format: module and function
    "gpu-ext-chunk": "traces.importers.gpu_ext:load_chunk",
    "gpu-ext-prefetch": "traces.importers.gpu_ext:load_prefetch",
    "nsys": "traces.importers.nsys:load",
}


def sniff(path: Path) -> str:
    """The format of a file: page faults by its content, routing dumps by its name.

    Raises `InputError` where neither tells.
    """
    found = _sniff_faults(path)
    if found:
        return found
    for name, (_, endings) in FORMATS.items():
        if path.name.lower().endswith(endings):
            return name
    if path.name.lower().endswith((".nsys-rep", ".qdrep")):
        raise InputError(
            f"{path}: an Nsight Systems report; run `nsys export --type sqlite {path.name}` and "
            "import the .sqlite file"
        )
    raise InputError(
        f"{path}: the file name does not tell its format; add --format "
        f"{'|'.join([*FORMATS, *FAULT_FORMATS])}"
    )


def _sniff_faults(path: Path) -> str | None:
    from traces.importers.gpu_ext import is_chunk_header, is_prefetch_header
    from traces.importers.nsys import MAGIC

    try:
        with path.open("rb") as f:
            head = f.read(4096)
    except OSError:
        return None  # the importer says what is wrong
    if head.startswith(MAGIC):
        return "nsys"
    header = head.partition(b"\n")[0].decode("utf-8-sig", "replace").strip().split(",")
    if is_chunk_header(header):
        return "gpu-ext-chunk"
    return "gpu-ext-prefetch" if is_prefetch_header(header) else None


def is_fault_format(name: str) -> bool:
    """Whether a format holds page faults (and not routing)."""
    return name in FAULT_FORMATS


def loader(name: str) -> Callable[[Path, ImportOptions], Dump]:
    """The load function of a format of routing dumps."""
    if name not in FORMATS:
        known = ", ".join([*FORMATS, *FAULT_FORMATS])
        raise InputError(f"--format {name}: unknown; choose one of {known}")
    return _function(FORMATS[name][0])


def import_faults(path: Path, name: str) -> FaultTrace:
    """Read a file of page faults, in a format of `FAULT_FORMATS`, into a trace in memory.

    What the importer left out or changed is in ``meta["notes"]``.
    """
    from traces.files.ipc import require_file

    require_file(path)
    if not path.stat().st_size:
        raise InputError(f"{path}: empty file; record or export it again")
    trace: FaultTrace = _function(FAULT_FORMATS[name])(path)
    trace.meta |= {"format": name, "source": f"imported from {path.name}"}
    return trace


def _function(where: str) -> Callable[..., Any]:
    module, _, function = where.partition(":")
    return getattr(import_module(module), function)  # type: ignore[no-any-return]
