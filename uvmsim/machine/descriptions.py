"""TOML descriptions: finding a preset or a file, reading it, and saying in one line what is wrong.

Models, hardware and engines are described this way. A description is checked against a pydantic
schema that forbids unknown keys; all faults found become one `InputError` naming the file, the
keys and, for a key that does not exist, the nearest one that does.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from traces.errors import InputError

PRESETS = Path(__file__).parent / "presets"
S = TypeVar("S", bound=BaseModel)


def preset_paths(kind: str) -> dict[str, Path]:
    """Preset name -> file, for ``kind`` ``"models"``, ``"hardware"`` or ``"engines"``, in name
    order."""
    return {p.stem: p for p in sorted((PRESETS / kind).glob("*.toml"), key=lambda p: p.stem)}


def find(spec: str, kind: str, what: str, suffixes: tuple[str, ...]) -> Path:
    """The file that ``spec`` names: a preset, else a path ending in one of ``suffixes``.

    Raises `InputError` listing the presets where it is neither.
    """
    presets = preset_paths(kind)
    if spec.lower() in presets:
        return presets[spec.lower()]
    path = Path(spec).expanduser()
    ends = " or ".join(suffixes)
    if path.suffix.lower() in suffixes:
        if path.is_file():
            return path
        raise InputError(f"{spec}: no such file; give a {ends} file or a preset name")
    if path.is_file():
        raise InputError(f"{spec}: a {what} file must end in {ends}")
    near = difflib.get_close_matches(spec.lower(), presets, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(
        f"unknown {what} {spec!r}; {hint}presets: {', '.join(presets)}; or give a {ends} file"
    )


def beside(spec: str, home: Path | None) -> str:
    """``spec`` as a file in ``home`` means it: a path to a file there, else as it stands."""
    if home is None or not spec.lower().endswith(".toml"):
        return spec
    return str(home / Path(spec).expanduser())


def read(
    path: Path,
    schema: type[S],
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    missing: str = "",
) -> S:
    """The TOML file at ``path``, checked; `InputError` (one line, all faults) where it is wrong.

    ``prepare`` changes what the file says before it is checked; ``missing`` is said after keys that
    are missing.
    """
    where = path.stem if path.is_relative_to(PRESETS) else str(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{where}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: not a text file; a TOML description is needed") from None
    except tomllib.TOMLDecodeError as e:
        raise InputError(f"{where}: not valid TOML: {e}") from None
    return checked(prepare(data) if prepare else data, schema, where, missing)


def checked(data: dict[str, Any], schema: type[S], where: str, missing: str = "") -> S:
    """``data`` as ``schema`` has it; `InputError` that begins with ``where`` otherwise."""
    try:
        return schema.model_validate(data)
    except ValidationError as e:
        faults = _faults(e, schema, missing)
    if len(faults) > 1:
        numbered = "; ".join(f"({i}) {fault}" for i, fault in enumerate(faults, 1))
        raise InputError(f"{where}: {len(faults)} faults: {numbered}")
    raise InputError(f"{where}: {faults[0]}")


def _faults(error: ValidationError, schema: type[BaseModel], missing: str) -> list[str]:
    """What is wrong, unknown keys first: such a key is usually a misspelt required one, which then is
    not said to be missing too."""
    found = error.errors()
    lacking = [d["loc"] for d in found if d["type"] == "missing"]
    faults = []
    for loc in (d["loc"] for d in found if d["type"] == "extra_forbidden"):
        known = _keys(schema, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        if near and (*loc[:-1], near[0]) in lacking:
            lacking.remove((*loc[:-1], near[0]))
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        faults.append(f"unknown key {_dotted(loc)!r}; {hint}")
    for fault in found:
        key = _dotted(fault["loc"])
        if fault["type"] in ("extra_forbidden", "missing"):
            continue
        if fault["type"] == "model_type":
            keys = ", ".join(_keys(schema, fault["loc"]))
            faults.append(f"{key}: must be a table with the keys {keys}")
            continue
        message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        faults.append(f"{key}: {message}" if key else message)
    if lacking:
        names = ", ".join(repr(_dotted(loc)) for loc in lacking)
        several = len(lacking) > 1
        told = f"keys {names} are missing" if several else f"key {names} is missing"
        faults.append(told + missing)
    return faults


def _dotted(loc: tuple[Any, ...]) -> str:
    return ".".join(str(x) for x in loc)


def _keys(schema: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Keys that the table at ``loc`` may have."""
    here: Any = schema
    for part in loc:
        annotation = here.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        here = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if here is None:
            return []
    return list(here.model_fields)
