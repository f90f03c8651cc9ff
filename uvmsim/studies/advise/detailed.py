"""Speeds on an engine with terms: every configuration by llama.cpp's own graph, kernel by kernel.

One predictor for all of them: the graph is split between the devices as the flags say
(`uvmsim.machine.llamacpp.work`), counted, and multiplied with the engine's constants. The expert cache
adds what its policy decides. Layers run one after the other and llama.cpp fetches nothing ahead, so a
pass takes the sum of its parts; they are the mechanisms' times too (`uvmsim.runs.llama_times`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from traces.errors import InputError
from uvmsim.experts.decisions import Decisions
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llama_terms import TERMS, Constants
from uvmsim.machine.llamacpp import LlamaConfig
from uvmsim.machine.llamacpp.timing import Times, times
from uvmsim.machine.model import Model
from uvmsim.policies.kinds import EXPERTS
from uvmsim.runs.job import Job
from uvmsim.runs.llama_times import expert_runs
from uvmsim.studies.advise.candidate import (
    CACHE,
    LARGE_CACHE_MIB,
    NCMOE,
    TENSORS,
    UNIFIED,
    Candidate,
)
from uvmsim.studies.advise.predict import ENGINE_POLICY, Predictor
from uvmsim.studies.advise.request import Request
from uvmsim.studies.advise.subject import Subject
from uvmsim.studies.advise.timed import BOUNDS, Timed, events_in
from uvmsim.workload import Workload

_OF = {
    "launches": (
        "step", "batch", "kernel", "batch_kernel", "launch", "split", "batch_split", "sorted_call",
        "remote_kernel", "managed_kernel",
    ),
    "link": ("pinned", "pageable", "copy", "upload", "remote", "remote_batch"),
    "ram": ("cpu.row", "cpu.row_experts", "cpu.attend"),
    "cpu": ("embed", "mask"),
}  # fmt: skip
_BOUND = {stem: bound for bound, stems in _OF.items() for stem in stems}


@functools.cache
def bound_of(key: str) -> str:
    """What a term's time is spent on, one of `BOUNDS`."""
    stem = key if key in TERMS else key.rpartition(".")[0]
    return _BOUND.get(stem, "cpu" if stem.startswith("cpu.") else "kernels")


class _Some(Constants):
    """Others' constants; what is copied goes by ``link``, and only what is spent on ``bound`` costs."""

    def __init__(self, of: Constants, link: str, bound: str | None) -> None:
        self._of, self._link, self._bound = of, link, bound

    def get(self, key: str) -> float:
        """As theirs."""
        if self._bound is not None and bound_of(key) != self._bound:
            return 0.0
        return self._of.get(self._link if key == "pinned" else key)


@dataclass(frozen=True)
class Served:
    """What a policy decided for the MoE layers that share banks of the expert cache."""

    layers: tuple[int, ...]
    """MoE layers."""
    workload: Workload
    """Their events."""
    wave_event: np.ndarray
    wave_hi: np.ndarray
    copy_event: np.ndarray
    """int64 [C]: event for which an expert is copied."""
    hit: np.ndarray


