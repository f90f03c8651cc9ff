"""Speeds of a configuration: prefill and decode, and what bounds them.

Each is a run of the simulator (`uvmsim.studies.simulate`) on the machine's engine, by the engine's
coarse constants; engines with terms have `uvmsim.studies.advise.detailed`. Whether memory suffices is
known by then (`uvmsim.studies.advise.needs`), so mechanisms are not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp import reserve_for
from uvmsim.policies.kinds import EXPERTS, PAGES
from uvmsim.runs.job import Job
from uvmsim.studies.advise.candidate import (
    CACHE,
    CPU,
    GPU,
    LAYERS,
    NCMOE,
    TENSORS,
    UNIFIED,
    Candidate,
)
from uvmsim.studies.advise.request import Request
from uvmsim.studies.advise.subject import Subject
from uvmsim.studies.advise.timed import (
    BOUNDS,
    Timed,
    blocks_of,
    dense_only,
    events_of,
    nothing,
    on_cpu,
    timed,
)
from uvmsim.studies.simulate import simulate
from uvmsim.workload import Workload

PLENTY = 1 << 50
ENGINE_POLICY = "llama-cpp-lru"
"""llama.cpp's own rule for its expert cache."""


@dataclass(frozen=True)
class Prediction:
    """A request on one configuration."""

    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    seconds: float
    """The whole request."""
    prefill_split: dict[str, float]
    """Shares of the prompt's time, by `BOUNDS`."""
    decode_split: dict[str, float]
    hit_rate: float | None = None
    """Of an expert cache, in decode."""

    @property
    def bound(self) -> str:
        """What most of the request's time goes into."""
        p, d = self.prefill_seconds, self.seconds - self.prefill_seconds
        both = {k: p * self.prefill_split[k] + d * self.decode_split[k] for k in BOUNDS}
        return max(BOUNDS, key=both.__getitem__)

    prefill_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"bound": self.bound}


