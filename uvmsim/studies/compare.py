"""Many policies on one trace: what `uvmsim compare` does, as a library."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvmsim
from traces.errors import InputError
from traces.routing import RoutingTrace, open_routing
from traces.samples import BUNDLED, BUNDLED_EXPERTS_AS
from uvmsim.core.units import parse_bytes
from uvmsim.experts.decisions import Decisions
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.policies.pages.phases import PREFIX, PhasedPolicy, parse_phased
from uvmsim.policies.pages.registry import builtin_pages
from uvmsim.policies.registry import PolicySpec, builtin, parse
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.simulate import check_needs, simulate
from uvmsim.workload import Workload, build_workload

DEFAULT_POLICIES = ("lru", "lfu", "layer-lru", "lru+next-layer", "belady")
DEFAULT_PAGE_POLICIES = ("default", "prefetch_always_max", "prefetch_stride", "prefetch_none")
DEFAULT_HARDWARE = "rtx5090"


@dataclass(frozen=True)
class Options:
    """What the user asked for; defaults are the command line's."""

    trace: str | None = None
    model: str | None = None
    expert_size: str | None = None
    hardware: str = DEFAULT_HARDWARE
    program: str | None = None
    vram: str | None = None
    link: str | None = None
    slots: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = ("expert-cache",)
    policies: tuple[str, ...] | None = None
    """None: the defaults of each mechanism's grain (`Options.named`)."""
    pool: str = "global"
    unit: str = "event"
    reset: str = "never"
    write_back: bool = False
    pageable: bool = False
    ncmoe: int | None = None
    profile: str | None = None
    limit: int | None = None
    seed: int = 0
    threshold: int = 51
    engine: str = "fast"

    @property
    def named(self) -> tuple[str, ...]:
        """The policies of expert grain that are meant, where the mechanisms take such."""
        return DEFAULT_POLICIES if self.policies is None else self.policies

    def to_json(self) -> dict[str, Any]:
        """What was asked for; options that were not given and have no default are left out."""
        asked = vars(self) | {"policies": self.named}
        return {k: v for k, v in asked.items() if v is not None}


@dataclass(frozen=True)
class Comparison:
    """The runs and what they share."""

    options: Options
    trace: RoutingTrace
    workload: Workload
    model: Model
    hardware: Hardware
    runs: list[Outcome]
    belady_misses: dict[int, int]
    """By slots: misses of Belady's MIN, the fewest any policy without prefetch can have."""
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """One object of plain JSON types; the same input gives the same bytes."""
        runs = []
        for run in self.runs:
            d = run.to_json()
            least = self.belady_misses.get(d.get("slots", -1))
            if run.mechanism == "expert-cache" and least:
                d["belady_misses"] = least
                d["misses_over_belady"] = d["misses"] / least
            runs.append(d)
        return {
            "uvmsim": uvmsim.__version__,
            "trace": trace_json(self.trace, self.workload),
            "model": model_json(self.model),
            "hardware": {"name": self.hardware.name, "vram_bytes": self.hardware.vram_bytes},
            "options": self.options.to_json(),
            "notes": self.notes,
            "runs": runs,
        }


