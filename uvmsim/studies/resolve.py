"""From a question to what is run: the trace, model and machine it names, and its jobs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from traces.errors import InputError
from traces.routing import RoutingTrace, open_routing
from traces.samples import BUNDLED, BUNDLED_EXPERTS_AS
from uvmsim.core.units import format_bytes, parse_bandwidth, parse_bytes
from uvmsim.experts.tenants import together
from uvmsim.machine.engine import EngineProfile
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.peer import Peer
from uvmsim.machine.tier import MMAP, Tier
from uvmsim.mechanisms import mechanism
from uvmsim.policies.kinds import PolicyKind, Spec
from uvmsim.policies.registry import PolicySpec, parse
from uvmsim.runs.decoding import Decoding
from uvmsim.runs.job import Job, Tenants
from uvmsim.runs.splits import LAYERS
from uvmsim.studies.decodings import decodings_of, job_of, notes_of, with_cost
from uvmsim.studies.neighbours import budgets_of, neighbour_of, share_of
from uvmsim.studies.scenario import DEFAULT_HARDWARE, Scenario, plain, trace_name
from uvmsim.studies.simulate import check_needs
from uvmsim.workload import Workload, build_workload

T = TypeVar("T")


@dataclass(frozen=True)
class Resolved:
    """What the runs of a scenario share."""

    trace: RoutingTrace
    workload: Workload
    model: Model
    hardware: Hardware
    base: Job
    """Without a policy and without a pool size."""
    notes: list[str]
    machines: tuple[Hardware, ...] = ()
    """All that were named; the first is ``hardware``."""
    ncmoes: tuple[int, ...] = ()
    """cpu-offload: all numbers of layers that were named; none: the base's."""
    seed: int = 0
    decodings: tuple[Decoding, ...] = ()
    """All batches with all drafts that were named; none: the trace's own steps."""
    plain: Job | None = None
    """The base of the trace as it was recorded, where this is of one decoded otherwise."""

    def on(self, hardware: Hardware) -> Resolved:
        """The same on another machine."""
        base = replace(self.base, hardware=hardware)
        if self.plain is not None and base.decoding is not None:
            plain = replace(self.plain, hardware=hardware)
            base = replace(base, workload=with_cost(base.workload, plain, base.decoding))
        return replace(self, hardware=hardware, base=base)

    def decoded(self, d: Decoding) -> Resolved:
        """The same with the trace's tokens in other steps; ``notes`` gets what there is to say of them.
        Raises `InputError`."""
        trace, notes = d.of(self.trace, self.seed)
        self.notes.extend(n for n in notes if n not in self.notes)
        same = trace is self.trace
        workload = self.workload if same else build_workload(trace, self.workload.unit)
        base = job_of(self.base, d, workload)
        return replace(self, trace=trace, workload=base.workload, base=base, plain=self.base)

    @property
    def experts(self) -> int:
        """Of all layers together, and of all models."""
        if self.base.tenants is not None:
            return sum(w.n_layers * w.n_experts for w in self.base.tenants.workloads)
        return self.workload.n_layers * self.workload.n_experts


def resolve(s: Scenario, *, own_sizes: bool = False, several: bool = False) -> Resolved:
    """Read what ``s`` names. Raises `InputError`.

    ``several``: whether the study takes several machines, and several numbers of layers on the CPU.

    ``own_sizes``: where neither model nor expert size is given, experts have the bytes that the
    trace's own model has, small as they may be.
    """
    notes: list[str] = []
    trace = load_trace(s.trace, s.limit)
    if not several:
        one_of_each(s)
    machines = machines_of(s)
    hardware = machines[0]
    if own_sizes and not (s.model or s.expert_size):
        model = Model.from_info(trace.meta.model)
    else:
        model = resolve_model(s, trace, notes)
    if s.kv_type:
        model = model.with_kv(s.kv_type)
    workload, profile = workloads_of(s, trace, model)
    base = base_job(s, workload, model, hardware, profile)
    if s.neighbour:
        base = with_neighbours(s, trace, base)
        workload, model = base.workload, base.model
    ncmoes = s.ncmoe if isinstance(s.ncmoe, tuple) else ()
    found = decodings_of(s)
    notes += notes_of(found)
    r = Resolved(
        trace, workload, model, hardware, base, notes, machines, ncmoes, s.seed, tuple(found)
    )
    return r if several or not found else r.decoded(found[0])


