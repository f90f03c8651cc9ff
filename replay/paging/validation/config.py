"""The TOML file of a validation with ``mode = "paging"``."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from traces.errors import InputError
from uvmsim.machine.descriptions import read

MODE = "paging"
Some = Annotated[int, Field(ge=1)]


class EngineRun(BaseModel):
    """``[[engine]]``: the replay engine's kernels on random routing, every expert away at first."""

    model_config = ConfigDict(extra="forbid")
    name: str
    expert_bytes: Some
    layers: Some = 8
    n_experts: Some = 32
    steps: Some = 24
    dtype: Literal["fp32", "fp16", "bf16", "mxfp4"] = "fp16"
    dense_bytes: Some = 8_000_000


class LlamaRun(BaseModel):
    """``[[llama]]``: llama.cpp on random tokens, its managed memory sent to the host before."""

    model_config = ConfigDict(extra="forbid")
    name: str
    model: str
    prompt: Some = 8
    """Tokens of the prompt."""
    predict: Annotated[int, Field(ge=0)] = 64
    seed: int = 0
    program: str = "llama.cpp-h100"
    """The engine profile whose kernels' times are taken."""


def _tables(kind: type[BaseModel]) -> BeforeValidator:
    """A list of tables, each fault said with the number of its table."""

    def checked(raw: Any) -> list[BaseModel]:
        if not isinstance(raw, list) or not all(isinstance(x, dict | kind) for x in raw):
            raise ValueError("must be tables, each under its name in double brackets")
        made = []
        for i, table in enumerate(raw, 1):
            for key in table if isinstance(table, dict) else ():
                if key not in kind.model_fields:
                    near = difflib.get_close_matches(key, kind.model_fields, 1)
                    known = f"known keys: {', '.join(kind.model_fields)}"
                    hint = f"did you mean {near[0]!r}?" if near else known
                    raise ValueError(f"table {i}: unknown key {key!r}; {hint}")
            try:
                made.append(kind.model_validate(table))
            except ValidationError as err:
                fault = err.errors()[0]
                where = ".".join(str(x) for x in fault["loc"])
                what = fault["msg"].removeprefix("Value error, ")
                raise ValueError(f"table {i}: {where}: {what}") from None
        return made

    return BeforeValidator(checked)


class PagingConfig(BaseModel):
    """What is run."""

    model_config = ConfigDict(extra="forbid")
    mode: Literal["paging"]
    hardware: str | None = None
    engine: Annotated[list[EngineRun], _tables(EngineRun)] = []
    llama: Annotated[list[LlamaRun], _tables(LlamaRun)] = []
    repetitions: Some = 3
    """Cold runs without the driver's events; one more has them."""
    target_bytes: float = 0.02
    target_counts: float = 0.15
    target_time: float = 0.12
    target_curve: float = 0.20
    """What the report calls good, as relative errors: bytes by cause; pieces, services and batches; the
    time of a run; the time until any of its steps."""


def mode_of(path: str | Path) -> Any:
    """What ``mode`` the file at ``path`` names, None where it cannot be read."""
    try:
        with Path(path).open("rb") as f:
            return tomllib.load(f).get("mode")
    except (OSError, tomllib.TOMLDecodeError):
        return None


def load(path: str | Path) -> PagingConfig:
    """Paths in the file are relative to its folder. Raises `InputError`."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file; give a validation's TOML file")
    config = read(file, PagingConfig)
    names = [*(r.name for r in config.engine), *(r.name for r in config.llama)]
    if not names:
        raise InputError(f"{path}: runs nothing; give [[engine]] or [[llama]] tables")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two runs have one name")
    for run in config.llama:
        if not Path(run.model).is_absolute():
            run.model = str(file.parent / run.model)
    if config.hardware and not Path(config.hardware).is_absolute() and "/" in config.hardware:
        config.hardware = str(file.parent / config.hardware)
    return config