def compare(
    options: Options, progress: Callable[[int, int, str], None] | None = None
) -> Comparison:
    """Run every mechanism and policy at every pool size. Raises `InputError`.

    ``progress`` is called with (runs done, runs in all, what runs next).
    """
    notes: list[str] = []
    specs, pages = policies_of(options)
    if not 1 <= options.threshold <= 100:
        raise InputError(f"--threshold {options.threshold}: a share in %, 1 to 100")
    trace = load_trace(options.trace, options.limit)
    hardware = Hardware.load(options.hardware, options.program).with_(
        vram=options.vram, link=options.link
    )
    model = resolve_model(options, trace, notes)
    workload, profile = workloads_of(options, trace, model)
    base = Job(
        workload, model, hardware, pool=options.pool, reset=options.reset,
        write_back=options.write_back, pinned=not options.pageable, seed=options.seed,
        profile=profile, ncmoe=model.n_layers if options.ncmoe is None else options.ncmoe,
        threshold=options.threshold,
    )  # fmt: skip
    todo = list(_jobs(options, base, specs, pages, trace))
    runs = []
    for i, (job, mechanism) in enumerate(todo):
        if progress:
            label = job.page_policy or job.policy
            progress(i, len(todo), label.name if label else mechanism)
        runs.append(simulate(job, mechanism, options.engine))
    if progress:
        progress(len(todo), len(todo), "")
    least = _belady(runs)
    pooled = [r.counters for r in runs if r.mechanism == "expert-cache" and r.counters]
    if pooled and not any(c.evictions for c in pooled):
        notes.append(
            "no expert ever had to leave, so policies do not differ; give fewer --slots (25%) or "
            "less --vram"
        )
    return Comparison(options, trace, workload, model, hardware, runs, least, notes)


def policies_of(options: Options) -> tuple[list[PolicySpec], list[PhasedPolicy]]:
    """The policies for mechanisms of expert grain and of page grain. What the user names goes to the
    grain that knows it; where nothing is named each grain has its defaults. Raises `InputError`."""
    grains = {mechanism_named(m).grain for m in options.mechanisms}
    takers = {m.grain for m in map(mechanism_named, options.mechanisms) if m.takes_policy}
    if "page" not in grains:
        return [parse(p) for p in options.named], []
    if options.policies is None:
        named = options.named if "expert" in takers else ()
        return [parse(p) for p in named], [parse_phased(p) for p in DEFAULT_PAGE_POLICIES]
    experts: list[PolicySpec] = []
    pages: list[PhasedPolicy] = []
    for text in options.policies:
        if page_grained(text):
            pages.append(parse_phased(text))
        else:
            experts.append(parse(text))
    for grain, found in (("page", pages), ("expert", experts)):
        if grain in takers and not found:
            names = ", ".join(m for m in options.mechanisms if mechanism_named(m).grain == grain)
            raise InputError(
                f"--policy {','.join(options.policies)}: none of them is for --mechanism {names}; "
                f"`uvmsim policies` lists those of {grain} grain"
            )
    if experts and "expert" not in takers:
        raise InputError(
            f"--policy {experts[0].name}: decides about experts, and --mechanism "
            f"{','.join(options.mechanisms)} about pages; add --mechanism expert-cache"
        )
    return experts, pages


def page_grained(text: str) -> bool:
    """Whether a policy is one of pages; `InputError` where neither grain knows it."""
    if text.startswith(PREFIX):
        return True
    try:
        parse_phased(text)
    except InputError as pages:
        try:
            parse(text)
        except InputError as experts:
            head = text.split("+")[0].split(":")[0]
            near = difflib.get_close_matches(head, [*builtin_pages(), *builtin()], 1)
            better = pages if near and near[0] in builtin_pages() else experts
            raise better from None
        return False
    return True


def _jobs(
    options: Options, base: Job, specs: list[PolicySpec], pages: list[PhasedPolicy],
    trace: RoutingTrace,
) -> Iterator[tuple[Job, str]]:  # fmt: skip
    total = base.workload.n_layers * base.workload.n_experts
    sizes: list[int | None] = [slots_of(s, total) for s in options.slots]
    if not sizes:
        bundled_default = options.trace is None and options.vram is None
        sizes = [slots_of("25%", total)] if bundled_default else [None]
    for name in options.mechanisms:
        kind = mechanism_named(name)
        if kind.grain == "page":
            for page_policy in pages:
                yield replace(base, page_policy=page_policy), name
            continue
        if not kind.takes_policy:
            yield base, name
            continue
        for size in sizes:
            for spec in specs:
                job = replace(base, policy=spec, slots=size)
                check_needs(job, trace)
                yield job, name