def base_job(
    s: Scenario, workload: Workload, model: Model, hardware: Hardware, profile: Workload | None
) -> Job:
    """The job of a scenario without a policy and without a pool size; of several ``ncmoe`` the
    first."""
    given: Any = s.ncmoe[0] if isinstance(s.ncmoe, tuple) else s.ncmoe
    tier, tier_policy = tier_of(s, hardware)
    mapped = tier is not None and tier.mode == MMAP
    return Job(
        workload, model, hardware, pool=s.pool or "global", reset=s.reset,
        write_back=s.write_back, pinned=not (s.pageable or mapped), seed=s.seed, profile=profile,
        ncmoe=model.n_layers if given is None else given, ctx=s.ctx, threshold=s.threshold,
        scratch=s.scratch, behind=s.behind is not False, policy_time=bool(s.policy_time),
        prefetch_pieces=pieces_of(s), tier=tier, tier_policy=tier_policy,
        gpus=s.gpus or 1, split=s.split or LAYERS,
        peer=None if s.peer is None else Peer.of(s.peer, hardware),
        shared_link=bool(s.shared_link),
    )  # fmt: skip


def tier_of(s: Scenario, hardware: Hardware) -> tuple[Tier | None, PolicySpec | None]:
    """The disk below host memory with host memory's policy; None where everything is in host memory."""
    if s.tier is None:
        return None, None
    ram = _parsed("ram", parse_bytes, s.ram)
    tier = _parsed("tier", lambda text: Tier.parse(text, ram, hardware.disk), s.tier)
    named: Any = s.tier_policy
    policy = None if named is None else _parsed("tier_policy", parse, named)
    return tier, policy


def with_neighbours(s: Scenario, trace: RoutingTrace, base: Job) -> Job:
    """The job of a scenario's model and its neighbours. Raises `InputError`."""
    told: Any = s.neighbour
    names, workloads, models = [Path(trace.path or "trace").name], [base.workload], [base.model]
    shares: list[float | None] = [None]
    for text in told:
        path, options = neighbour_of(text)
        other = load_trace(path, s.limit)
        own = s.with_(
            trace=path, model=options.get("model"), neighbour=None, budget=None,
            expert_size=None if "model" in options else s.expert_size,
        )  # fmt: skip
        model = resolve_model(own, other, [])
        models.append(model.with_kv(s.kv_type) if s.kv_type else model)
        workloads.append(workloads_of(s.with_(profile=None), other, models[-1])[0])
        names.append(Path(path).name)
        shares.append(share_of(options["share"], "neighbour") if "share" in options else None)
    tenants = Tenants(tuple(names), tuple(workloads), tuple(models), budgets_of(s, shares))
    return together(base, tenants)


def pieces_of(s: Scenario) -> int:
    """Bytes of a piece of a prefetch, 0 where they are not cut."""
    if s.prefetch_pieces is None:
        return 0
    size = _parsed("prefetch_pieces", parse_bytes, s.prefetch_pieces)
    if size <= 0:
        raise InputError(f"{s.prefetch_pieces}: give a size such as 4MiB", "prefetch_pieces")
    return size


def jobs(
    r: Resolved, mechanisms: Sequence[str], sizes: Sequence[int | None],
    chosen: Mapping[str, Sequence[Spec]],
    decides: Callable[[str], PolicyKind | None] = lambda name: mechanism(name).decides,
) -> Iterator[tuple[Job, str]]:  # fmt: skip
    """Every mechanism with every policy that is for it, at every size of the pool that bears on it.

    ``chosen``: policies by the noun of their kind. ``decides``: the kind that a mechanism takes.
    """
    for name in mechanisms:
        if r.base.tier is not None and name != "expert-cache":
            raise InputError(f": {name} reads experts from host memory alone; leave it out", "tier")
        kind = decides(name)
        if kind is None:
            for n in r.ncmoes if name == "cpu-offload" and r.ncmoes else (r.base.ncmoe,):
                yield replace(r.base, ncmoe=n), name
            continue
        for size in sizes if kind.pooled else (None,):
            for spec in chosen[kind.noun]:
                job = replace(r.base, policy=spec, slots=size)
                check_needs(job, r.trace)
                yield job, name


