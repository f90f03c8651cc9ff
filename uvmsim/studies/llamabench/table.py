"""llama-bench's table from simulated runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.policies.pages.phases import PhasedPolicy
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.answer import Answer, flat
from uvmsim.studies.llamabench.cliff import cliff_of
from uvmsim.studies.llamabench.workload import Bench, bench
from uvmsim.studies.resolve import hardware_json, load_trace, machines_of, slots_of
from uvmsim.studies.scenario import DEFAULT_HARDWARE, Progress, Scenario, name_of, plain
from uvmsim.studies.simulate import simulate
from uvmsim.version import __version__

DEFAULT_MODEL = "gpt-oss-120b"
DEFAULT_ADVICE = "prefer-gpu"
"""What gpu_ext's llama.cpp fork says of its weights once they are loaded."""
PAGED = "uvm"
OFFLOAD = "cpu-offload"
"""The mechanism that ``ncmoe`` is for."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; defaults are the command line's."""

    model: Any = DEFAULT_MODEL
    hardware: Any = DEFAULT_HARDWARE
    program: Any = None
    mechanisms: tuple[str, ...] = ("uvm",)
    policies: tuple[Any, ...] = ()
    vram: str | int | float | None = None
    link: str | int | float | None = None
    ram_bandwidth: str | int | float | None = None
    reserve: str | int | float | None = None
    ctx: int | None = None
    kv_type: str | None = None
    threshold: int = 51
    ncmoe: Any = None
    slots: int | None = None
    prompt: int = 512
    generate: int = 128
    reps: int = 5
    like: Any = None
    seed: int = 0
    engine: str = "fast"
    trace_out: str | None = None
    advice: str = DEFAULT_ADVICE


@dataclass(frozen=True, repr=False)
class LlamaBench(Answer):
    """All rows, and what they share."""

    printer: ClassVar[str] = "uvmsim.report.llama_bench_table:print_table"

    options: Options
    model: Model
    hardware: Hardware
    """The first, where there are several."""
    runs: list[dict[str, Any]]
    notes: list[str]
    machines: tuple[Hardware, ...] = ()
    """All of them, where they are several."""

    @property
    def outcomes(self) -> Sequence[dict[str, Any]]:
        """One a mechanism, policy and test."""
        return self.runs

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a mechanism, policy and test; counters are of one repetition."""
        return [flat(run) for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "uvmsim": __version__,
            "model": {"name": self.model.name, "bytes": self.model.total_bytes,
                      "params": self.model.total_params},
            "hardware": hardware_json(self.machines or (self.hardware,)),
            "options": {k: plain(v) for k, v in vars(self.options).items() if v is not None},
            "rows": self.runs,
            "notes": self.notes,
        }  # fmt: skip


def llama_bench(
    scenario: Scenario | None = None,
    *,
    prompt: int = 512,
    generate: int = 128,
    reps: int = 5,
    trace_out: str | os.PathLike[str] | None = None,
    advice: str = DEFAULT_ADVICE,
    progress: Progress | None = None,
) -> LlamaBench:
    """What llama-bench would print on a scenario's machine: ``prompt`` tokens in, ``generate`` out.

    Of the scenario: ``model`` (gpt-oss-120b), ``hardware`` (one or several), ``vram``, ``link``,
    ``ram_bandwidth``, ``reserve``, ``ctx``, ``kv_type``, ``mechanisms`` (uvm), ``policies``, one of
    ``slots``, ``threshold``, ``ncmoe`` (one or several), ``seed``, ``engine``; a ``trace`` gives random
    tokens its experts' popularity. ``trace_out``: a file for the driver's events of the one
    run. ``advice``: of uvm, what the program says of its weights (none, prefetch, prefer-gpu,
    prefer-cpu, accessed-by, read-mostly). Raises `InputError`.
    """
    s = scenario or Scenario()
    s = s.or_else(model=DEFAULT_MODEL, hardware=DEFAULT_HARDWARE, mechanisms="uvm")
    mechanisms: Any = s.mechanisms
    sizes: Any = s.slots
    if len(sizes) > 1:
        raise InputError(f"{', '.join(sizes)}: give one size", argument="slots")
    model: Any = s.model if isinstance(s.model, Model) else Model.load(str(s.model))
    slots = slots_of(sizes[0], len(model.moe_layers) * model.n_experts) if sizes else None
    if sizes and sizes[0].isdigit():
        slots = int(sizes[0])  # more than there are is all
    policies: Any = s.policies or ()
    out = None if trace_out is None else os.fspath(trace_out)
    options = Options(
        s.model, s.hardware, s.program, mechanisms, policies, s.vram, s.link,
        s.ram_bandwidth, s.reserve, s.ctx, s.kv_type, s.threshold, s.ncmoe, slots, prompt,
        generate, reps, s.trace, s.seed, s.engine, out, advice,
    )  # fmt: skip
    return run(options, progress)


def run(options: Options, progress: Progress | None = None) -> LlamaBench:
    """Every mechanism and policy through llama-bench's tests. Raises `InputError`."""
    if not 1 <= options.threshold <= 100:
        raise InputError(f"{options.threshold}: a share in %, 1 to 100", argument="threshold")
    _check(options)
    model = options.model if isinstance(options.model, Model) else Model.load(options.model)
    if options.kv_type:
        model = model.with_kv(options.kv_type)
    machines = machines_of(
        Scenario(
            hardware=options.hardware, program=options.program, vram=options.vram,
            link=options.link, ram_bandwidth=options.ram_bandwidth, reserve=options.reserve,
        )
    )  # fmt: skip
    several = machines if len(machines) > 1 else ()
    like = load_trace(options.like) if options.like else None
    run_of = model, options.prompt, options.generate, options.reps, options.seed, like
    made = bench(*run_of)
    notes = []
    if like is None and model.routing_sigma is None:
        notes.append(
            f"how unevenly random tokens use {model.name}'s experts is not known; assumed "
            "log-normal with sigma 1 (--routing TRACE takes a recorded popularity)"
        )
    base = Job(
        made.workload, model, machines[0], ctx=options.ctx, threshold=options.threshold,
        seed=options.seed, advice=options.advice,
    )  # fmt: skip
    todo = [x for hw in machines for x in _jobs(options, replace(base, hardware=hw))]
    if any(_copies(job, name) for job, name in todo):
        computed = bench(*run_of, drop_rows=True).workload
        todo = [
            (replace(job, workload=computed) if _copies(job, name) else job, name)
            for job, name in todo
        ]
    if options.trace_out and (len(todo) != 1 or not mechanism_named(todo[0][1]).records_faults):
        raise InputError(
            "writes one run of paging; give one `policies` of `mechanisms` uvm",
            argument="trace_out",
        )
    rows: list[dict[str, Any]] = []
    for i, (job, name) in enumerate(todo):
        if progress:
            progress(i, len(todo), f"{name} {job.policy.name if job.policy else ''}")
        result = simulate(job, name, options.engine, record=options.trace_out is not None)
        if options.trace_out:
            words = {"llama_bench": model.name, "policy": result.policy}
            mechanism_named(name).export_faults(result, options.trace_out, words)
        told: dict[str, Any] = {"hardware": job.hardware.name} if several else {}
        one = {"ncmoe": job.ncmoe} if isinstance(options.ncmoe, tuple) and name == OFFLOAD else {}
        mine = [told | row | one for row in _rows(made, result)]
        if name == PAGED and like is None and options.prompt:
            at = cliff_of(job, options.prompt, options.seed, mine[0]["tokens_per_s"])
            if at is not None:
                mine[0]["cliff"] = at.to_json()
                notes.append(at.told(mine[0]["test"], result.policy or ""))
        rows += mine
        notes += [n for n in result.notes if n not in notes]
    if progress:
        progress(len(todo), len(todo), "")
    return LlamaBench(options, model, machines[0], rows, notes, several)