def _belady(runs: list[Outcome]) -> dict[int, int]:
    """Misses of MIN for every pool size among the runs (computed where it was not asked for)."""
    pooled = [r for r in runs if r.counters is not None and r.mechanism == "expert-cache"]
    least = {r.slots: r.counters.misses for r in pooled if r.counters and r.policy == "belady"}
    for run in pooled:
        if run.slots not in least:
            bound = Decisions(replace(run.job, policy=parse("belady")))
            bound.serve_all()
            least[run.slots] = bound.counters().misses
    return least


def workloads_of(
    options: Options, trace: RoutingTrace, model: Model
) -> tuple[Workload, Workload | None]:
    """What is run and, where a profile was named, what policies learn from; `InputError` where
    shapes differ."""
    workload = build_workload(trace, options.unit)
    if len(model.moe_layers) != workload.n_layers:
        raise InputError(
            f"{trace.path}: has rows of {workload.n_layers} layers, the model has "
            f"{len(model.moe_layers)} with experts; see `uvmsim trace check`"
        )
    profile = None
    if options.profile:
        profile = build_workload(load_trace(options.profile, None))
        if (profile.n_layers, profile.n_experts) != (workload.n_layers, workload.n_experts):
            raise InputError(f"--profile {options.profile}: made by a model of another shape")
    return workload, profile


def load_trace(path: str | None, limit: int | None) -> RoutingTrace:
    """The trace at ``path``, the bundled one for None, cut after ``limit`` tokens."""
    if path is not None and not Path(path).exists() and not Path(path + ".partial").exists():
        folder = Path(path).parent
        there = [p.name for p in folder.glob("*.arrow")] if folder.is_dir() else []
        near = difflib.get_close_matches(Path(path).name, there, 1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise InputError(f"{path}: no such trace{hint}")
    trace = open_routing(path if path is not None else BUNDLED)
    if limit is not None:
        if limit <= 0:
            raise InputError(f"--limit {limit}: give a number of tokens above 0")
        trace = trace.head(limit)
    return trace


def resolve_model(options: Options, trace: RoutingTrace, notes: list[str]) -> Model:
    """The model to page: the one named, the trace's own, or the preset of its name."""
    info = trace.meta.model
    size = parse_expert_size(options.expert_size)
    if options.model:
        model = Model.load(options.model)
        return model.scaled(size) if size else model_checked(model, trace)
    if options.trace is None and size is None:
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


def parse_expert_size(text: str | None) -> int | None:
    """``13.2MB``, or the name of a model preset whose expert's size is meant."""
    if text is None:
        return None
    if text.lower() in Model.list_presets():
        return max(Model.load(text).expert_bytes)
    size = parse_bytes(text)
    if size <= 0:
        raise InputError(f"--expert-size {text}: an expert has at least one byte")
    return size


def slots_of(text: str, total: int) -> int:
    """``96`` or ``12.5%`` (of all ``total`` experts) as a number of slots, rounded down."""
    share = text.endswith("%")
    try:
        value = float(text[:-1]) * total / 100 if share else int(text)
    except ValueError:
        raise InputError(f"--slots {text}: give a number of experts or a share like 25%") from None
    if not value >= 1 or (share and value > total):
        raise InputError(
            f"--slots {text}: that is {value:g} of {total} experts; give 1 to {total}, or up to 100%"
        )
    return min(int(value + 1e-9), total)


def trace_json(trace: RoutingTrace, w: Workload) -> dict[str, Any]:
    """What a result says of its trace."""
    tokens = [int(w.step_tokens[w.step_phase == p].sum()) for p in (0, 1)]
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


def policy_list(texts: Sequence[str]) -> tuple[str, ...]:
    """``("lru,lfu", "belady")`` as ``("lru", "lfu", "belady")``, doubles dropped; what begins with
    ``phase:`` keeps its comma."""
    names = [p.strip() for t in texts for p in ([t] if t.startswith("phase:") else t.split(","))]
    return tuple(dict.fromkeys(n for n in names if n))
