"""The cells of a validation: one (trace, mode, pool size, policy) each, as a `Job`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replay.session import layouts_of
from replay.study import WITH_POLICY, decided_by
from replay.validate.config import BUNDLED, TraceEntry, ValidationConfig
from traces.errors import InputError
from traces.samples import BUNDLED as BUNDLED_FILE
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.kinds import EXPERTS
from uvmsim.runs.job import Job
from uvmsim.studies.resolve import (
    Resolved,
    base_job,
    jobs,
    load_trace,
    model_json,
    profile_of,
    resolve_model,
    slots_of,
    trace_json,
)
from uvmsim.studies.scenario import Scenario
from uvmsim.workload import build_workload


@dataclass(frozen=True)
class Cell:
    """One thing to predict and to run."""

    key: str
    """Unique in the grid, made of what it is."""
    trace: str
    mode: str
    policy: str | None
    size: str | None
    """Pool size as the config gives it."""
    job: Job
    dtype: str | None = None
    """Type of the replayed weights; None: the model's own."""

    def about(self) -> dict[str, Any]:
        """What a report says of the cell."""
        return {
            "cell": self.key, "trace": self.trace, "mode": self.mode, "policy": self.policy,
            "size": self.size,
        }  # fmt: skip


@dataclass
class Grid:
    """All cells, in the order they are run, and what they share."""

    cells: list[Cell]
    traces: dict[str, dict[str, Any]]
    """By trace name: what was read, and the model it is run as."""
    notes: list[str]


def build(config: ValidationConfig, hardware: Hardware) -> Grid:
    """Read the traces and make every cell. Raises `InputError`."""
    grid = Grid([], {}, [])
    for entry in config.trace:
        if entry.path != BUNDLED and entry.optional and not Path(entry.path).exists():
            grid.notes.append(f"trace {Path(entry.path).name} is not there; left out")
            continue
        _add(grid, config, entry, hardware)
    if not grid.cells:
        raise InputError("none of the traces is there, so there is nothing to validate")
    return grid


def _add(grid: Grid, config: ValidationConfig, entry: TraceEntry, hardware: Hardware) -> None:
    notes: list[str] = []
    s = Scenario(
        None if entry.path == BUNDLED else entry.path, entry.model, entry.expert_size,
        profile=BUNDLED_FILE if entry.profile == BUNDLED else entry.profile,
        limit=entry.limit or config.limit, mechanisms=config.mode, slots=config.slots,
        policies=config.policy, pageable=config.pageable, write_back=config.write_back,
        seed=config.seed, policy_time=config.policy_time,
        prefetch_pieces=config.prefetch_pieces, behind=config.behind,
    )  # fmt: skip
    trace = load_trace(s.trace, s.limit)
    model = resolve_model(s, trace, notes)
    workload = build_workload(trace)
    profile = profile_of(s, workload)
    name = entry.name or Path(entry.path).stem
    if name in grid.traces:
        raise InputError(f"two traces are called {name!r}; give them a name = '...' each")
    grid.traces[name] = {"trace": trace_json(trace, workload), "model": model_json(model)}
    grid.notes += [f"{name}: {n}" for n in notes]
    replayed = as_replayed(model, entry.dtype)
    base = replace(base_job(s, workload, replayed, hardware, profile), ncmoe=0)
    r = Resolved(trace, workload, replayed, hardware, base, notes)
    for mode in config.mode:
        for size, job in _jobs(config, r, mode):
            policy = job.policy.name if job.policy else None
            key = "/".join(x for x in (name, mode, size, policy) if x)
            grid.cells.append(Cell(key, name, mode, policy, size, job, entry.dtype))


def as_replayed(model: Model, dtype: str | None) -> Model:
    """The model with the arithmetic that the engine does: dense weights are read and not multiplied,
    and an expert of some bytes has as many weights as its kernel's type makes of them."""
    layouts = layouts_of(model, dtype)
    return replace(
        model, expert_params=tuple(3 * x.weights for x in layouts),
        dense_params=(0,) * model.n_layers, output_params=0,
    )  # fmt: skip


def _jobs(config: ValidationConfig, r: Resolved, mode: str) -> Iterator[tuple[str | None, Job]]:
    """The jobs of a mode, each with its pool's size as the config gives it."""
    if mode not in WITH_POLICY:
        yield None, r.base
        return
    specs = {EXPERTS.noun: [EXPERTS.of(p) for p in config.policy]}
    for size in config.slots:
        for job, _ in jobs(r, [mode], [slots_of(size, r.experts)], specs, decided_by):
            yield size, job
    for vram in config.vram:
        smaller = replace(r, base=replace(r.base, hardware=r.hardware.with_(vram=vram)))
        for job, _ in jobs(smaller, [mode], [None], specs, decided_by):
            yield f"{vram} B", job