def machine_of(s: Scenario) -> Hardware:
    """The hardware with the memory, link and host memory asked for; `InputError` where several are
    named."""
    one_of_each(s, "hardware")
    named: Any = s.hardware or DEFAULT_HARDWARE
    hardware = named if isinstance(named, Hardware) else Hardware.load(named)
    if s.program:
        hardware = hardware.running(EngineProfile.load(str(s.program)))
    vram = None if s.vram is None else _parsed("vram", parse_bytes, s.vram)
    if vram == 0:
        raise InputError(f"{s.vram}: a GPU with no memory cannot run anything", argument="vram")
    link = None if s.link is None else _parsed("link", parse_bandwidth, s.link)
    ram = None
    if s.ram_bandwidth is not None:
        ram = _parsed("ram_bandwidth", parse_bandwidth, s.ram_bandwidth)
    reserve = None if s.reserve is None else _parsed("reserve", parse_bytes, s.reserve)
    made = hardware.with_(vram=vram, link=link, ram=ram, reserve=reserve)
    if made.reserve_bytes and made.free_bytes == 0:
        raise InputError(
            f": {format_bytes(made.reserve_bytes, binary=True)} kept for something else leave nothing "
            f"of {made.name}'s {format_bytes(made.vram_bytes, binary=True)}",
            argument="reserve",
        )
    return made


def machines_of(s: Scenario) -> tuple[Hardware, ...]:
    """All machines that a scenario names, one at least."""
    named = s.hardware if isinstance(s.hardware, tuple) else (s.hardware,)
    return tuple(machine_of(s.with_(hardware=x)) for x in named)


def one_of_each(s: Scenario, *names: str) -> None:
    """`InputError` where a study of one machine and one number of layers is given several."""
    for name in names or ("hardware", "ncmoe", "batch", "draft"):
        if isinstance(getattr(s, name), tuple):
            told = ", ".join(str(x) for x in plain(getattr(s, name)))
            raise InputError(f"{told}: give one", argument=name)


def _parsed(argument: str, parse: Callable[[Any], T], value: Any) -> T:
    try:
        return parse(value)
    except InputError as err:
        raise InputError(str(err), argument=argument) from None


# ---- traces ---------------------------------------------------------------------------------------


def open_trace(trace: str | os.PathLike[str] | RoutingTrace | None = None) -> RoutingTrace:
    """The routing trace in a file (Arrow, memory-mapped, or Parquet); None: the bundled one. A trace
    that is open already is given back as it is. Raises `InputError`.
    """
    return load_trace(trace)


def load_trace(trace: Any, limit: int | None = None) -> RoutingTrace:
    """The trace at a path, or in memory; the bundled one for None; cut after ``limit`` tokens."""
    if not isinstance(trace, RoutingTrace):
        trace = _opened(trace)
    if limit is not None:
        if limit <= 0:
            raise InputError(f"{limit}: give a number of tokens above 0", argument="limit")
        trace = trace.head(limit)
    return trace


