"""The cells of a validation: one (trace, mode, pool size, policy) each, as a `Job`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replay.session import layouts_of
from replay.validate.config import BUNDLED, TraceEntry, ValidationConfig
from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.studies.compare import (
    Options,
    load_trace,
    model_json,
    resolve_model,
    slots_of,
    trace_json,
)
from uvmsim.studies.simulate import check_needs
from uvmsim.workload import Workload, build_workload


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
    path = None if entry.path == BUNDLED else entry.path
    trace = load_trace(path, entry.limit or config.limit)
    options = Options(trace=path, model=entry.model, expert_size=entry.expert_size)
    model = resolve_model(options, trace, notes)
    workload = build_workload(trace)
    profile = _profile(entry, workload)
    name = entry.name or Path(entry.path).stem
    if name in grid.traces:
        raise InputError(f"two traces are called {name!r}; give them a name = '...' each")
    grid.traces[name] = {"trace": trace_json(trace, workload), "model": model_json(model)}
    grid.notes += [f"{name}: {n}" for n in notes]
    base = Job(
        workload, as_replayed(model, entry.dtype), hardware, pinned=not config.pageable,
        write_back=config.write_back, seed=config.seed, profile=profile,
    )  # fmt: skip
    for mode in config.mode:
        for policy, size, job in _jobs(config, base, mode, trace, hardware):
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


def _profile(entry: TraceEntry, workload: Workload) -> Workload | None:
    if not entry.profile:
        return None
    learned = build_workload(load_trace(None if entry.profile == BUNDLED else entry.profile, None))
    if (learned.n_layers, learned.n_experts) != (workload.n_layers, workload.n_experts):
        raise InputError(f"{entry.path}: its profile is of a model of another shape")
    return learned


def _jobs(
    config: ValidationConfig, base: Job, mode: str, trace: RoutingTrace, hardware: Hardware
) -> Iterator[tuple[str | None, str | None, Job]]:
    if not (mode == "managed" or mechanism_named(mode).takes_policy):
        yield None, None, base
        return
    total = base.workload.n_layers * base.workload.n_experts
    sizes: list[tuple[str, Job]] = [
        (s, replace(base, slots=slots_of(s, total))) for s in config.slots
    ] + [(f"{v} B", replace(base, hardware=hardware.with_(vram=v))) for v in config.vram]
    for size, sized in sizes:
        for text in config.policy:
            job = replace(sized, policy=parse(text))
            check_needs(job, trace)
            yield job.policy.name if job.policy else text, size, job
