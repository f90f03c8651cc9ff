"""The TOML file of a validation of llama.cpp: which models, in which modes, on which tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from replay.llama_cpp.request import Test
from traces.errors import InputError
from uvmsim.machine.descriptions import read
from uvmsim.studies.sweep.config import beside

ENGINE = "llama.cpp"
MODES = ("resident", "ncmoe", "cache", "cache-mapped", "managed", "preferred-host")
SIZED = ("ncmoe", "cache", "cache-mapped")
"""Modes that have sizes (``at``)."""
_TEST = re.compile(r"(pp|tg)(\d+)(?:@ub(\d+)|@d(\d+))?")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


class NamedTest(BaseModel):
    """``pp512``, ``pp512@ub128`` (its micro-batch), ``tg64``, ``tg64@d4096`` (at a depth)."""

    name: str
    kind: Literal["pp", "tg"]
    n: int
    ubatch: int = 512
    depth: int = 0

    def test(self, repetitions: int) -> Test:
        """As the worker runs it."""
        return Test(self.kind, self.n, self.depth, repetitions)


def _named(value: Any) -> NamedTest:
    m = _TEST.fullmatch(value) if isinstance(value, str) else None
    if m is None or int(m[2]) < 1 or (m[3] and m[1] == "tg") or (m[4] and m[1] == "pp"):
        raise ValueError(f"{value!r}: write it like pp512, pp512@ub128, tg64 or tg64@d4096")
    if m[3] and int(m[3]) < 1:
        raise ValueError(f"{value!r}: a micro-batch has at least 1 token")
    kind: Literal["pp", "tg"] = "pp" if m[1] == "pp" else "tg"
    return NamedTest(
        name=value, kind=kind, n=int(m[2]), ubatch=int(m[3] or 512), depth=int(m[4] or 0)
    )


def _tests(value: Any) -> list[NamedTest]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of tests such as ['pp512', 'tg64']")
    return [x if isinstance(x, NamedTest) else _named(x) for x in value]


def _at(value: Any) -> list[str | int]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of numbers or shares such as [8, '50%']")
    for x in value:
        share = _SHARE.fullmatch(x) if isinstance(x, str) else None
        good = isinstance(x, int) and not isinstance(x, bool) and x > 0
        if not good and not (share and 0 < float(share[1]) <= 100):
            raise ValueError(f"{x!r}: a number above 0, or a share such as '50%'")
    return value


Tests = Annotated[list[NamedTest], BeforeValidator(_tests)]


class ModeEntry(BaseModel):
    """``[modes.NAME]``: sizes where the mode has them, and tests other than the file's."""

    model_config = ConfigDict(extra="forbid")
    at: Annotated[list[str | int], BeforeValidator(_at)] = []
    """``ncmoe``: blocks (or a share of those with experts); caches: a share of all experts, or MiB."""
    tests: Tests | None = None


class LlamaValidation(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")
    engine: Literal["llama.cpp"]
    hardware: str | None = None
    """The calibration that every prediction is made from (or ``--hardware``)."""
    library: str | None = None
    """A libllama or its folder (or ``--lib``); left out: the capture extra's, on the CPU."""
    model: Annotated[list[str], Field(min_length=1)]
    """GGUF files."""
    tests: Tests = Field(default_factory=lambda: _tests(["pp512", "tg64"]))
    modes: Annotated[dict[str, ModeEntry], Field(min_length=1)] = {"resident": ModeEntry()}
    repetitions: Annotated[int, Field(gt=0, le=100)] = 5
    threads: Annotated[int, Field(gt=0)] | None = None
    passive: bool = False
    """OpenMP's threads sleep at barriers: for a machine that does other work too. llama.cpp's own
    programs spin."""
    seconds: Annotated[float, Field(gt=0)] = 120.0
    """For one process of llama.cpp; one that takes longer has failed."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """After which no further cell begins."""
    seed: Annotated[int, Field(ge=0)] = 0
    target_tg: Annotated[float, Field(gt=0)] = 0.10
    target_tg_worst: Annotated[float, Field(gt=0)] = 0.25
    target_pp: Annotated[float, Field(gt=0)] = 0.15
    target_tau: Annotated[float, Field(ge=-1, le=1)] = 0.9
    target_regret: Annotated[float, Field(gt=0)] = 0.03
    target_regret_worst: Annotated[float, Field(gt=0)] = 0.10


def engine_of(path: str | Path) -> str | None:
    """The ``engine`` a validation's file names; None where it names none, or is no TOML."""
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("engine")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def load(path: str | Path) -> LlamaValidation:
    """The config at ``path``; paths in it are relative to its folder. Raises `InputError`."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file; give a validation's TOML file")
    config = read(file, LlamaValidation)
    for name, entry in config.modes.items():
        if name not in MODES:
            raise InputError(f"{path}: modes.{name}: must be one of {', '.join(MODES)}")
        if (name in SIZED) != bool(entry.at):
            need = "needs sizes: at = ['50%']" if name in SIZED else "has no sizes: leave out `at`"
            raise InputError(f"{path}: modes.{name}: {need}")
    if config.hardware:
        config.hardware = beside(file.parent, "hardware", config.hardware)
    config.model = [str(beside(file.parent, "model", m)) for m in config.model]
    if config.library and (file.parent / config.library).exists():
        config.library = str(file.parent / config.library)
    return config
