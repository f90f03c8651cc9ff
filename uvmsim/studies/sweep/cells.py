"""From a config to cells: every combination once, resolved, with a key that is its content."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.policies.kinds import PolicyKind, Spec
from uvmsim.studies.resolve import resolve_model, slots_of
from uvmsim.studies.scenario import Scenario
from uvmsim.studies.sweep.config import SweepConfig, in_words, policies_for
from uvmsim.version import __version__

CHUNK = 64
"""Most cells handed to a worker at once."""


@dataclass(frozen=True)
class TraceFacts:
    """What cells must know of a trace without holding it."""

    path: str | None
    """Path or URL; None for the bundled trace."""
    sha256: str
    info: ModelInfo
    n_layers: int
    """MoE layers with rows."""

    @classmethod
    def of(cls, path: str | None, trace: RoutingTrace) -> TraceFacts:
        return cls(path, trace.sha256, trace.meta.model, len(trace.layers))


@dataclass(frozen=True)
class Cell:
    """One run, resolved; small, so that it travels."""

    key: str
    share: tuple[Any, ...]
    """Cells with the same ``share`` differ in hardware alone and can share their decisions."""
    row: dict[str, Any]
    """The parameter columns (`uvmsim.studies.sweep.rows.PARAMETERS`)."""
    trace: TraceFacts
    limit: int | None
    unit: str
    model: Model | None
    hardware: Hardware
    mechanism: str
    policy: str | None
    slots: int | None
    pool: str
    reset: str
    write_back: bool
    pinned: bool
    ncmoe: int
    seed: int
    profile: TraceFacts | None
    error: str | None = None
    """Why it cannot be run, where that is known already."""
    threshold: int = 51
    ctx: int | None = None
    policy_time: bool = False


@dataclass(frozen=True)
class _Resolved:
    """A model or a machine with what the key and the rows say of it."""

    digest: str
    value: Any
    error: str | None = None


AXES = (
    "trace", "limit", "unit", "profile", "model", "expert_size", "kv_type", "mechanism", "policy",
    "pool", "reset", "write_back", "seed", "policy_time", "ncmoe", "threshold", "slots", "ctx",
    "vram", "reserve", "hardware", "program", "pageable", "ram_bandwidth", "link",
)  # fmt: skip
"""Order of expansion, slowest first: neighbours share as much as they can."""

MACHINE = (
    "slots", "vram", "reserve", "hardware", "program", "pageable", "ram_bandwidth", "link",
)  # fmt: skip
"""Axes that say where a run happens; of these only the room for experts bears on decisions."""


NAMES = (
    "uvmsim", "trace", "profile", "policy", "program", "ram_bytes_per_s", "reserve_bytes", "kv_type",
)  # fmt: skip
"""Columns that say where something comes from, or what is in a digest: what it is has one of its own
in the key."""


def expand(
    config: SweepConfig, facts: dict[str | None, TraceFacts], resolver: Resolver | None = None
) -> list[Cell]:
    """All cells of the grid in a fixed order, each key once.

    ``facts`` has an entry for every trace and profile of the config. Options that do not apply (a
    policy for a mechanism without one, a profile nobody learns from) are dropped, and the cells
    that then coincide are one. ``resolver``: of the same facts, where more than one grid is expanded.
    """
    cells: dict[str, Cell] = {}
    resolve = resolver or Resolver(facts)
    for point in itertools.product(*(_values(config, axis) for axis in AXES)):
        p = dict(zip(AXES, point, strict=True))
        p["mechanism"], p["policy"] = p["mechanism"]
        cell = resolve.cell(p)
        cells.setdefault(cell.key, cell)
    return list(cells.values())


def _values(config: SweepConfig, axis: str) -> list[Any]:
    """An axis; mechanisms come with the policies that are for them."""
    if axis == "mechanism":
        return [(m, p) for m in config.mechanism for p in policies_for(config, m)]
    return [None] if axis == "policy" else getattr(config, axis)


def chunks(cells: list[Cell], most: int = CHUNK) -> Iterator[list[Cell]]:
    """Neighbours that share their decisions, ``most`` at a time."""
    for _, group in itertools.groupby(cells, key=lambda c: c.share):
        while batch := list(itertools.islice(group, most)):
            yield batch


class Resolver:
    """Turns points of the grid into cells; what many points share is resolved once."""

    def __init__(self, facts: dict[str | None, TraceFacts]):
        self.facts = facts
        self.model = functools.cache(self._model)
        self.hardware = functools.cache(self._hardware)
        self.policy = functools.cache(_policy)
        self.machine = functools.cache(Hardware.load)

    def cell(self, p: dict[str, Any]) -> Cell:
        trace, profile = self.facts[p["trace"]], None
        kind = mechanism_named(p["mechanism"])
        decides = kind.decides
        paged = decides is not None and not decides.pooled
        model = self.model(p["trace"], p["model"], p["expert_size"], p["kv_type"], paged)
        machine = self.hardware(
            p["hardware"],
            p["program"],
            p["vram"],
            p["link"],
            p["ram_bandwidth"],
            p["reserve"],
            paged,
        )
        hw: Hardware = machine.value
        m: Model | None = model.value
        policy = slots = None
        asked = policy_digest = pool = reset = None
        error = model.error
        if decides is not None:
            policy = p["policy"]
            spec, policy_digest = self.policy(decides, policy)
        if decides is not None and decides.pooled:
            pool, reset = p["pool"], p["reset"]
            if "profile" in spec.needs and p["profile"]:
                profile = self.facts[p["profile"]]
            asked = p["slots"]
            if asked is not None:
                try:
                    slots = slots_of(asked, trace.n_layers * trace.info.n_experts)
                except InputError as err:
                    error = error or in_words(err)
        n_moe = p["ncmoe"]
        if p["mechanism"] != "cpu-offload":
            n_moe = None
        elif n_moe is None and m is not None:
            n_moe = m.n_layers
        timed = p["policy_time"] if pool else None  # measured of an expert pool's policies
        row = {
            "uvmsim": __version__,
            "trace": trace.path or "bundled",
            "trace_sha256": trace.sha256,
            "trace_model": trace.info.name,
            "limit": p["limit"],
            "unit": p["unit"],
            "model": m.name if m else p["model"],
            "quantisation": m.quantisation if m else None,
            "expert_bytes": max(m.expert_bytes) if m else None,
            "model_bytes": m.total_bytes if m else None,
            "experts": trace.n_layers * trace.info.n_experts,
            "hardware": hw.name,
            "program": hw.engine.name,
            "vram_bytes": hw.vram_bytes,
            "link_bytes_per_s": hw.h2d_bytes_per_s,
            "ram_bytes_per_s": hw.cpu_bytes_per_s,
            "reserve_bytes": hw.reserve_bytes or None,
            "ctx": p["ctx"],
            "kv_type": p["kv_type"],
            "mechanism": p["mechanism"],
            "policy": policy,
            "slots_asked": asked,
            "pool": pool,
            "reset": reset,
            "write_back": p["write_back"],
            "pageable": p["pageable"],
            "ncmoe": n_moe,
            "threshold": p["threshold"] if paged else None,
            "seed": p["seed"] if policy else None,
            "policy_time": timed,
            "profile": profile.path if profile else None,
            "profile_sha256": profile.sha256 if profile else None,
        }
        # Where files lie, and which version ran, does not make another cell.
        told = {k: v for k, v in row.items() if k not in NAMES}
        if not paged:  # rows made before there was a threshold keep their key
            del told["threshold"]
        if p["ctx"] is None:  # and those made before the context could be asked for
            del told["ctx"]
        if not timed:
            del told["policy_time"]
        told |= {"model": model.digest, "hardware": machine.digest, "policy": policy_digest}
        told["slots_asked"] = slots if slots is not None else asked
        key = _digest(told)
        row["cell"] = key
        room = p["slots"] or p["vram"] or p["hardware"]
        share = tuple(v for k, v in p.items() if k not in MACHINE)
        return Cell(
            key=key, share=(*share, room), row=row, trace=trace, limit=p["limit"], unit=p["unit"],
            model=m, hardware=hw,
            mechanism=p["mechanism"], policy=policy, slots=slots, pool=pool or "global",
            reset=reset or "never", write_back=p["write_back"], pinned=not p["pageable"],
            ncmoe=n_moe or 0, seed=p["seed"], profile=profile, error=error, threshold=p["threshold"],
            ctx=p["ctx"], policy_time=bool(timed),
        )  # fmt: skip

    def _model(
        self, trace: str | None, name: str | None, size: str | None, kv: str | None, paged: bool
    ) -> _Resolved:
        facts = self.facts[trace]
        scenario = Scenario(trace, name, size)
        try:
            model = resolve_model(scenario, _Bare(facts), [])  # type: ignore[arg-type]
            if kv is not None:
                model = model.with_kv(kv)
        except InputError as err:
            return _Resolved(_digest([name, size, asdict(facts.info)]), None, in_words(err))
        bare = replace(model, tensors=())
        plain = {k: v for k, v in bare.to_json().items() if k not in ("sources", "summary")}
        if paged:  # only pages care where tensors lie
            return _Resolved(_digest([plain, model.tensors]), model)
        return _Resolved(_digest(plain), bare)

    def _hardware(
        self, name: str, program: str | None, vram: int | None, link: int | None,
        ram: int | None, reserve: int | None, paged: bool,
    ) -> _Resolved:  # fmt: skip
        machine = self.machine(name, program)
        hw = machine.with_(vram=vram, link=link, ram=ram, reserve=reserve)
        # Only pages care what the paging driver costs.
        numbers = {k: v for k, v in hw.numbers().items() if paged or k != "uvm"}
        return _Resolved(_digest(numbers), hw)


class _Bare:
    """As much of a trace as finding its model takes."""

    def __init__(self, facts: TraceFacts):
        self.meta = _BareMeta(facts.info)


@dataclass(frozen=True)
class _BareMeta:
    model: ModelInfo


def _policy(kind: PolicyKind, text: str) -> tuple[Spec, str]:
    """The policy and what its key says: its text, and the source of a user's own file."""
    spec, named = kind.of(text), text
    for file in spec.files:
        source = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        named = named.replace(file, f"{Path(file).name}@{source}")
    return spec, named


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
