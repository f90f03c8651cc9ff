"""Importers of routing dumps: one module a format, one line here.

An importer is a function ``load(path: Path, options: ImportOptions) -> Dump``; whatever it cannot
read it refuses with an `InputError` that names the file, the line or array, and the mend.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from traces.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from traces.importers.dump import Dump, ImportOptions

FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    # format: (module and function, file name endings)
    "npz": ("traces.importers.npz:load", (".npz",)),
    "jsonl": ("traces.importers.jsonl:load", (".jsonl", ".ndjson", ".json")),
    "csv": ("traces.importers.tabular:load_csv", (".csv", ".tsv")),
    "parquet": ("traces.importers.tabular:load_parquet", (".parquet", ".pq")),
}


def sniff(path: Path) -> str:
    """The format of a file, by its name; raises `InputError` where the name does not tell."""
    for name, (_, endings) in FORMATS.items():
        if path.name.lower().endswith(endings):
            return name
    raise InputError(
        f"{path}: the file name does not tell its format; add --format {'|'.join(FORMATS)}"
    )


def loader(name: str) -> Callable[[Path, ImportOptions], Dump]:
    """The load function of a format."""
    if name not in FORMATS:
        raise InputError(f"--format {name}: unknown; choose one of {', '.join(FORMATS)}")
    module, _, function = FORMATS[name][0].partition(":")
    return getattr(import_module(module), function)  # type: ignore[no-any-return]
