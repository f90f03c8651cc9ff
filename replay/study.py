"""Many replays on one trace: what `uvmsim replay` does, as a library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import uvmsim
from replay.backend import backend as backend_named
from replay.backend.base import Backend
from replay.modes import mode_named
from replay.session import How, Session
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.compare import (
    Options,
    load_trace,
    model_json,
    resolve_model,
    slots_of,
    trace_json,
    workloads_of,
)
from uvmsim.studies.simulate import check_needs, simulate
from uvmsim.workload import Workload

POLICIES = ("lru",)
HARDWARE = "h100"
SLOTS = "25%"
"""Pool where neither slots nor memory is given."""
WITH_POLICY = ("expert-cache", "managed")


@dataclass(frozen=True)
class Study:
    """The runs and what they share."""

    options: Options
    how: How
    backend: str
    trace: RoutingTrace
    workload: Workload
    model: Model
    hardware: Hardware
    runs: list[Outcome]
    notes: list[str]

    @property
    def problems(self) -> list[str]:
        """Why runs are void, one line each."""
        return [f"{r.policy or r.mechanism}: {p}" for r in self.runs for p in r.problems]

    def to_json(self) -> dict[str, Any]:
        """One object of plain JSON types, as `uvmsim compare --json` has it, and measured times."""
        return {
            "uvmsim": uvmsim.__version__,
            "backend": self.backend,
            "trace": trace_json(self.trace, self.workload),
            "model": model_json(self.model),
            "hardware": {"name": self.hardware.name, "vram_bytes": self.hardware.vram_bytes},
            "options": self.options.to_json(),
            "how": {k: v for k, v in vars(self.how).items() if v is not None},
            "notes": self.notes,
            "runs": [r.to_json() for r in self.runs],
        }


def study(
    options: Options,
    how: How,
    backend: str | Backend = "cuda",
    progress: Callable[[int, int, str], None] | None = None,
) -> Study:
    """Replay every mode (``options.mechanisms``) and policy at every pool size.

    The counters of each run are compared with the simulator's; a difference voids the run, as a
    wrong output does. Raises `InputError`; ``progress`` as in `uvmsim.studies.compare.compare`.
    """
    modes = [mode_named(mode) for mode in options.mechanisms]
    specs = [parse(p) for p in options.named]
    notes: list[str] = []
    device = backend_named(backend) if isinstance(backend, str) else backend
    trace = load_trace(options.trace, options.limit)
    hardware = Hardware.load(options.hardware).with_(vram=options.vram, link=options.link)
    if device.name == "host" and not (options.model or options.expert_size):
        model = Model.from_info(trace.meta.model)
    else:
        model = resolve_model(options, trace, notes)
    workload, profile = workloads_of(options, trace, model)
    total = workload.n_layers * workload.n_experts
    given = options.slots or (() if options.vram else (SLOTS,))
    sizes: list[int | None] = [slots_of(s, total) for s in given]
    sizes = sizes or [None]
    base = Job(
        workload, model, hardware, pool=options.pool, reset=options.reset,
        write_back=options.write_back, pinned=not options.pageable, seed=options.seed,
        profile=profile,
    )  # fmt: skip
    todo: list[tuple[Job, str]] = []
    for mode in modes:
        if mode not in WITH_POLICY:
            todo.append((base, mode))
            continue
        for size in sizes:
            for spec in specs:
                job = replace(base, policy=spec, slots=size)
                check_needs(job, trace)
                todo.append((job, mode))
    runs = []
    with Session(device, how) as session:
        for i, (job, mode) in enumerate(todo):
            if progress:
                progress(i, len(todo), job.policy.name if job.policy else mode)
            run = session.run(job, mode)
            _compare_counters(run)
            runs.append(run)
    if progress:
        progress(len(todo), len(todo), "")
    return Study(options, how, device.name, trace, workload, model, hardware, runs, notes)


COMPARED = (
    "slots", "accesses", "hits", "misses", "hit_rate_by_layer", "prefill_hit_rate",
    "decode_hit_rate", "evictions", "bytes_h2d", "bytes_d2h", "bytes_prefetched",
)  # fmt: skip


def _compare_counters(run: Outcome) -> None:
    """Void a run whose counters are not the simulator's."""
    if run.does_not_fit is not None:
        return
    # A paged run keeps the expert cache's budget; its bytes are the driver's business.
    paged = run.mechanism == "managed"
    want = simulate(run.job, "expert-cache" if paged else run.mechanism).to_json()
    got = run.to_json()
    keys = [k for k in COMPARED if not (paged and k.startswith("bytes"))]
    differ = [k for k in keys if got[k] != want.get(k)]
    for key in ("issued", "wasted"):
        if got["prefetch"][key] != want["prefetch"][key]:
            differ.append(f"prefetch {key}")
    if differ:
        run.problems.append(f"counters differ from the simulator's: {', '.join(differ)}")
