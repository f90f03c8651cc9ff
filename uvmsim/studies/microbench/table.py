"""Microbenchmarks of paging: patterns, ratios, policies, processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.clocks import CLOCKS, des_paging
from uvmsim.machine.hardware import Hardware
from uvmsim.mechanisms.uvm import co_locate
from uvmsim.paging import tables as t
from uvmsim.paging.drive import PagedRun, Setup, run_paging, uvm_of
from uvmsim.paging.hints import ADVICE
from uvmsim.paging.layout import BLOCK, PAGE
from uvmsim.paging.trail import driver_counters
from uvmsim.policies.pages.registry import PagePolicySpec, pages_of
from uvmsim.studies.answer import Answer, flat
from uvmsim.studies.microbench import patterns as p
from uvmsim.studies.resolve import machine_of
from uvmsim.studies.scenario import Progress, Scenario, plain
from uvmsim.version import __version__

DEFAULT_HARDWARE = "a30"
RATIOS = {"abab": (0.95, 1.05), "seq": (0.5, 0.75, 1.0), "rand": (0.5, 0.75, 1.0)}
PASSES = {"abab": 4, "seq": 5, "rand": 5}
LEAST_CHUNKS = 64
MOST_BLOCKS = 1 << 18
MOST_VISITS = 1 << 19
"""Blocks times passes: about 1 GB of touches."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; defaults are the command line's."""

    pattern: str = "abab"
    ratios: tuple[float, ...] = ()
    hardware: Any = DEFAULT_HARDWARE
    policies: tuple[Any, ...] = ("default",)
    threshold: int = 51
    passes: int | None = None
    tenants: int = 1
    stride: int = PAGE
    vram: str | int | float | None = None
    advice: str = "none"
    seed: int = 0
    engine: str = "fast"
    trace_out: str | None = None


@dataclass(frozen=True, repr=False)
class Microbench(Answer):
    """All rows, and what they share."""

    printer: ClassVar[str] = "uvmsim.report.microbench_table:print_table"

    options: Options
    hardware: Hardware
    runs: list[dict[str, Any]]
    notes: list[str]

    @property
    def outcomes(self) -> Sequence[dict[str, Any]]:
        """One a ratio and policy."""
        return self.runs

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a ratio and policy; without ``tenants``, each process's own."""
        return [flat({k: v for k, v in run.items() if k != "tenants"}) for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "uvmsim": __version__,
            "hardware": {"name": self.hardware.name, "vram_bytes": self.hardware.vram_bytes},
            "options": {k: plain(v) for k, v in vars(self.options).items() if v is not None},
            "rows": self.runs,
            "notes": self.notes,
        }


