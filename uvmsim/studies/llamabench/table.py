"""llama-bench's table from simulated runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import uvmsim
from traces.errors import InputError
from traces.routing import open_routing
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms import mechanism as mechanism_named
from uvmsim.paging.trail import Paged
from uvmsim.policies.pages.phases import parse_phased
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.llamabench.workload import Bench, bench
from uvmsim.studies.simulate import simulate


@dataclass(frozen=True)
class Options:
    """What the user asked for; defaults are the command line's."""

    model: str = "gpt-oss-120b"
    hardware: str = "rtx5090"
    program: str | None = None
    mechanisms: tuple[str, ...] = ("uvm",)
    policies: tuple[str, ...] = ()
    vram: str | None = None
    link: str | None = None
    threshold: int = 51
    ncmoe: int | None = None
    slots: int | None = None
    prompt: int = 512
    generate: int = 128
    reps: int = 5
    like: str | None = None
    seed: int = 0
    engine: str = "fast"
    trace_out: str | None = None


@dataclass(frozen=True)
class Table:
    """All rows, and what they share."""

    options: Options
    model: Model
    hardware: Hardware
    rows: list[dict[str, Any]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "uvmsim": uvmsim.__version__,
            "model": {"name": self.model.name, "bytes": self.model.total_bytes,
                      "params": self.model.total_params},
            "hardware": {"name": self.hardware.name, "vram_bytes": self.hardware.vram_bytes},
            "options": {k: v for k, v in vars(self.options).items() if v is not None},
            "rows": self.rows,
            "notes": self.notes,
        }  # fmt: skip


def run(
    options: Options, progress: Callable[[int, int, str], None] | None = None
) -> Table:  # fmt: skip
    """Every mechanism and policy through llama-bench's tests. Raises `InputError`."""
    if not 1 <= options.threshold <= 100:
        raise InputError(f"--threshold {options.threshold}: a share in %, 1 to 100")
    _check(options)
    model = Model.load(options.model)
    hw = Hardware.load(options.hardware, options.program).with_(
        vram=options.vram, link=options.link
    )
    like = open_routing(options.like) if options.like else None
    made = bench(model, options.prompt, options.generate, options.reps, options.seed, like)
    notes = []
    if like is None and model.routing_sigma is None:
        notes.append(
            f"how unevenly random tokens use {model.name}'s experts is not known; assumed "
            "log-normal with sigma 1 (--routing TRACE takes a recorded popularity)"
        )
    base = Job(made.workload, model, hw, threshold=options.threshold, seed=options.seed)
    todo = list(_jobs(options, base))
    if options.trace_out and (len(todo) != 1 or mechanism_named(todo[0][1]).grain != "page"):
        raise InputError(
            "--trace-out writes one run of paging; give one --policy of --mechanism uvm"
        )
    rows: list[dict[str, Any]] = []
    for i, (job, name) in enumerate(todo):
        label = job.page_policy.name if job.page_policy else (job.policy.name if job.policy else "")
        if progress:
            progress(i, len(todo), f"{name} {label}")
        result = simulate(job, name, options.engine, record=options.trace_out is not None)
        if options.trace_out:
            _write(options.trace_out, result)
        rows += _rows(made, result)
        notes += [n for n in result.notes if n not in notes]
    if progress:
        progress(len(todo), len(todo), "")
    return Table(options, model, hw, rows, notes)


def _write(path: str, result: Outcome) -> None:
    """The driver's events of a run."""
    from uvmsim.paging.trace_out import write_trace

    assert isinstance(result.trail, Paged)  # `run` has asked for paging
    words = {"llama_bench": result.job.model.name, "policy": result.policy}
    write_trace(path, result.trail.run, result.trail.setup, result.job.hardware, words)


def _check(options: Options) -> None:
    """Options that nothing asked for would use are mistakes."""
    kinds = [mechanism_named(name) for name in options.mechanisms]
    if options.slots is not None and "expert-cache" not in options.mechanisms:
        raise InputError("--slots is for --mechanism expert-cache")
    if options.ncmoe is not None and "cpu-offload" not in options.mechanisms:
        raise InputError("--ncmoe is for --mechanism cpu-offload")
    if options.policies and not any(k.takes_policy for k in kinds):
        names = ", ".join(options.mechanisms)
        raise InputError(f"--policy {options.policies[0]}: {names} has no policies")


def _jobs(options: Options, base: Job):
    for name in options.mechanisms:
        kind = mechanism_named(name)
        if kind.grain == "page":
            for policy in options.policies or ("default",):
                yield replace(base, page_policy=parse_phased(policy)), name
        elif kind.takes_policy:
            for policy in options.policies or ("lru",):
                yield replace(base, policy=parse(policy), slots=options.slots), name
        else:
            n = base.model.n_layers if options.ncmoe is None else options.ncmoe
            yield replace(base, ncmoe=n), name


def _rows(made: Bench, result: Outcome) -> list[dict[str, Any]]:
    """One row a test: tokens/s and their spread over repetitions, counters a repetition."""
    head: dict[str, Any] = {"mechanism": result.mechanism, "policy": result.policy}
    if result.job.ncmoe and result.mechanism == "cpu-offload":
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
