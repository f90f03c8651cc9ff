"""Many replays on one trace: what `uvmsim replay` does, as a library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from replay.backend import backend as backend_named
from replay.backend.base import Backend
from replay.modes import mode_named
from replay.session import How, Session
from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.kinds import EXPERTS, PolicyKind
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.answer import Answer, flat
from uvmsim.studies.resolve import jobs, label, model_json, resolve, slots_of, trace_json
from uvmsim.studies.scenario import Progress, Scenario, scenario_of
from uvmsim.studies.simulate import simulate
from uvmsim.studies.states import with_states
from uvmsim.version import __version__
from uvmsim.workload import Workload

POLICIES = ("lru",)
HARDWARE = "h100"
SLOTS = "25%"
"""Pool where neither slots nor memory is given."""
WITH_POLICY = ("expert-cache", "hybrid", "managed")


def decided_by(mode: str) -> PolicyKind | None:
    """The kind of policy that a mode asks."""
    return EXPERTS if mode in WITH_POLICY else None


@dataclass(frozen=True, repr=False)
class Replays(Answer):
    """The runs and what they share."""

    printer: ClassVar[str] = "replay.report:print_study"

    scenario: Scenario
    how: How
    backend: str
    trace: RoutingTrace
    workload: Workload
    model: Model
    hardware: Hardware
    runs: list[Outcome]
    notes: list[str]

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """One a mode, size and policy."""
        return self.runs

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a run; columns as the keys of `to_json`, nested names joined by ``_``."""
        return [flat(r.to_json()) for r in self.runs]

    @property
    def problems(self) -> list[str]:
        """Why runs are void, one line each."""
        return [f"{r.policy or r.mechanism}: {p}" for r in self.runs for p in r.problems]

    def to_json(self) -> dict[str, Any]:
        """One object of plain JSON types, as `uvmsim compare --json` has it, and measured times."""
        return {
            "uvmsim": __version__,
            "backend": self.backend,
            "trace": trace_json(self.trace, self.workload),
            "model": model_json(self.model),
            "hardware": {"name": self.hardware.name, "vram_bytes": self.hardware.vram_bytes},
            "options": self.scenario.to_json(),
            "how": {k: _plain(v) for k, v in vars(self.how).items() if v is not None},
            "notes": self.notes,
            "runs": [r.to_json() for r in self.runs],
        }


def replay(
    scenario: Scenario | Any = None,
    *,
    backend: str | Backend = "cuda",
    how: How | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Replays:
    """Replay every mode (``mechanisms``) and policy of a scenario at every pool size.

    ``scenario`` may be a trace alone (a path, a `RoutingTrace`; None: the bundled). What it leaves out:
    ``policies`` lru, ``slots`` 25 % where no memory is given, ``hardware`` h100. ``backend`` is
    ``"cuda"`` or ``"host"`` (the same engine on NumPy, no meaningful times); ``how`` a
    `replay.session.How`; ``changes`` are fields of the scenario that are other than in it, such as
    ``limit=64``.

    The counters of each run are compared with the simulator's; a difference voids the run, as a
    wrong output does. ``progress`` as in `uvmsim.compare`. Raises `InputError`.
    """
    s = (
        scenario_of(scenario)
        .with_(**changes)
        .or_else(hardware=HARDWARE, mechanisms="expert-cache", pool="global", policies=POLICIES)
    )
    if s.neighbour:
        raise InputError(": a replay runs one model; uvmsim.compare takes neighbours", "neighbour")
    wanted: Any = s.mechanisms
    modes = [mode_named(mode) for mode in wanted]
    named: Any = s.policies
    specs = [EXPERTS.of(p) for p in named]
    device = backend_named(backend) if isinstance(backend, str) else backend
    how = how or How()
    if s.draft_cost is not None:
        raise InputError(": a replay runs no drafter, so it costs nothing there", "draft_cost")
    if how.tier_file is not None and s.tier is None:
        raise InputError(": is where a `tier` is; give that, too", argument="tier_file")
    r = resolve(s, own_sizes=device.name == "host")
    given: Any = s.slots or (() if s.vram else (SLOTS,))
    sizes: list[int | None] = [slots_of(x, r.experts) for x in given] or [None]
    if s.state_out is not None:
        raise InputError(": a replay saves nothing; uvmsim.compare does", argument="state_out")
    todo = list(jobs(r, modes, sizes, {EXPERTS.noun: specs}, decided_by))
    todo = with_states(s, r, todo, cold=False)
    runs = []
    with Session(device, how) as session:
        for i, (job, mode) in enumerate(todo):
            if progress:
                progress(i, len(todo), label(job, mode))
            run = session.run(job, mode)
            _compare_counters(run)
            runs.append(run)
    if progress:
        progress(len(todo), len(todo), "")
    return Replays(s, how, device.name, r.trace, r.workload, r.model, r.hardware, runs, r.notes)


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


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
    if got.get("ram") != want.get("ram"):
        differ.append("ram")
    if got.get("misses_by") != want.get("misses_by"):
        differ.append("misses_by")
    for key in ("issued", "wasted"):
        if got["prefetch"][key] != want["prefetch"][key]:
            differ.append(f"prefetch {key}")
    if differ:
        run.problems.append(f"counters differ from the simulator's: {', '.join(differ)}")
