"""A sweep's TOML file: the options of `uvmsim compare`, each one value, a list, or a range."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from traces.errors import InputError
from uvmsim.core.units import parse_bandwidth, parse_bytes
from uvmsim.machine.model import KV_TYPES
from uvmsim.machine.parts import split
from uvmsim.policies.kinds import EXPERTS, kind_of
from uvmsim.studies.scenario import DEFAULT_HARDWARE

RANGE_KEYS = ("from", "to", "steps", "scale")


def text(value: Any) -> str:
    """A key's text. This and the next ones raise `ValueError` with what is wrong."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r}: must be text in quotes")
    return value


def whole(value: Any) -> int:
    """A whole number from 0 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r}: must be a whole number, 0 or more")
    return value


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r}: must be true or false")
    return value


def one_of(*allowed: str) -> Callable[[Any], str]:
    """A check that lets these words pass."""

    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r}: must be {' or '.join(allowed)}")
        return str(value)

    return check


def pool_size(value: Any) -> str:
    """``96``, ``"96"`` or ``"12.5%"`` as text, which `uvmsim.studies.resolve.slots_of` understands."""
    shown = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
    try:
        good = float(shown.removesuffix("%")) > 0 and (shown.endswith("%") or shown.isdigit())
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{value!r}: give a number of experts or a share like '25%'")
    return shown


def values(raw: Any, parse: Callable[[Any], Any]) -> list[Any]:
    """The values of an axis, in the order given, doubles dropped."""
    items = raw if isinstance(raw, list) else _range(raw) if isinstance(raw, dict) else [raw]
    if not items:
        raise ValueError("an empty list; give at least one value, or leave the key out")
    try:
        return list(dict.fromkeys(parse(x) for x in items))
    except InputError as err:
        raise ValueError(str(err)) from None


def _range(table: dict[str, Any]) -> list[Any]:
    """``{ from, to, steps, scale }`` as values that the axis' own parser reads."""
    for key in table:
        if key not in RANGE_KEYS:
            near = difflib.get_close_matches(key, RANGE_KEYS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(RANGE_KEYS)}"
            raise ValueError(f"unknown key {key!r} in a range; {hint}")
    for key in RANGE_KEYS[:3]:
        if key not in table:
            raise ValueError(f"a range needs {key!r}, as in {{ from = 4, to = 8, steps = 5 }}")
    steps, scale = table["steps"], table.get("scale", "linear")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError("the 'steps' of a range must be a whole number, 2 or more")
    if scale not in ("linear", "log"):
        raise ValueError(f"the 'scale' of a range must be linear or log, not {scale!r}")
    (lo, wrap), (hi, other) = (_number(table[k]) for k in ("from", "to"))
    if wrap("") != other(""):
        raise ValueError("'from' and 'to' of a range must be the same kind of quantity")
    if scale == "log" and min(lo, hi) <= 0:
        raise ValueError("a log range must stay above 0")
    share = [i / (steps - 1) for i in range(steps)]
    if scale == "log":
        points = [math.exp(math.log(lo) + s * (math.log(hi) - math.log(lo))) for s in share]
    else:
        points = [lo + s * (hi - lo) for s in share]
    points[0], points[-1] = lo, hi
    return [wrap(x) for x in points]


def _number(value: Any) -> tuple[float, Callable[[Any], Any]]:
    """A range's end as a number, and how to write such numbers for the axis' parser."""
    if isinstance(value, str):
        if value.endswith("%"):
            try:
                return float(value[:-1]), lambda x: f"{x:.6g}%" if x != "" else "%"
            except ValueError:
                raise ValueError(f"{value!r} is not a share; write it like 25%") from None
        try:
            if "/" in value:
                return parse_bandwidth(value), lambda x: f"{round(x)}B/s" if x != "" else "B/s"
            return parse_bytes(value), lambda x: f"{round(x)}B" if x != "" else "B"
        except InputError as err:
            raise ValueError(str(err)) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} cannot be the end of a range")
    return value, lambda x: round(x) if x != "" else ""


def _axis(parse: Callable[[Any], Any]) -> BeforeValidator:
    return BeforeValidator(partial(values, parse=parse))


Texts = Annotated[list[str | None], _axis(text)]
Sizes = Annotated[list[int | None], _axis(parse_bytes)]
Rates = Annotated[list[int | None], _axis(parse_bandwidth)]
Wholes = Annotated[list[int | None], _axis(whole)]
Flags = Annotated[list[bool], _axis(flag)]


