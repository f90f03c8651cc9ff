"""A validation's TOML file: which traces, policies, pool sizes and modes are predicted and run."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from replay.modes import MODES, OLD_NAMES
from traces.errors import InputError
from uvmsim.core.units import parse_bytes
from uvmsim.studies.sweep.config import beside, flag, one_of, pool_size, text, values, whole

DTYPES = ("fp32", "fp16", "bf16", "mxfp4")
BUNDLED = "bundled"
"""The name, instead of a path, of the trace that comes with uvmsim."""


def _some(value: Any) -> int:
    if whole(value) == 0:
        raise ValueError("0: must be 1 or more")
    return int(value)


def _each(parse: Any) -> BeforeValidator:
    return BeforeValidator(lambda raw: values(raw, parse))


Count = Annotated[int, BeforeValidator(_some)]
Text = Annotated[str, BeforeValidator(text)]
Flag = Annotated[bool, BeforeValidator(flag)]


class TraceEntry(BaseModel):
    """One ``[[trace]]``: what is replayed, and at whose sizes."""

    model_config = ConfigDict(extra="forbid")
    path: Text
    """A routing trace, or ``bundled``."""
    profile: Text | None = None
    """What static-pin and next-layer learn from."""
    model: Text | None = None
    expert_size: Text | None = None
    dtype: Annotated[str, BeforeValidator(one_of(*DTYPES))] | None = None
    """Type of the replayed weights; the model's own where left out."""
    limit: Count | None = None
    """Tokens; the file's ``limit`` where left out."""
    optional: Flag = False
    """Where the file is not there, say so and go on."""
    name: Text | None = None


def _traces(raw: Any) -> list[TraceEntry]:
    """The ``[[trace]]`` tables, each fault said with the number of its table."""
    if not isinstance(raw, list) or not raw or not all(isinstance(x, dict) for x in raw):
        raise ValueError("must be one or more tables: [[trace]]")
    known, made = list(TraceEntry.model_fields), []
    for i, table in enumerate(raw, 1):
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise ValueError(f"table {i}: unknown key {key!r}; {hint}")
        try:
            made.append(TraceEntry.model_validate(table))
        except ValidationError as err:
            fault = err.errors()[0]
            what = fault["msg"].removeprefix("Value error, ")
            raise ValueError(f"table {i}: {fault['loc'][0]}: {what}") from None
    return made


def _mode(value: Any) -> str:
    return one_of(*MODES)(OLD_NAMES.get(value, value) if isinstance(value, str) else value)


class ValidationConfig(BaseModel):
    """The grid is traces x modes x sizes x policies; modes without a pool are run once a trace."""

    model_config = ConfigDict(extra="forbid")
    hardware: Text | None = None
    """The calibration file every prediction is made from (or ``--hardware``)."""
    trace: Annotated[list[TraceEntry], BeforeValidator(_traces)]
    mode: Annotated[list[str], _each(_mode)] = ["expert-cache"]
    policy: Annotated[list[str], _each(text)] = ["lru"]
    slots: Annotated[list[str], _each(pool_size)] = []
    vram: Annotated[list[int], _each(parse_bytes)] = []
    repetitions: Count = 3
    limit: Count | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Repetitions after the first are left out once the measuring has taken this long."""
    pageable: Flag = False
    write_back: Flag = False
    policy_time: Flag = False
    """Count the policies' own host time in the predictions, as measured here before them."""
    behind: Flag = True
    """hybrid: copy in behind what the CPU computed, as `uvmsim.Scenario` has it."""
    prefetch_pieces: Annotated[str | None, BeforeValidator(text)] = None
    """Size of the pieces that prefetches move in, as `uvmsim.Scenario` has it."""
    seed: Annotated[int, BeforeValidator(whole)] = 0
    target_mape: Annotated[float, Field(gt=0)] = 0.05
    """What the report calls good: mean absolute percentage error, worst cell, rank correlation."""
    target_worst: Annotated[float, Field(gt=0)] = 0.15
    target_tau: Annotated[float, Field(ge=-1, le=1)] = 0.9


def load(path: str | Path) -> ValidationConfig:
    """The config at ``path``; paths in it are relative to its folder. Raises `InputError`."""
    from uvmsim.machine.descriptions import read

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file; give a validation's TOML file")
    config = read(file, ValidationConfig)
    home = file.parent
    config.policy = [str(beside(home, "policy", p)) for p in config.policy]
    if config.hardware:
        config.hardware = beside(home, "hardware", config.hardware)
    for entry in config.trace:
        for key in ("path", "profile", "model"):
            value = getattr(entry, key)
            if value is not None and value != BUNDLED:
                setattr(entry, key, beside(home, key, value))
    _check(config, str(path))
    return config


def _check(config: ValidationConfig, where: str) -> None:
    """Refuse now what would be the same mistake in every cell."""
    from uvmsim.policies.registry import parse

    if config.slots and config.vram:
        raise InputError(f"{where}: give slots or vram, not both: each says how large the pool is")
    pooled = {"expert-cache", "managed"} & set(config.mode)
    if pooled and not (config.slots or config.vram):
        raise InputError(f"{where}: mode {pooled.pop()} needs pool sizes: slots = ['25%'] or vram")
    for policy in config.policy:
        try:
            parse(policy)
        except InputError as err:
            raise InputError(f"{where}: policy: {err}") from None