def _opened(path: Any) -> RoutingTrace:
    if path is None:
        return open_routing(BUNDLED)
    file = Path(path)
    if not file.exists() and not Path(f"{path}.partial").exists():
        there = [p.name for p in file.parent.glob("*.arrow")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, there, 1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        raise InputError(f"{path}: no such trace{hint}")
    return open_routing(path)


def workloads_of(
    s: Scenario, trace: RoutingTrace, model: Model
) -> tuple[Workload, Workload | None]:
    """What is run and, where a profile was named, what policies learn from; `InputError` where
    shapes differ."""
    workload = build_workload(trace, s.unit)
    if len(model.moe_layers) != workload.n_layers:
        raise InputError(
            f"{trace.path}: has rows of {workload.n_layers} layers, the model has "
            f"{len(model.moe_layers)} with experts; see `uvmsim trace check`"
        )
    return workload, profile_of(s, workload)


def profile_of(s: Scenario, workload: Workload) -> Workload | None:
    """What policies learn from; `InputError` where it is of another shape."""
    if not s.profile:
        return None
    learned = build_workload(load_trace(s.profile))
    if (learned.n_layers, learned.n_experts) != (workload.n_layers, workload.n_experts):
        raise InputError(
            f"{trace_name(s.profile)}: made by a model of another shape", argument="profile"
        )
    return learned


# ---- models and sizes -----------------------------------------------------------------------------


def resolve_model(s: Scenario, trace: RoutingTrace, notes: list[str]) -> Model:
    """The model to page: the one named, the trace's own, or the preset of its name."""
    info = trace.meta.model
    size = parse_expert_size(s.expert_size)
    if s.model:
        named: Any = s.model
        model = named if isinstance(named, Model) else Model.load(named)
        return model.scaled(size) if size else model_checked(model, trace)
    if s.trace is None and size is None:
        size = max(Model.load(BUNDLED_EXPERTS_AS).expert_bytes)
        notes.append(
            f"the bundled model is tiny; its experts are given the size of {BUNDLED_EXPERTS_AS}'s "
            "(--expert-size to change)"
        )
    if info.expert_bytes is None and info.name.lower() in Model.list_presets():
        notes.append(f"sizes from the preset {info.name.lower()}")
        model = model_checked(Model.load(info.name.lower()), trace)
        return model.scaled(size) if size else model
    return Model.from_info(info, expert_bytes=size)


def model_checked(model: Model, trace: RoutingTrace) -> Model:
    """``model``, if the trace's shape is its shape; else `InputError`."""
    model.check_fits(trace.meta)
    return model


def parse_expert_size(value: str | int | float | None) -> int | None:
    """Bytes, ``13.2MB``, or the name of a model preset whose expert's size is meant."""
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in Model.list_presets():
        return max(Model.load(value).expert_bytes)
    size = _parsed("expert_size", parse_bytes, value)
    if size <= 0:
        raise InputError(f"{value}: an expert has at least one byte", argument="expert_size")
    return size


def slots_of(text: str, total: int) -> int:
    """``96`` or ``12.5%`` (of all ``total`` experts) as a number of slots, rounded down."""
    share = text.endswith("%")
    try:
        value = float(text[:-1]) * total / 100 if share else int(text)
    except ValueError:
        raise InputError(
            f"{text}: give a number of experts or a share like 25%", argument="slots"
        ) from None
    if not value >= 1 or (share and value > total):
        raise InputError(
            f"{text}: that is {value:g} of {total} experts; give 1 to {total}, or up to 100%",
            argument="slots",
        )
    return min(int(value + 1e-9), total)


# ---- what results say of these --------------------------------------------------------------------


def trace_json(trace: RoutingTrace, w: Workload) -> dict[str, Any]:
    """What a result says of its trace."""
    tokens = [int(w.emitted[w.step_phase == p].sum()) for p in (0, 1)]
    return {
        "path": Path(trace.path or "trace").name,
        "sha256": trace.sha256,
        "complete": trace.complete,
        "model": trace.meta.model.name,
        "layers": w.n_layers,
        "experts": w.n_experts,
        "top_k": w.top_k,
        "tokens": sum(tokens),
        "prefill_tokens": tokens[0],
        "decode_tokens": tokens[1],
        "steps": w.n_steps,
        "sequences": len(set(trace.seq.tolist())),
        "missing_rows": w.missing_rows,
    }


def model_json(model: Model) -> dict[str, Any]:
    """What a result says of its model."""
    keys = ("name", "quantisation", "n_layers", "n_experts", "top_k")
    d = {k: getattr(model, k) for k in keys}
    return d | {
        "expert_bytes": max(model.expert_bytes),
        "total_bytes": model.total_bytes,
        "scaled": model.sources.get("scaled"),
    }


def hardware_json(machines: Sequence[Hardware]) -> Any:
    """What a result says of its machine; of several a list."""
    told = [{"name": hw.name, "vram_bytes": hw.vram_bytes} for hw in machines]
    return told if len(told) > 1 else told[0]


def label(job: Job, mechanism: str) -> str:
    """What a progress bar says of a run."""
    return job.policy_name or mechanism