class SweepConfig(BaseModel):
    """Every key is an axis; what is left out has the one value that `uvmsim compare` gives it.

    ``None`` in a list stands for that default (the trace's own model, the preset's VRAM, ...).
    """

    model_config = ConfigDict(extra="forbid")
    trace: Texts = [None]
    model: Texts = [None]
    expert_size: Texts = [None]
    hardware: Annotated[list[str], _axis(text)] = [DEFAULT_HARDWARE]
    program: Texts = [None]
    vram: Sizes = [None]
    link: Rates = [None]
    ram_bandwidth: Rates = [None]
    reserve: Sizes = [None]
    ctx: Wholes = [None]
    kv_type: Annotated[list[str | None], _axis(one_of(*KV_TYPES))] = [None]
    slots: Annotated[list[str | None], _axis(pool_size)] = [None]
    mechanism: Annotated[list[str], _axis(text)] = ["expert-cache"]
    policy: Annotated[list[str], _axis(text)] = list(EXPERTS.defaults)
    pool: Annotated[list[str], _axis(one_of("global", "per-layer"))] = ["global"]
    unit: Annotated[list[str], _axis(one_of("event", "access"))] = ["event"]
    reset: Annotated[list[str], _axis(one_of("never", "sequence"))] = ["never"]
    profile: Texts = [None]
    write_back: Flags = [False]
    pageable: Flags = [False]
    policy_time: Flags = [False]
    ncmoe: Wholes = [None]
    threshold: Annotated[list[int], _axis(whole)] = [51]
    limit: Wholes = [None]
    seed: Annotated[list[int], _axis(whole)] = [0]


def load(path: str | Path, traces: tuple[str, ...] = ()) -> SweepConfig:
    """The config at ``path``, its values checked one by one. Raises `InputError`.

    ``traces`` replaces the config's own. Paths in the file are relative to the file's folder, those
    in ``traces`` to the working directory.
    """
    from uvmsim.machine.descriptions import read

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file; give a sweep's TOML file")
    config = read(file, SweepConfig)
    home = file.parent
    for key in ("trace", "profile", "model", "hardware", "program", "policy"):
        setattr(config, key, [beside(home, key, v) for v in getattr(config, key)])
    if traces:
        config.trace = [_absolute(t) for t in traces]
    check(config, str(path))
    return config


def check(config: SweepConfig, where: str = "sweep") -> None:
    """Refuse now what would be the same mistake in every cell: names that mean nothing."""
    from uvmsim.machine.engine import EngineProfile
    from uvmsim.machine.hardware import Hardware
    from uvmsim.machine.model import Model
    from uvmsim.mechanisms import mechanism
    from uvmsim.studies.resolve import parse_expert_size

    tests: dict[str, Callable[[Any], Any]] = {
        "model": Model.load,
        "expert_size": parse_expert_size,
        "hardware": Hardware.load,
        "program": EngineProfile.load,
        "mechanism": mechanism,
        "policy": kind_of,
    }
    for key, test in tests.items():
        for value in getattr(config, key):
            if value is None:
                continue
            try:
                test(value)
            except InputError as err:
                raise InputError(f"{where}: {key}: {err.args[0]}") from None
    for value in config.threshold:
        if not 1 <= value <= 100:
            raise InputError(f"{where}: threshold: {value} is no share in %, 1 to 100")
    for name in config.mechanism:
        if mechanism(name).decides and not policies_for(config, name):
            raise InputError(f"{where}: policy: none of them is for mechanism {name}")
    for key in ("vram", "ctx", "limit"):
        if 0 in getattr(config, key):
            raise InputError(f"{where}: {key}: must be above 0")


def policies_for(config: SweepConfig, mechanism: str) -> list[str]:
    """The policies of the kind that a mechanism takes; its defaults where none are named."""
    from uvmsim.mechanisms import mechanism as mechanism_named

    kind = mechanism_named(mechanism).decides
    if kind is None:
        return config.policy[:1]
    if config.policy == list(EXPERTS.defaults):
        return list(kind.defaults)
    return [p for p in config.policy if kind_of(p) is kind]


def in_words(err: InputError) -> str:
    """What a row says of an error, in one line: arguments by the flags of `uvmsim compare`, whose
    options a sweep's keys are."""
    names = {key: key for key in SweepConfig.model_fields}
    names |= {"mechanisms": "mechanism", "policies": "policy"}
    flags = {name: "--" + key.replace("_", "-") for name, key in names.items()}
    return " ".join(str(err.with_flags(flags)).split())


def is_url(path: str) -> bool:
    """Whether a trace is named by a URL (``https://``, ``s3://``) and not by a path."""
    return "://" in path


def beside(home: Path, key: str, value: str | None) -> str | None:
    """What a file in ``home`` names under ``key``: paths relative to it, names and URLs as they are."""
    if value is None or is_url(value):
        return value
    if key == "policy":
        return "+".join(
            str((home / head).resolve()) + sep + rest if head.endswith(".py") else part
            for part in value.split("+")
            for head, sep, rest in [part.partition(":")]
        )
    if key == "hardware":
        head, parts = split(value)
        if parts:
            return "+".join([str(beside(home, key, head)), *(p.text for p in parts)])
    if key in ("model", "hardware", "program") and not value.lower().endswith((".toml", ".gguf")):
        return value
    return str((home / Path(value).expanduser()).resolve())


def _absolute(path: str) -> str:
    return path if is_url(path) else str(Path(path).expanduser().resolve())
