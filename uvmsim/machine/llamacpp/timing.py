"""How long llama.cpp takes for a workload's steps: counts of `work` times an engine's constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from traces.jit import compiled
from uvmsim.machine.llama_terms import Constants
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.kernels import ROW_TOKENS
from uvmsim.machine.llamacpp.kv_cache import cells_of
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.work import Block, Counts, Work, work
from uvmsim.machine.timing import kept_of
from uvmsim.workload import Workload

KV_PADDING = 256
"""Attention runs over a multiple of so many positions (``llama_kv_cache::get_n_kv``)."""
GRAPH_AFTER = 2
"""Equal micro-batches before one that runs as a CUDA graph (``warmup_complete``)."""

Variant = Callable[[Work], Work]


@dataclass(frozen=True)
class StepShape:
    """What is equal in steps that take the same time but for their routing."""

    n_tokens: np.ndarray
    """int64 [S]"""
    n_kv: np.ndarray
    """int64 [S]: positions attended to, padded."""
    unique: np.ndarray
    """int64 [U]: the different numbers of tokens."""
    which: np.ndarray
    """int64 [S]: index into ``unique``."""
    repeated: np.ndarray
    """bool [S]: runs as a CUDA graph, since the steps before had the same shape."""


def step_shape(w: Workload) -> StepShape:
    """Shapes of a workload's steps; the tokens of a step are taken to be of one sequence."""
    n = w.step_tokens.astype(np.int64)
    last = w.step_kv / np.maximum(n, 1) + (n - 1) / 2
    n_kv = -(-np.rint(last).astype(np.int64) // KV_PADDING) * KV_PADDING
    unique, which = np.unique(n, return_inverse=True)
    same = np.zeros(len(n), np.int64)
    if len(n) > 1:
        equal = (np.diff(n) == 0) & (np.diff(n_kv) == 0)
        for s, e in enumerate(equal, 1):
            same[s] = same[s - 1] + 1 if e else 0
    return StepShape(n, n_kv, unique, which, same >= GRAPH_AFTER)


@dataclass(frozen=True)
class Times:
    """Nanoseconds by step and event, routing applied; float64."""

    before: np.ndarray
    """[E]: work of the blocks before an event's experts, at the first event of a (step, layer)."""
    tail: np.ndarray
    """[S]: what is not of a block, and waits for launches."""
    call: np.ndarray
    """[E]: an event's experts, whichever they are."""
    expert: np.ndarray
    """[E]: one distinct expert more."""
    pair: np.ndarray
    """[E]: one token of an expert more."""
    tile: np.ndarray
    """int64 [E]: tokens of an expert that are computed at a time."""
    copied: np.ndarray
    """int64 [E]: bytes of an expert that lie in host memory and are computed with on the GPU."""
    matrices: np.ndarray
    """int64 [E]: tensors that those are of."""
    banks: np.ndarray
    """int64 [E]: matrices of an expert that the GPU computes with, wherever they lie."""
    on_cpu: np.ndarray
    """bool [E]: an event's experts are computed by the CPU."""

    def experts_ns(
        self, w: Workload, wave_hi: np.ndarray, *, without: np.ndarray | None = None
    ) -> np.ndarray:
        """int64 [W]: computing the experts of each wave; empty waves take no time, and what a call
        costs is paid by each wave. ``without`` (bool [A]): accesses that something else computes."""
        of: tuple[np.ndarray, ...] = (wave_hi, w.ids, w.counts, w.access_event)
        if without is not None:
            of = kept_of(wave_hi, without, *of[1:])
        return _waves(*of, self.call, self.expert, self.pair, self.tile)


@compiled(nogil=True)
def _waves(wave_hi, ids, counts, event, call, expert, pair, tile):  # type: ignore[no-untyped-def]
    out = np.empty(len(wave_hi), np.int64)
    a = 0
    for k in range(len(wave_hi)):
        end = wave_hi[k]
        if a == end:
            out[k] = 0
            continue
        e = event[a]
        t = tile[e]
        tiled = np.int64(0)
        for i in range(a, end):
            tiled += (counts[i] + t - 1) // t * t
        out[k] = np.int64(np.rint(call[e] + (end - a) * expert[e] + tiled * pair[e]))
        a = end
    return out


def times(
    w: Workload,
    model: LlamaModel,
    config: LlamaConfig,
    ns: Constants,
    *,
    variant: Variant | None = None,
) -> Times:
    """Times of all events and steps under a configuration.

    ``ns``: nanoseconds a unit of each term. ``variant`` changes what a micro-batch consists of
    (`managed`, `remote`). Raises `InputError` for models that `plan.memory` refuses.
    """
    shape = step_shape(w)
    moe = [i for i in range(model.n_layers) if _routed(model, i)]
    made = [work(model, config, int(n)) for n in shape.unique]
    made = [variant(x) for x in made] if variant else made
    tables = [_Table(x, moe, ns, model) for x in made]

    def by_event(name: str) -> np.ndarray:
        table = np.stack([getattr(t, name) for t in tables])
        return table[shape.which[w.event_step], w.event_layer]

    kv = shape.n_kv[w.event_step]
    window = min((cells_of(model, config, i) for i in range(model.n_layers)), default=0)
    near = np.minimum(kv, window)
    before = by_event("dense") + kv * by_event("attended") + near * by_event("near")
    before = np.where(w.event_first, before, 0.0)
    rest = np.array([t.tail for t in tables])[shape.which]
    far = np.array([t.tail_attended for t in tables])[shape.which]
    tail = rest + shape.n_kv * far
    found = Times(
        before, tail, by_event("call"), by_event("expert"), by_event("pair"),
        by_event("tile").astype(np.int64), by_event("copied").astype(np.int64),
        by_event("matrices").astype(np.int64), by_event("banks").astype(np.int64),
        by_event("on_cpu").astype(bool),
    )  # fmt: skip
    if config.gpu and ns.get("launch"):
        kernels = np.array([x.kernels for x in made])[shape.which]
        fresh = ~shape.repeated & (shape.n_tokens > ROW_TOKENS)
        tail += np.where(fresh, kernels * ns.get("launch"), 0.0)
    return found


def _routed(model: LlamaModel, block: int) -> bool:
    return f"blk.{block}.ffn_gate_inp.weight" in model.by_name


class _Table:
    """One micro-batch's times by MoE layer; blocks without experts count with the next that has."""

    def __init__(self, x: Work, moe: list[int], ns: Constants, model: LlamaModel) -> None:
        n = len(moe)
        self.dense, self.attended, self.near = np.zeros(n), np.zeros(n), np.zeros(n)
        self.call, self.expert, self.pair = np.zeros(n), np.zeros(n), np.zeros(n)
        self.tile, self.copied = np.ones(n, np.int64), np.zeros(n, np.int64)
        self.matrices, self.banks = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.on_cpu = np.zeros(n, bool)
        self.tail, self.tail_attended = total(x.once, ns), 0.0
        home = np.searchsorted(moe, np.arange(model.n_layers))
        for block, b in enumerate(x.blocks):
            i = int(home[block])
            dense, attended = total(b.dense, ns), total(b.attended, ns)
            if i == n:
                self.tail += dense
                self.tail_attended += attended
                continue
            self.dense[i] += dense
            (self.near if b.windowed else self.attended)[i] += attended
            if block == moe[i]:
                self.call[i], self.expert[i] = total(b.call, ns), total(b.expert, ns)
                self.pair[i], self.tile[i] = total(b.pair, ns), b.tile
                self.copied[i], self.matrices[i] = b.copied, b.matrices
                self.banks[i], self.on_cpu[i] = b.banks, on_cpu(b)


def on_cpu(b: Block) -> bool:
    """Whether a block's experts are computed by the CPU."""
    return any(k.startswith("cpu.") for k in (*b.expert, *b.pair))


def total(counts: Counts, ns: Constants) -> float:
    """Nanoseconds of counted terms."""
    return sum(n * ns.get(key) for key, n in counts.items())


# ---- other places for the same weights ------------------------------------------------------------


def managed(x: Work) -> Work:
    """The micro-batch with all device memory managed, and resident."""
    more = {"managed_kernel": float(x.kernels)} if x.n_tokens <= ROW_TOKENS else {}
    return replace(x, once=x.once | more)


def remote(x: Work) -> Work:
    """The micro-batch with all device memory kept on the host, mapped on the GPU."""
    row = x.n_tokens <= ROW_TOKENS

    def moved(counts: Counts) -> Counts:
        out: Counts = {}
        for key, n in counts.items():
            stem, _, kind = key.partition(".")
            if stem in ("row", "row_experts"):
                out[f"remote.{kind}"] = out.get(f"remote.{kind}", 0.0) + n
            else:
                out[key] = out.get(key, 0.0) + n
                if stem == "expert_bytes" or (stem == "dense_bytes" and not row):
                    out[f"remote_batch.{kind}"] = out.get(f"remote_batch.{kind}", 0.0) + n
        return out

    blocks = tuple(
        replace(b, dense=moved(b.dense), call=moved(b.call), expert=moved(b.expert))
        for b in x.blocks
    )
    more = {"remote_kernel": float(x.kernels)} if row else {}
    return replace(x, once=moved(x.once) | more, blocks=blocks)
