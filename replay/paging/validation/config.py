"""The TOML file of a validation with ``mode = "paging"``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class PagingConfig(BaseModel):
    """What is run."""

    model_config = ConfigDict(extra="forbid")
    mode: Literal["paging"]
    hardware: str | None = None
    engine: list[EngineRun] = []
    llama: list[LlamaRun] = []
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
