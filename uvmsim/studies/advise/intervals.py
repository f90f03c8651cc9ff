"""How far a predicted speed may be off: from the errors of validations, kept in errors.toml."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from uvmsim.machine.hardware import Hardware

FILE = Path(__file__).with_name("errors.toml")
ANY = "any"
BEARING = (
    "memory_bytes_per_s", "compute_flops", "h2d_bytes_per_s", "pageable_h2d_bytes_per_s",
    "cpu_bytes_per_s",
)  # fmt: skip
"""What of a machine a speed of llama.cpp hangs on."""


class Row(BaseModel):
    """Quantiles of measured over predicted speed in some cells of a validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    engine: str
    kind: str
    phase: Literal["prefill", "decode", "any"]
    calibrated: bool
    low: float
    high: float
    coverage: float
    """Share of the cells inside; 0: none is claimed."""
    cells: int
    source: str

    @model_validator(mode="after")
    def _ordered(self) -> Row:
        if not 0 < self.low <= self.high:
            raise ValueError("low must be above 0 and at most high")
        return self

    def words(self) -> str:
        """What is claimed, and where it is from."""
        if not self.coverage:
            return f"{self.source}; no coverage is claimed"
        return f"{self.coverage:.0%} of {self.cells} cells inside; {self.source}"


@functools.cache
def rows() -> tuple[Row, ...]:
    """All rows that ship."""
    found = tomllib.loads(FILE.read_text(encoding="utf-8"))["rows"]
    return tuple(Row.model_validate(row) for row in found)


def calibrated(hw: Hardware) -> bool:
    """Whether what speeds hang on was found on this machine: no estimate, nothing from another. An
    engine's terms are of this machine where it reaches what theirs did."""
    terms = hw.engine.terms
    if terms is not None:
        same = all(getattr(hw, k) == there for k, there in terms.home.items())
        return same and terms.source.startswith("measured")
    sources = [hw.sources.get(k, "") for k in BEARING] + list(hw.engine.sources.values())
    guessed = ("estimate", "scaled from", "given by the user")
    return not any(s.startswith(guessed) for s in sources)


def row_for(hw: Hardware, kind: str, phase: str) -> Row:
    """The most particular row for a machine's engine, a kind of configuration and a phase.

    An engine's own validation counts whatever its numbers are called; a machine without calibration
    takes the wider rows.
    """
    own = calibrated(hw)

    def fits(row: Row) -> bool:
        return (
            row.engine in (ANY, hw.engine.name) and row.kind in (ANY, kind)
            and row.phase in (ANY, phase) and row.calibrated == own
        )  # fmt: skip

    found = [row for row in rows() if fits(row)]
    return max(found, key=lambda r: (r.engine != ANY, r.kind != ANY, r.phase != ANY))


def interval(speed: float | None, row: Row) -> dict[str, Any] | None:
    """A speed's bounds."""
    return None if speed is None else {"low": speed * row.low, "high": speed * row.high}