def _check(options: Options) -> None:
    """Options that nothing asked for would use are mistakes."""
    kinds = [mechanism_named(name) for name in options.mechanisms]
    if options.slots is not None and "expert-cache" not in options.mechanisms:
        raise InputError("is for `mechanisms` expert-cache", argument="slots")
    if options.ncmoe is not None and OFFLOAD not in options.mechanisms:
        raise InputError("is for `mechanisms` cpu-offload", argument="ncmoe")
    if options.advice != DEFAULT_ADVICE and PAGED not in options.mechanisms:
        raise InputError("is for `mechanisms` uvm", argument="advice")
    if options.policies and not any(k.decides for k in kinds):
        names = ", ".join(options.mechanisms)
        raise InputError(
            f"{name_of(options.policies[0])}: {names} has no policies", argument="policies"
        )


def _copies(job: Job, name: str) -> bool:
    """Whether a prompt's experts are copied to the GPU, as llama.cpp does it."""
    return name == OFFLOAD or (isinstance(job.policy, PhasedPolicy) and job.policy.copies)


def _jobs(options: Options, base: Job):
    for name in options.mechanisms:
        kind = mechanism_named(name)
        if kind.decides is not None:
            size = options.slots if kind.decides.pooled else None
            for policy in options.policies or (kind.decides.plain,):
                yield replace(base, policy=kind.decides.of(policy), slots=size), name
        else:
            given = options.ncmoe if isinstance(options.ncmoe, tuple) else (options.ncmoe,)
            for n in given if name == OFFLOAD else given[:1]:
                yield replace(base, ncmoe=base.model.n_layers if n is None else n), name


def _rows(made: Bench, result: Outcome) -> list[dict[str, Any]]:
    """One row a test: tokens/s and their spread over repetitions, counters a repetition."""
    head: dict[str, Any] = {"mechanism": result.mechanism, "policy": result.policy}
    if result.job.ncmoe and result.mechanism == OFFLOAD:
        head["ncmoe"] = result.job.ncmoe
    if result.does_not_fit is not None:
        d = result.does_not_fit
        oom = {
            "status": "out-of-memory",
            "needed_bytes": d.needed,
            "tokens_per_s": None,
            "sd": None,
        }
        return [head | {"test": name} | oom for name in made.tests]
    duration = result.step_ns
    rows = []
    for i, name in enumerate(made.tests):
        timed = (made.step_test == i) & (made.step_rep >= 0)
        reps = made.step_rep[timed]
        ns = np.bincount(reps, weights=duration[timed].astype(np.float64))
        rate = made.tokens[i] / (ns / 1e9)
        row = head | {
            "test": name,
            "status": "ok",
            "tokens_per_s": float(rate.mean()),
            "sd": float(rate.std(ddof=1)) if len(rate) > 1 else 0.0,
            "repetitions": len(rate),
        }
        rows.append(row | _counters(result, timed, len(rate), made.tokens[i]))
    return rows


def _counters(result: Outcome, timed: np.ndarray, reps: int, tokens: int) -> dict[str, Any]:
    """Mean counts of a repetition, and a token."""
    assert result.trail is not None
    per_rep = {
        k: v if k == "services_per_chunk" or v is None else v / reps
        for k, v in result.trail.counted(timed).items()
    }
    if per_rep["chunks_in"] is None:
        return per_rep
    per_token = ("chunks_in", "chunks_out", "bytes_h2d", "bytes_d2h")
    return per_rep | {f"{k}_per_token": per_rep[k] / tokens for k in per_token}
