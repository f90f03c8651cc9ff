"""Find a libllama: from an installed package, or where the user says."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from traces.errors import InputError

PACKAGES = {"xllamacpp": "xllamacpp", "llama_cpp": "llama-cpp-python"}
"""Python packages that carry a libllama: import name -> name on PyPI, in order of preference."""
_PATTERNS = (
    "xllamacpp*.so",
    "libllama.so",
    "lib/libllama.so",
    "libllama.*.so",
    "libllama.dylib",
    "lib/libllama.dylib",
)
_RUNTIME = "libstdc++.so.6"


@dataclass(frozen=True)
class LibraryFile:
    """A shared library that holds llama.cpp, and the package it came with, if any."""

    path: Path
    package: str | None = None

    @property
    def uses_cuda(self) -> bool:
        """Whether a CUDA back end lies beside the library or is linked into it."""
        if any(self.path.parent.glob("libggml-cuda*")):
            return True
        return self.package is None and self.mentions(b"libcudart")

    def mentions(self, text: bytes) -> bool:
        """Whether the file's bytes hold ``text``: names it links to, what it prints."""
        import mmap

        with self.path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(text) >= 0


def find_library(where: str | Path | None = None) -> LibraryFile:
    """The library to load: ``where`` is a path, the name of a package, or None for any package.

    Raises `InputError` where nothing is found.
    """
    if where is None:
        for module in PACKAGES:
            found = _in_package(module)
            if found:
                return found
        raise InputError(
            "no libllama found: install the capture extra: pip install 'uvmsim[capture]' "
            "(or name your own with --lib /path/to/libllama.so)"
        )
    if str(where) in PACKAGES:
        found = _in_package(str(where))
        if found:
            return found
        raise InputError(
            f"package {where} is not installed: pip install {PACKAGES[str(where)]}, "
            "or pip install 'uvmsim[capture]' and leave --lib out"
        )
    path = Path(where)
    if path.is_dir():
        inside = [p for pattern in _PATTERNS for p in sorted(path.glob(pattern))]
        if not inside:
            raise InputError(f"{path}: holds no libllama.so; give the path of the library itself")
        return LibraryFile(inside[0].resolve())
    if not path.is_file():
        raise InputError(f"{path}: no such library; give the path of a libllama.so")
    return LibraryFile(path.resolve())


def preload_environment(library: LibraryFile) -> dict[str, str] | None:
    """The environment in which this library must be loaded, or None where this process will do.

    A CUDA libllama carries its own copy of the C++ run-time library. Loaded into a process where
    NumPy brought in the system's, it crashes while it reads the model, unless the system's comes
    first: so the capture has to run in a new process that preloads it.
    """
    if not sys.platform.startswith("linux") or not library.uses_cuda:
        return None
    loaded = os.environ.get("LD_PRELOAD", "")
    if _RUNTIME in loaded:
        return None
    return dict(os.environ) | {"LD_PRELOAD": f"{_RUNTIME}:{loaded}".rstrip(":")}


def _in_package(module: str) -> LibraryFile | None:
    spec = importlib.util.find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or ():
        for pattern in _PATTERNS:
            for path in sorted(Path(folder).glob(pattern)):
                name = PACKAGES[module]
                return LibraryFile(path, f"{name} {importlib.metadata.version(name)}")
    return None
