"""An engine's constants kernel by kernel, beside the coarse ones every engine has: its ``[terms]``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uvmsim.machine.llama_terms import QUANTITIES, TERMS, Constants, term_of


class TermsSpec(BaseModel):
    """``[terms]``: nanoseconds a unit of each term of `uvmsim.machine.llama_terms`."""

    model_config = ConfigDict(extra="forbid")
    source: Annotated[str, Field(min_length=1)]
    build: str = ""
    flash_attention: bool = True
    """Whether the build runs it."""
    gpu: bool = True
    """False: a build that computes on the CPU alone."""
    ns: dict[str, Annotated[float, Field(ge=0)]]
    found_on: dict[str, Annotated[int, Field(gt=0)]] = {}
    """What the machine reached when they were found, by quantity; left out: the profile's machine."""
    sharpened: dict[str, dict[str, Annotated[float, Field(gt=0)]]] = {}
    """By model: factors on times, from runs of that model itself."""

    @field_validator("ns")
    @classmethod
    def _known(cls, ns: dict[str, float]) -> dict[str, float]:
        for key in ns:
            if term_of(key) is None:
                near = difflib.get_close_matches(key.partition(".")[0], TERMS, n=1, cutoff=0.5)
                typed = bool(near) and TERMS[near[0]].typed
                hint = f"; did you mean {near[0]}{'.TYPE' if typed else ''}?" if near else ""
                raise ValueError(f"unknown term {key!r}{hint}")
        return ns

    @field_validator("found_on")
    @classmethod
    def _quantities(cls, found: dict[str, Any]) -> dict[str, Any]:
        for key in found:
            if key not in QUANTITIES:
                raise ValueError(f"unknown quantity {key!r}; one of {', '.join(QUANTITIES)}")
        return found


class Reaches(Protocol):
    """A machine (`uvmsim.machine.hardware.Hardware`)."""

    @property
    def memory_bytes_per_s(self) -> int: ...
    @property
    def compute_flops(self) -> int: ...
    @property
    def cpu_bytes_per_s(self) -> int: ...
    @property
    def h2d_bytes_per_s(self) -> int: ...
    @property
    def pageable_h2d_bytes_per_s(self) -> int: ...
    @property
    def zero_copy_bytes_per_s(self) -> int: ...


@dataclass(frozen=True)
class Terms:
    """``ns``: nanoseconds a unit, by term; ``home``: what the machine they were found on reaches."""

    ns: Mapping[str, float]
    source: str
    build: str = ""
    flash_attention: bool = True
    gpu: bool = True
    home: Mapping[str, int] = field(default_factory=dict)
    sharpened: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def from_spec(cls, spec: TermsSpec) -> Terms:
        return cls(
            spec.ns, spec.source, spec.build, spec.flash_attention, spec.gpu, spec.found_on,
            spec.sharpened,
        )  # fmt: skip

    def on(self, machine: Reaches, model: str = "") -> Constants:
        """The constants on a machine: each keeps its share of what the machine reaches, and launches
        and waits stay. ``model`` (its name) takes the factors of its own runs."""
        out: dict[str, float] = {}
        factors = self.sharpened.get(model, {})
        for key, ns in self.ns.items():
            term = term_of(key)
            assert term is not None
            if term.with_ and term.with_ in self.home:
                ns = ns * self.home[term.with_] / getattr(machine, term.with_)
            out[key] = ns * factors.get(term.group(key), 1.0)
        return Constants(out, self.build)

    def to_spec(self) -> dict[str, Any]:
        """As ``[terms]`` of a file has it."""
        made = self.to_json()
        return {"found_on" if k == "home" else k: v for k, v in made.items() if v not in ({}, "")}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: _plain(v) if isinstance(v, Mapping) else v for k, v in vars(self).items()}


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, Mapping) else v for k, v in table.items()}
