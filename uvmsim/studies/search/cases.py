"""The traces of a search: cut in three, on disk where every process finds them, with their pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE
from traces.routing import RoutingTrace
from traces.samples import BUNDLED, BUNDLED_EXPERTS_AS
from uvmsim.runs.job import DoesNotFit, capacities, expert_slots
from uvmsim.studies.compare import BUNDLED_SIZE
from uvmsim.studies.decodings import refuse
from uvmsim.studies.resolve import Resolved, resolve, slots_of
from uvmsim.studies.scenario import Scenario
from uvmsim.studies.search.split import PARTS, counted, split

SPEEDS = ("decode_tokens_per_s", "prefill_tokens_per_s")
FEWEST = 200
"""Tokens of train that the first rung has at least."""
ETA = 3
"""From rung to rung: so many times the tokens, for one in so many candidates."""
RUNGS = 3
"""At most."""


@dataclass(frozen=True)
class Stretch:
    """What a candidate is run on: a file, or the first ``limit`` tokens of it."""

    path: str
    limit: int | None = None


@dataclass(frozen=True)
class Case:
    """One trace of the search."""

    name: str
    asked: str | None
    """As the user named it (TRACE.arrow, if it is in memory alone); None: the bundled one."""
    scenario: Scenario
    """What is asked of it, with the pool sizes as numbers of experts."""
    experts: int
    """Of all layers together."""
    speed: str
    """The measure that `tokens` goes by: of decode where there is any."""
    offers: frozenset[str]
    """What policies may ask of the trace."""
    note: str = ""
    notes: tuple[str, ...] = ()
    by: str = ""
    parts: dict[str, Stretch] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    """Of each part, all phases."""
    rungs: tuple[Stretch, ...] = ()
    test: RoutingTrace | None = field(default=None, repr=False, compare=False)
    """The test part itself."""

    @property
    def slots(self) -> tuple[int, ...]:
        """The pool sizes, in experts."""
        given: Any = self.scenario.slots
        return tuple(int(n) for n in given)

    @property
    def shares(self) -> tuple[str, ...]:
        """The same as shares of all experts."""
        return tuple(f"{100 * n / self.experts:.12g}%" for n in self.slots)


def case_of(s: Scenario, folder: Path) -> Case:
    """A scenario's trace in three files in ``folder``, which are kept from call to call."""
    refuse(s, "a search")
    r = resolve(s)
    cut = split(r.trace)
    case = _bare(s, r)
    counts = int(counted(cut.parts[0]).sum())
    names = {p: folder / f"{case.name}-{r.trace.sha256[:12]}-{p}.arrow" for p in PARTS}
    for path, part in zip(names.values(), cut.parts, strict=True):
        _keep(part, path)
    parts = {name: Stretch(str(path)) for name, path in names.items()}
    n_rungs = 1 + sum(counts / ETA**i >= FEWEST for i in range(1, RUNGS))
    rungs = [
        Stretch(parts["train"].path, _tokens_with(cut.parts[0], counts // ETA**i))
        for i in range(n_rungs - 1, 0, -1)
    ]
    return replace(
        case, note=cut.note, by=cut.by, test=cut.parts[-1], parts=parts, rungs=(*rungs, parts["train"]),
        tokens={p: t.n_tokens for p, t in zip(PARTS, cut.parts, strict=True)},
    )  # fmt: skip


def other_case(s: Scenario, shares: Sequence[str], folder: Path) -> Case:
    """A trace that nothing is chosen by, whole, with pools of the same shares."""
    r = resolve(s.with_(slots=shares))
    case = _bare(s.with_(slots=shares), r)
    path = folder / f"{case.name}-{r.trace.sha256[:12]}.arrow"
    _keep(r.trace, path)
    return replace(
        case, parts={"transfer": Stretch(str(path))}, tokens={"transfer": r.trace.n_tokens}
    )


def _bare(s: Scenario, r: Resolved) -> Case:
    """Without parts: sizes are resolved on all of the trace, so that all parts have the same pool."""
    given: Any = s.slots or ((BUNDLED_SIZE,) if s.trace is None and s.vram is None else ())
    try:
        sizes = [slots_of(x, r.experts) for x in given] or [expert_slots(r.base)]
        for n in sizes:
            capacities(replace(r.base, slots=n))
    except DoesNotFit as err:
        raise InputError(f"{r.hardware.name}: {err} do not fit; give `slots`") from None
    size = s.expert_size
    if s.trace is None and size is None and s.model is None:
        size = BUNDLED_EXPERTS_AS
    decode = bool((np.asarray(r.trace.phase) == DECODE).any())
    path = r.trace.path
    return Case(
        name=path.stem if path else "trace",
        asked=None if s.trace is None or path == BUNDLED else str(path or "TRACE.arrow"),
        scenario=s.with_(
            trace=None, slots=[str(n) for n in dict.fromkeys(sizes)], expert_size=size, limit=None
        ),
        experts=r.experts,
        speed=SPEEDS[0] if decode else SPEEDS[1],
        offers=r.trace.capabilities | ({"profile"} if s.profile else frozenset()),
        notes=tuple(r.notes),
    )


def _keep(t: RoutingTrace, path: Path) -> None:
    """Write a trace, unless it is there; its name has its hash."""
    if path.is_file():
        return
    try:
        t.save(path)
    except OSError as err:
        raise InputError(f"{path}: cannot be written ({err.strerror})") from None


def _tokens_with(t: RoutingTrace, n: int) -> int:
    """First tokens of a trace that hold ``n`` of those counted."""
    return int(np.searchsorted(np.cumsum(counted(t)), n)) + 1
