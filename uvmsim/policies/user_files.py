"""Users' own policy files, loaded by what they say, not by where they lie.

A file that was edited is another module, and so is one whose neighbour was edited: a module's name is a
digest of the source of the file and of every other file of the user's that it imports, at any depth.
Compiled code finds its state class under that name again, in this process and in the next.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from traces.errors import InputError
from uvmsim.core.globals_of import OURS

INSTALLED = tuple(
    str(Path(sysconfig.get_path(k)).resolve())
    for k in ("stdlib", "platstdlib", "purelib", "platlib")
)
PREFIX = "uvmsim_user_"


def load(path: str) -> ModuleType:
    """The module of a policy file, which may import its neighbours. Raises `InputError`."""
    file = Path(path).resolve()
    if not file.is_file():
        raise InputError(f"policy file {path}: no such file")
    try:
        source = file.read_bytes()
    except OSError as err:
        raise InputError(f"policy file {path}: {err.strerror or err}") from err
    helpers = _imported(source, file.parent)
    digest = hashlib.sha256(str(file).encode())
    for name, where in sorted([*helpers.items(), ("", file)]):
        digest.update(name.encode() + b"\0" + _content(where) + b"\0")
    name = PREFIX + digest.hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, _Fresh(name, str(file)), origin=str(file))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that compiled code finds its state class again
    try:
        with _importing(file.parent, helpers):
            spec.loader.exec_module(module)
    except Exception as err:
        del sys.modules[name]
        raise InputError(
            f"policy file {path}{_line_in(err, file)}: {type(err).__name__}: {err}"
        ) from err
    return module


class _Fresh(SourceFileLoader):
    """Compiles what the file says now: Python's own cache goes by size and second."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(MetaPathFinder):
    """Finds users' own modules, those beside the policy file first."""

    def __init__(self, folder: Path):
        self._folder = str(folder)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in OURS:
            return None
        spec = PathFinder.find_spec(fullname, [self._folder, *sys.path] if path is None else path)
        if spec is None or not is_users_own(spec.origin):
            return None
        spec.loader = _Fresh(fullname, str(spec.origin))
        return spec


def is_users_own(origin: str | None) -> bool:
    """Whether a source file is neither Python's nor an installed package's."""
    if origin is None or not origin.endswith(".py"):
        return False
    where = str(Path(origin).resolve())
    return not where.startswith(INSTALLED) and "site-packages" not in where


def _imported(source: bytes, folder: Path) -> dict[str, Path]:
    """Users' own modules that a source imports, at any depth, by name."""
    finder, found = _Finder(folder), dict[str, Path]()
    todo = list(_names(source, ""))
    while todo:
        name = todo.pop()
        if name in found:
            continue
        parent = name.rpartition(".")[0]
        if parent and parent not in found:
            continue
        within = [str(found[parent].parent)] if parent else None
        spec = finder.find_spec(name, within)
        if spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin)
        package = name if spec.submodule_search_locations is not None else parent
        todo += _names(_content(found[name]), package)
    return found


def _names(source: bytes, package: str) -> Iterator[str]:
    """Modules that a source may import, inner ones first, so that a stack takes outer ones first."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # it says so itself when it is run
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: max(len(package.split(".")) - node.level + 1, 0)]
            base = ".".join(
                [*(outer if node.level else []), *([node.module] if node.module else [])]
            )
            wanted = [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
        else:
            continue
        for name in wanted:
            parts = name.split(".")
            yield from (".".join(parts[:n]) for n in range(len(parts), 0, -1))


@contextlib.contextmanager
def _importing(folder: Path, helpers: dict[str, Path]) -> Iterator[None]:
    """Import ``helpers`` anew, whatever was imported under their names before."""
    finder = _Finder(folder)
    before = {name: sys.modules.pop(name) for name in helpers if name in sys.modules}
    sys.meta_path.insert(0, finder)
    try:
        yield
    except BaseException:
        sys.modules.update(before)
        raise
    finally:
        sys.meta_path.remove(finder)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _line_in(err: Exception, file: Path) -> str:
    if isinstance(err, SyntaxError):
        return f", line {err.lineno}" if err.filename == str(file) else f", {err.filename}"
    tb, line = err.__traceback__, None
    while tb:
        if tb.tb_frame.f_code.co_filename == str(file):
            line = tb.tb_lineno
        tb = tb.tb_next
    return f", line {line}" if line else ""