def microbench(
    scenario: Scenario | None = None,
    *,
    pattern: str = "abab",
    ratios: Sequence[float] = (),
    passes: int | None = None,
    tenants: int = 1,
    stride: int = PAGE,
    advice: str = "none",
    trace_out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Microbench:
    """Paging microbenchmarks on a scenario's hardware (a30; with ``seq`` and ``rand`` rtx5090).

    Of the scenario: ``hardware``, ``vram``, ``policies`` of pages, ``threshold``, ``seed``,
    ``engine``. ``pattern``: ``abab``, ``seq`` or ``rand``; ``ratios``: bytes over device memory;
    ``passes``: timed passes, of abab halves; ``tenants``: processes; ``stride``: of seq and rand, in
    bytes; ``trace_out``: a file for the driver's events of the one run. Raises `InputError`.
    """
    s = scenario or Scenario()
    s = s.or_else(
        hardware=DEFAULT_HARDWARE if pattern == "abab" else "rtx5090", policies=("default",)
    )
    policies: Any = s.policies
    out = None if trace_out is None else os.fspath(trace_out)
    options = Options(
        pattern, tuple(ratios), s.hardware, policies, s.threshold, passes, tenants, stride, s.vram,
        advice, s.seed, s.engine, out,
    )  # fmt: skip
    return run(options, progress)


def run(options: Options, progress: Progress | None = None) -> Microbench:
    """Every ratio with every policy. Raises `InputError`."""
    check(options)
    hw = machine_of(Scenario(hardware=options.hardware, vram=options.vram))
    uvm_of(hw)
    policies = [pages_of(p) for p in options.policies]
    ratios = options.ratios or RATIOS[options.pattern]
    if options.trace_out and len(ratios) * len(policies) != 1:
        raise InputError(
            "writes one run; give one `ratios` and one `policies`", argument="trace_out"
        )
    rows = []
    for i, ratio in enumerate(ratios):
        setup = setup_of(options, hw, ratio)
        for j, spec in enumerate(policies):
            if progress:
                progress(i * len(policies) + j, len(ratios) * len(policies), spec.name)
            rows.append(_row(options, hw, ratio, setup, spec))
    if progress:
        progress(1, 1, "")
    return Microbench(options, hw, rows, list(_notes(options)))


def check(options: Options) -> None:
    """One line for what cannot be run."""
    if options.pattern not in p.PATTERNS:
        raise InputError(f"{options.pattern}: must be one of {', '.join(p.PATTERNS)}", "pattern")
    if options.advice not in ADVICE:
        raise InputError(f"{options.advice}: must be one of {', '.join(ADVICE)}", "advice")
    if options.engine not in CLOCKS:
        raise InputError(f"{options.engine}: must be one of {', '.join(CLOCKS)}", "engine")
    if not 1 <= options.threshold <= 100:
        raise InputError(f"{options.threshold}: a share in %, 1 to 100", "threshold")
    if not 1 <= options.tenants <= 8:
        raise InputError(f"{options.tenants}: 1 to 8 processes", "tenants")
    if not 1 <= options.stride <= PAGE:
        raise InputError(
            f"{options.stride}: 1 to {PAGE} bytes, so that all pages are used", "stride"
        )
    if options.passes is not None and not 1 <= options.passes <= 1000:
        raise InputError(f"{options.passes}: 1 to 1000", "passes")
    for ratio in options.ratios:
        if not 0 < ratio <= 64:
            raise InputError(f"{ratio:g}: bytes over device memory, above 0 and up to 64", "ratios")


def setup_of(options: Options, hw: Hardware, ratio: float) -> Setup:
    """Memory and kernels of all processes; each has ``ratio`` x capacity bytes of its own."""
    n_chunks = hw.free_bytes // BLOCK
    if n_chunks < LEAST_CHUNKS:
        raise InputError(f"{options.vram}: too little to page with; give at least 128MiB", "vram")
    whole = ratio * (1.0 if options.pattern == "abab" else p.REPORTED)
    n_blocks = max(-(-round(whole * n_chunks * BLOCK) // BLOCK), 2)
    if n_blocks * options.tenants > MOST_BLOCKS:
        raise InputError(
            f"{ratio:g}: more than 512 GiB in all; give less, or less `vram`", argument="ratios"
        )
    if n_blocks * options.tenants * passes_of(options) > MOST_VISITS:
        raise InputError(
            f"{ratio:g}: {passes_of(options)} passes over {n_blocks:,} chunks are too many at once; "
            "give fewer `passes`, or less `vram`",
            argument="ratios",
        )
    made = [_one(options, hw, n_blocks, n_chunks, seed) for seed in range(options.tenants)]
    return made[0] if len(made) == 1 else co_locate(made)


def passes_of(options: Options) -> int:
    """Timed passes; of abab, half-passes."""
    return options.passes or PASSES[options.pattern]


def _one(options: Options, hw: Hardware, n_blocks: int, n_chunks: int, tenant: int) -> Setup:
    """One process."""
    passes: list[list[np.ndarray]] = []
    ns: list[int] = []
    pattern = options.pattern
    if untimed(options):
        passes.append([p.fill(n_blocks)])
        ns.append(hw.read_ns(n_blocks * BLOCK))
    half = -(-n_blocks // 2)
    rng = np.random.Generator(np.random.PCG64([options.seed, tenant]))
    for i in range(passes_of(options)):
        if pattern == "abab":
            lo, hi = (0, half) if i % 2 == 0 else (half, n_blocks)
            passes.append(p.scan(lo, hi, options.tenants > 1))
        else:
            lo, hi = 0, n_blocks
            passes.append([p.walk(n_blocks, rng if pattern == "rand" else None)])
        ns.append(p.resident_ns(pattern, (hi - lo) * BLOCK, options.stride, hw))
    kernels = p.assemble(passes, ns, 1 if pattern != "abab" else p.SCAN_PAGES)
    return Setup(
        kernels, np.full(n_blocks, BLOCK // PAGE, np.int32), np.zeros(n_blocks, np.int8),
        np.full(n_blocks, ADVICE[options.advice], np.uint8), np.ones(n_blocks, np.uint8), n_chunks,
        np.zeros(len(passes), np.uint8), np.zeros(1, np.int64), options.threshold, options.seed,
    )  # fmt: skip


def untimed(options: Options) -> bool:
    """Whether the data is brought in before the first timed pass."""
    return options.pattern != "abab" or options.advice == "prefetch"


def _row(
    options: Options, hw: Hardware, ratio: float, setup: Setup, spec: PagePolicySpec
) -> dict[str, Any]:
    record = options.engine == "des" or options.trace_out is not None
    link = hw
    if options.pattern != "abab":  # what crosses the link is less than the pages
        share = min(options.stride, p.REMOTE_BYTES) / options.stride
        link = replace(hw, zero_copy_bytes_per_s=round(hw.zero_copy_bytes_per_s / share))
    paged = run_paging(setup, link, spec, record=record)
    if options.engine == "des":
        assert paged.program is not None
        paged.ends = des_paging.run(paged.program, len(paged.ends), uvm_of(hw).duplex)
    if options.trace_out:
        from uvmsim.paging.trace_out import write_trace

        words = {"microbench": options.pattern, "ratio": ratio, "policy": spec.name}
        write_trace(options.trace_out, paged, setup, link, words)
    return measures(options, ratio, setup, spec.name, paged)


def measures(
    options: Options, ratio: float, setup: Setup, policy: str, paged: PagedRun
) -> dict[str, Any]:
    """One row: times in ms, counters of the timed passes."""
    steps = len(setup.phase) // options.tenants
    timed = np.tile(np.arange(steps) >= int(untimed(options)), options.tenants)
    duration = np.bincount(
        setup.kernels.step, weights=np.diff(paged.ends, prepend=0), minlength=len(setup.phase)
    )
    of = duration.reshape(options.tenants, steps)[:, int(untimed(options)) :] / 1e6
    last = np.zeros(len(setup.phase))
    np.maximum.at(last, setup.kernels.step, paged.ends)
    done = last.reshape(options.tenants, steps).max(axis=1) / 1e6
    counts = paged.counts[timed]
    row: dict[str, Any] = {
        "pattern": options.pattern,
        "ratio": ratio,
        "policy": policy,
        "threshold": setup.threshold,
        "advice": options.advice,
        "blocks": len(setup.n_pages),
        "chunks": setup.n_chunks,
        "total_ms": float(of.sum()),
        "pass_ms": [round(x, 6) for x in of.reshape(-1).tolist()],
        "median_pass_ms": median(of[0].tolist()),
        "activations": int(counts[:, t.ACTIVATED].sum()),
    }
    row |= driver_counters(counts.sum(axis=0))
    if options.tenants > 1:
        by = paged.counts.reshape(options.tenants, steps, -1)
        row["tenants"] = [
            {
                "tenant": i,
                "total_ms": float(of[i].sum()),
                "pass_ms": [round(x, 6) for x in of[i].tolist()],
                "median_pass_ms": median(of[i].tolist()),
                "completion_ms": float(done[i]),
            }
            | driver_counters(by[i, int(untimed(options)) :].sum(axis=0))
            for i in range(options.tenants)
        ]
    return row | {"notes": paged.notes}


def _notes(options: Options) -> Iterator[str]:
    if options.advice == "read-mostly":
        yield "writes to read-mostly data, which collapse it (seconds a pass), are not modelled"
    if options.pattern != "abab":
        yield "the ratio covers input and output together; a fill in order comes first, untimed"
    if options.tenants > 1:
        yield "each process has ratio x device memory; a tenant's times are of its own turns"