class Detailed(Predictor):
    """Predictions by an engine's terms.

    ``kept``: decisions of policies, which no machine bears on; give one to predictors for several.
    """

    def __init__(
        self, what: Subject, hw: Hardware, requests: Callable[[int, bool], Request], seed: int = 0,
        kept: dict[Hashable, Any] | None = None,
    ):  # fmt: skip
        super().__init__(what, hw, requests, seed)
        assert hw.engine.terms is not None
        self.terms = hw.engine.terms.on(hw, what.model.name)
        self._kept = {} if kept is None else kept
        self._by_layer: dict[Hashable, tuple[np.ndarray, float]] = {}
        self._times: dict[Hashable, Times] = {}
        self._passes: dict[Hashable, np.ndarray] = {}
        first = requests(512, True)
        longest = first.prompt + first.generate
        self._n_ctx = -(-max(longest, 1) // 256) * 256
        sizes = {n for t in what.llama.tensors for n in t.shape}
        while self._n_ctx in sizes:  # what is as long as the cache is told by its length
            self._n_ctx += 256

    # ---- a configuration -------------------------------------------------------------------------

    def _time(self, c: Candidate, policy: str) -> Timed:
        if c.kind == UNIFIED:
            return self._unified(c)
        w = self._requests(c.ubatch, False).workload
        return self._split(c, w, self._served(c, policy), policy)

    def _resident(self, c: Candidate, w: Workload) -> Timed:
        return self._split(c, w, [], "")

    def _split(self, c: Candidate, w: Workload, served: list[Served], policy: str) -> Timed:
        """Passes by what they are spent on."""
        config, none = self._as_run(c), np.zeros(w.n_steps)
        of = dict.fromkeys(BOUNDS, none)
        for bound in BOUNDS[:-1]:
            # How the file is loaded bears on copies alone.
            key = (config, id(w), policy, bound, bound == "link" and c.mapped)
            if key not in self._passes:
                self._passes[key] = self._steps(w, config, self._ns(c, bound), served)
            of[bound] = self._passes[key]
        return Timed(sum(of.values(), none), of, _hits(served, w.n_steps))

    def _as_run(self, c: Candidate) -> LlamaConfig:
        """The flags with what does not bear on times made equal, so that graphs are counted once."""
        return replace(c.config, n_ctx=self._n_ctx, mmap=False, unified_memory=False)

    def _ns(self, c: Candidate, bound: str | None = None) -> Constants:
        """Nanoseconds a unit; what is copied comes from a mapped file or from page-locked memory.
        ``bound``: of the terms that are spent on it alone."""
        link = c.config.link
        if c.config.gpu and not self.terms.get(link):
            raise InputError(
                f"{self.hw.engine.name}: has no constant for copies from "
                f"{'mapped' if c.mapped else 'page-locked'} memory; calibrate it on a machine with a "
                "GPU"
            )
        return _Some(self.terms, link, bound)

    def _steps(
        self, w: Workload, config: LlamaConfig, ns: Constants, served: list[Served]
    ) -> np.ndarray:
        """float64 [S]: passes by some of the constants."""
        t = times(w, self.what.llama, config, ns)
        by_event = self._events(w, t, ns, served)
        return np.bincount(w.event_step, weights=by_event, minlength=w.n_steps) + t.tail

    def _events(self, w: Workload, t: Times, ns: Constants, served: list[Served]) -> np.ndarray:
        """float64 [E]: an event with the blocks before it."""
        experts = t.experts_ns(w, w.event_lo[1:]) + self._copied(w, t, ns)
        for part in served:
            at = np.isin(w.event_layer, part.layers)
            experts[at] = self._cached(part, _taken(t, at), ns)
        return t.before + experts

    def _copied(self, w: Workload, t: Times, ns: Constants) -> np.ndarray:
        """float64 [E]: copies of experts that lie in host memory and are computed with on the GPU."""
        distinct = np.diff(w.event_lo)
        return (
            t.copied * distinct * ns.get("pinned")
            + np.where(t.copied > 0, t.matrices * self._runs(w), 0) * ns.get("copy")
        )  # fmt: skip

    def _runs(self, w: Workload) -> np.ndarray:
        key = ("runs", id(w))
        if key not in self._kept:
            self._kept[key] = (w, expert_runs(w))
        return self._kept[key][1]

    def _cached(self, s: Served, t: Times, ns: Constants) -> np.ndarray:
        """float64 [E]: computing out of the cache, and what is brought into it or read past it."""
        w, n = s.workload, s.workload.n_events
        waves = t.experts_ns(w, s.wave_hi)
        total = np.bincount(s.wave_event, weights=waves, minlength=n)
        past = t.copied > 0
        each = self._sizes(s)[w.event_layer].astype(np.float64)
        upload = each * ns.get("pinned") + t.banks * ns.get("upload")
        share = self._runs(w) / np.maximum(np.diff(w.event_lo), 1)
        beside = t.copied * ns.get("pinned") + t.matrices * share * ns.get("copy")
        count = np.bincount(s.copy_event, minlength=n)
        return total + count * np.where(past, beside, upload)

    def _sizes(self, s: Served) -> np.ndarray:
        return np.asarray(self.model.expert_bytes, np.int64)[list(s.layers)]

    # ---- the expert cache ------------------------------------------------------------------------

    def _served(self, c: Candidate, policy: str) -> list[Served]:
        if c.kind != CACHE:
            return []
        groups = self.what.memory.cache(c.config).groups
        return [
            self._decided(c.ubatch, tuple(self._moe(g.blocks)), slots, policy)
            for g, slots in zip(groups, c.slots, strict=True) if slots
        ]  # fmt: skip

    def _moe(self, blocks: tuple[int, ...]) -> list[int]:
        return [i for i, b in enumerate(self.model.moe_layers) if b in blocks]

    def _decided(self, ubatch: int, layers: tuple[int, ...], slots: int, policy: str) -> Served:
        key = ("served", ubatch, layers, slots, policy)
        if key not in self._kept:
            w = events_in(self._requests(ubatch, False).workload, layers)
            model = _layers_of(self.model, layers)
            job = Job(
                w, model, self.hw, policy=EXPERTS.of(policy), slots=slots, seed=self.seed, ctx=0
            )
            d = Decisions(job)
            parts = d.serve_all()

            def joined(name: str) -> np.ndarray:
                return np.concatenate([getattr(p, name) for p in parts])

            wave_event = joined("wave_event").astype(np.int64)
            copies = np.diff(joined("wave_copy_hi"), prepend=0)
            self._kept[key] = Served(
                layers, w, wave_event, joined("wave_hi"), np.repeat(wave_event, copies), d.hit
            )
        found: Served = self._kept[key]
        return found

    # ---- for a search ----------------------------------------------------------------------------

    def seconds(self, c: Candidate) -> float:
        """`Prediction.seconds`, nearly: layers of a model with all experts on one side put together,
        so that no graph has to be split anew."""
        if c.kind == TENSORS:
            n, part = c.cpu_experts, self.what.share_of(c.cpu_experts, c.projections)
            less, more = (self.seconds(c.experts_away(i)) for i in (n, n + 1))
            return less + part * (more - less)
        if c.kind not in (NCMOE, CACHE):
            return super().seconds(c)
        whole, gpu_rest = self._layered(c, c.experts_away(0))
        n = self.what.moe_below(c.cpu_experts)
        if c.kind == NCMOE:
            away, rest = self._layered(c, c.experts_away(self.model.n_layers))
            first = away[:n].sum()
        else:
            full = c.with_(CACHE, n_cpu_moe=self.model.n_layers, moe_cache_mib=LARGE_CACHE_MIB)
            first, rest = self._cached_layers(c, full)
        part = n / len(self.model.moe_layers)
        return float(first + whole[n:].sum() + gpu_rest + (rest - gpu_rest) * part) / 1e9

    def _layered(self, c: Candidate, like: Candidate) -> tuple[np.ndarray, float]:
        """ns of the request by MoE layer, and of the rest, as ``like`` runs it."""
        key = (like.placement, like.config.moe_cache_mib)
        if key not in self._by_layer:
            w, weight, t, ns = self._all(like)
            by_event = self._events(w, t, ns, []) * weight[w.event_step]
            layers = np.bincount(w.event_layer, weights=by_event, minlength=w.n_layers)
            self._by_layer[key] = layers, float((t.tail * weight).sum())
        return self._by_layer[key]

    def _cached_layers(self, c: Candidate, full: Candidate) -> tuple[float, float]:
        w, weight, t, ns = self._all(full)
        total = 0.0
        for part in self._served(c, ENGINE_POLICY):
            mine = _taken(t, np.isin(w.event_layer, part.layers))
            found = mine.before + self._cached(part, mine, ns)
            total += float((found * weight[part.workload.event_step]).sum())
        return total, float((t.tail * weight).sum())

    def _all(self, c: Candidate) -> tuple[Workload, np.ndarray, Times, Constants]:
        r = self._requests(c.ubatch, False)
        ns = self._ns(c)
        key = (c.ubatch, c.kind, c.cpu_experts, c.mapped)
        if key not in self._times:
            self._times[key] = times(r.workload, self.what.llama, self._as_run(c), ns)
        return r.workload, r.prefill_weight + r.decode_weight, self._times[key], ns


def _taken(t: Times, events: np.ndarray) -> Times:
    """The times of some events (bool [E])."""
    mine = {f.name: getattr(t, f.name)[events] for f in fields(t) if f.name != "tail"}
    return replace(t, **mine)


def _hits(served: list[Served], steps: int) -> np.ndarray | None:
    """float64 [2, S]: hits and accesses."""
    if not served:
        return None
    out = np.zeros((2, steps))
    for s in served:
        step = np.repeat(s.workload.event_step, np.diff(s.workload.event_lo))
        out[0] += np.bincount(step, weights=s.hit, minlength=steps)
        out[1] += np.bincount(step, minlength=steps)
    return out


def _layers_of(model: Model, layers: tuple[int, ...]) -> Model:
    """Some MoE layers, as a model of their own: what a policy may know."""

    def pick(xs: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(xs[i] for i in layers)

    return replace(
        model, moe_layers=pick(model.moe_layers), expert_bytes=pick(model.expert_bytes),
        expert_params=pick(model.expert_params), tensors=(), described_by="",
    )  # fmt: skip