class Predictor:
    """Predictions for one model on one machine; each placement is simulated once.

    ``requests``: micro-batch size, whether a short form will do -> the request in such batches.
    ``what``'s model has the KV type asked for.
    """

    def __init__(
        self, what: Subject, hw: Hardware, requests: Callable[[int, bool], Request], seed: int = 0
    ):
        self.what, self.model, self.hw, self.seed = what, what.model, hw, seed
        self._requests = requests
        self._known: dict[Any, Prediction] = {}
        self._timed: dict[Any, Timed] = {}

    def __call__(self, c: Candidate, policy: str = ENGINE_POLICY) -> Prediction:
        """Speeds of a configuration; ``policy``: who leaves its expert cache."""
        key = (c.placement, policy)
        if key not in self._known:
            brief = c.kind == UNIFIED
            self._known[key] = _prediction(self._requests(c.ubatch, brief), self._time(c, policy))
        return self._known[key]

    def seconds(self, c: Candidate) -> float:
        """Of the whole request; a search that asks for many may be given less exact ones."""
        return self(c).seconds

    # ---- by kind ----------------------------------------------------------------------------------

    def _time(self, c: Candidate, policy: str) -> Timed:
        n = self.model.n_layers
        ways: dict[str, Callable[[], Timed]] = {
            GPU: lambda: self._run(c, 0, n, "resident"),
            NCMOE: lambda: self._run(c, 0, n, "cpu-offload", ncmoe=c.cpu_experts),
            TENSORS: lambda: self._projections(c),
            CACHE: lambda: self._cache(c, policy),
            UNIFIED: lambda: self._unified(c),
            LAYERS: lambda: self._layers(c),
            CPU: lambda: self._layers(c),
        }
        return ways[c.kind]()

    def _run(self, c: Candidate, lo: int, hi: int, mechanism: str, **job: Any) -> Timed:
        """Blocks ``lo`` to ``hi`` by one mechanism; those at the end with the LM head."""
        key = (c.ubatch, c.mapped, lo, hi, mechanism, *sorted(job.items()))
        if key not in self._timed:
            self._timed[key] = self._simulated(c, lo, hi, mechanism, job)
        return self._timed[key]

    def _simulated(
        self, c: Candidate, lo: int, hi: int, mechanism: str, job: dict[str, Any]
    ) -> Timed:
        head = hi == self.model.n_layers
        whole = self._requests(c.ubatch, False).workload
        model = self.model
        if (lo, hi) != (0, model.n_layers):
            model = blocks_of(model, lo, hi, head)
        w = events_of(whole, self.model, lo, hi)
        hw = self._machine(c)
        if hi == lo:
            return Timed(np.zeros(w.n_steps), nothing(w.n_steps))
        if not model.moe_layers:
            return dense_only(w, model, hw, head)
        policy = job.pop("policy", None)
        spec = EXPERTS.of(policy) if policy else None
        made = Job(w, model, hw, policy=spec, pinned=not c.mapped, seed=self.seed, **job)
        return timed(simulate(made, mechanism), head)

    def _machine(self, c: Candidate) -> Hardware:
        engine = replace(self.hw.engine, maps_weights=c.mapped)
        return replace(self.hw, engine=engine, vram_bytes=PLENTY, reserve_bytes=None)

    def _projections(self, c: Candidate) -> Timed:
        """Between two layers more or less on the CPU: a layer in part reads a part of the bytes, and
        waits as a whole one does."""
        lo = self._run(c, 0, self.model.n_layers, "cpu-offload", ncmoe=c.cpu_experts)
        hi = self._run(c, 0, self.model.n_layers, "cpu-offload", ncmoe=c.cpu_experts + 1)
        f = self.what.share_of(c.cpu_experts, c.projections)
        of = {k: lo.of[k] + f * (hi.of[k] - lo.of[k]) for k in BOUNDS}
        sync = hi.of["launches"] - lo.of["launches"]
        of["launches"] = lo.of["launches"] + np.where(sync > 0, sync, f * sync)
        return Timed(sum(of.values(), np.zeros(len(lo.ns))), of)

    def _cache(self, c: Candidate, policy: str) -> Timed:
        n = self.model.n_layers
        cached = self._run(
            c, 0, min(c.cpu_experts, n), "expert-cache", slots=sum(c.slots), policy=policy
        )
        return cached + self._run(c, min(c.cpu_experts, n), n, "resident")

    def _layers(self, c: Candidate) -> Timed:
        """Whole blocks on the CPU, then whole blocks, with or without their experts, on the GPU."""
        n = self.model.n_layers
        cut, head_away = min(c.cpu_blocks, n), c.cpu_blocks > n
        there = self._run(c, 0, cut, "resident")
        w = events_of(self._requests(c.ubatch, False).workload, self.model, 0, cut)
        away = blocks_of(self.model, 0, cut, head_away)
        there = on_cpu(there, w, away, self._machine(c), c.mapped) if cut else there
        if c.cpu_experts > cut:
            return there + self._run(c, cut, n, "cpu-offload", ncmoe=c.cpu_experts - cut)
        return there + self._run(c, cut, n, "resident")

    def _unified(self, c: Candidate) -> Timed:
        """Paging by the driver. What it takes longer than with all in memory goes to faults."""
        w = self._requests(c.ubatch, True).workload
        left = max(self.hw.free_bytes - reserve_for(c.config), 1)
        hw = replace(self.hw, vram_bytes=left, reserve_bytes=None)
        job = Job(w, self.model, hw, policy=PAGES.of(PAGES.plain), seed=self.seed)
        ns = simulate(job, "uvm").step_ns.astype(np.float64)
        resident = self._resident(c, w)
        share = np.minimum(ns / resident.ns, 1.0)
        of = {k: v * share for k, v in resident.of.items()}
        of["faults"] = ns - sum(of.values(), np.zeros(len(ns)))
        return Timed(ns, of)

    def _resident(self, c: Candidate, w: Workload) -> Timed:
        """All in memory."""
        return timed(simulate(Job(w, self.model, self._machine(c), seed=self.seed), "resident"))


def _prediction(r: Request, t: Timed) -> Prediction:
    def phase(weight: np.ndarray) -> tuple[float, dict[str, float]]:
        seconds = float((t.ns * weight).sum()) / 1e9
        split = {k: float((t.of[k] * weight).sum()) / 1e9 for k in BOUNDS}
        return seconds, {k: v / seconds if seconds else 0.0 for k, v in split.items()}

    prefill, p_split = phase(r.prefill_weight)
    decode, d_split = phase(r.decode_weight)
    return Prediction(
        r.prompt / prefill if prefill else None, r.generate / decode if decode else None,
        prefill + decode, p_split, d_split,
        _hit_rate(t, r.decode_weight > 0), prefill,
    )  # fmt: skip


def _hit_rate(t: Timed, steps: np.ndarray) -> float | None:
    if t.hits is None or not t.hits[1][steps].any():
        return None
    return float(t.hits[0][steps].sum() / t.hits[1][steps].sum())
