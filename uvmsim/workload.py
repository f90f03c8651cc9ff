"""A trace as the simulator consumes it: a stream of events in kernel order.

An *event* is one layer of one forward pass: the distinct experts its tokens chose, in order of first
appearance (token by token, and within a token in rank order). With ``unit="access"`` every (token,
rank) is an event of its own, as plain cache simulators count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from traces.errors import InputError
from traces.jit import compiled
from traces.routing import RoutingTrace
from traces.routing.bounds import check_values
from traces.routing.step_counts import StepCounts, step_counts
from uvmsim.core.read_only import read_only

AHEAD = 2
"""Layers ahead that a trace may have routers' guesses of."""


@dataclass(frozen=True)
class Workload:
    """Flat arrays; E events, A accesses, S steps, R trace rows with a known routing."""

    n_layers: int
    """MoE layers; ``layer`` counts them from 0."""
    n_experts: int
    top_k: int
    unit: str
    ids: np.ndarray
    """int32 [A]: dense expert ids."""
    counts: np.ndarray
    """int32 [A]: tokens of the event that chose the expert."""
    event_lo: np.ndarray
    """int64 [E + 1]: first access of each event."""
    event_layer: np.ndarray
    """int32 [E]"""
    event_step: np.ndarray
    """int32 [E]: index into the steps, from 0."""
    event_tokens: np.ndarray
    """int32 [E]: tokens with a known row."""
    event_first: np.ndarray
    """bool [E]: the first event of its (step, layer); dense work is charged here."""
    row_lo: np.ndarray
    """int64 [E + 1]: rows of ``scores``, ``row_experts``, ``row_seq`` and
    ``row_pos`` of each event."""
    scores: np.ndarray
    """float32 [R, n_experts], or [0, 0]."""
    step_phase: np.ndarray
    """uint8 [S]"""
    step_tokens: np.ndarray
    """int32 [S]"""
    step_kv: np.ndarray
    """int64 [S]: sum over the step's tokens of the positions they attend to."""
    step_seq: np.ndarray
    """int32 [S]: sequence of the step's first token."""
    missing_rows: int
    row_experts: np.ndarray = field(default_factory=lambda: read_only(np.zeros((0, 0), np.int16)))
    """int16 [R, top_k]: what each known row chose, experts numbered within the layer, -1 where it has
    fewer; with unit="access" [A, 1]. Not to be written, and without rows in a workload that was not
    made of a trace."""
    row_seq: np.ndarray = field(default_factory=lambda: read_only(np.zeros(0, np.int32)))
    """int32 [R]: the sequence of each."""
    row_pos: np.ndarray = field(default_factory=lambda: read_only(np.zeros(0, np.int32)))
    """int32 [R]: its place in that sequence."""
    row_guesses: np.ndarray = field(
        default_factory=lambda: read_only(np.zeros((0, AHEAD, 0), np.int16))
    )
    """int16 [R, 2, 2k]: experts that the routers of the next MoE layer and of the one after it guess
    for each known row, best first, -1 none; no rows where the trace has no such guesses."""
    row_guess_scores: np.ndarray = field(
        default_factory=lambda: read_only(np.zeros((0, AHEAD, 0), np.float32))
    )
    """float32 [R, 2, 2k]: what they were ranked by."""
    passes: StepCounts | None = None
    """What each step came to, where steps have several sequences or drafts; None: one sequence a step,
    and all tokens count."""
    step_added_ns: np.ndarray | None = None
    """int64 [S]: GPU time of something beside the model, a drafter; None: none."""

    @property
    def emitted(self) -> np.ndarray:
        """int32 [S]: tokens that count, all but rejected drafts."""
        return self.step_tokens if self.passes is None else self.passes.emitted

    @property
    def n_events(self) -> int:
        return len(self.event_layer)

    @property
    def n_steps(self) -> int:
        return len(self.step_phase)

    @property
    def access_event(self) -> np.ndarray:
        """int64 [A]: the event of each access."""
        return np.repeat(np.arange(self.n_events), np.diff(self.event_lo))

    @property
    def widest(self) -> int:
        """Most distinct experts of one event."""
        return int(np.diff(self.event_lo).max(initial=0))

    def segments(self, reset: str) -> list[tuple[int, int]]:
        """Event ranges between which the pool is emptied: one, or one a run of a sequence."""
        if reset == "never" or self.n_events == 0:
            return [(0, self.n_events)]
        seq = self.step_seq[self.event_step]
        cuts = np.flatnonzero(np.diff(seq)) + 1
        edges = [0, *cuts.tolist(), self.n_events]
        return list(pairwise(edges))


def build_workload(trace: RoutingTrace, unit: str = "event") -> Workload:
    """The event stream of a routing trace; ``unit`` is ``event`` or ``access``.

    Raises `InputError` where the trace holds values that no trace can (`traces.routing.bounds`).
    """
    check_values(trace)  # traces made in memory come here unseen
    layers = np.asarray(trace.layers)
    n_layers, n_experts, k = len(layers), trace.n_experts, trace.top_k
    step, layer = np.asarray(trace.step), np.asarray(trace.layer)
    experts = np.asarray(trace.experts)
    n = len(step)
    if n == 0:
        raise InputError(f"{trace.path}: the trace has no rows")
    index = np.full(int(layers.max()) + 1, -1, np.int32)
    index[layers] = np.arange(n_layers, dtype=np.int32)
    guesses = {}
    new_group = np.empty(n, bool)
    new_group[0] = True
    new_group[1:] = (np.diff(step) != 0) | (np.diff(layer) != 0)
    groups = np.flatnonzero(new_group)
    _check_order(trace, step[groups], layer[groups], groups)
    if not (experts[:, 0] >= 0).any():
        raise InputError(f"{trace.path}: no row has a known routing; record it again")
    step_new = np.empty(n, bool)
    step_new[0] = True
    step_new[1:] = np.diff(step) != 0
    step_row = np.flatnonzero(step_new)
    step_index = np.cumsum(step_new, dtype=np.int32) - 1
    bounds = np.append(groups, n).astype(np.int64)
    group_layer = index[layer[groups]]
    group_step = step_index[groups]
    if unit == "event":
        ids, counts, lo, tokens, row_lo = events_kernel(
            experts, bounds, group_layer, n_experts, n_layers * n_experts
        )
        first = np.ones(len(groups), bool)
        e_layer, e_step = group_layer, group_step
        known = experts[:, 0] >= 0
        row_experts, row_seq, row_pos = experts, np.asarray(trace.seq), np.asarray(trace.pos)
        if not known.all():
            row_experts, row_seq, row_pos = experts[known], row_seq[known], row_pos[known]
        scores = trace.scores if trace.scores is not None else np.zeros((0, 0), np.float32)
        if len(scores) and not known.all():
            scores = np.ascontiguousarray(scores[known])
        guesses = _guesses(trace, known)
    elif unit == "access":
        used = experts >= 0
        group_of_row = np.repeat(np.arange(len(groups)), np.diff(bounds))
        group_of_access = np.repeat(group_of_row, k).reshape(n, k)[used]
        ids = (group_layer[group_of_access] * n_experts + experts[used]).astype(np.int32)
        counts = np.ones(len(ids), np.int32)
        # A layer whose routing is not known is an event without accesses: its dense work remains.
        per_group = np.bincount(group_of_access, minlength=len(groups))
        owner = np.repeat(np.arange(len(groups)), np.maximum(per_group, 1))
        tokens = (per_group > 0)[owner].astype(np.int32)
        lo = np.concatenate(([0], np.cumsum(tokens, dtype=np.int64)))
        row_lo = lo
        row_experts = experts[used][:, None]
        row_seq, row_pos = (
            np.repeat(np.asarray(x), used.sum(axis=1)) for x in (trace.seq, trace.pos)
        )
        first = np.empty(len(owner), bool)
        first[:1] = True
        first[1:] = np.diff(owner) != 0
        e_layer, e_step = group_layer[owner], group_step[owner]
        scores = np.zeros((0, 0), np.float32)
    else:
        raise InputError(f"--unit {unit}: must be event or access")
    per_step = _tokens_per_step(step_row, step_index, groups, bounds)
    pos = np.asarray(trace.pos)
    return Workload(
        n_layers, n_experts, k, unit, ids, counts, lo,
        e_layer.astype(np.int32), e_step.astype(np.int32), tokens, first, row_lo,
        np.ascontiguousarray(scores, np.float32),
        np.asarray(trace.phase)[step_row].astype(np.uint8), per_step,
        _attended(pos, step_row, per_step),
        np.asarray(trace.seq)[step_row].astype(np.int32),
        int((experts[:, 0] < 0).sum()),
        read_only(np.ascontiguousarray(row_experts, np.int16)),
        read_only(np.ascontiguousarray(row_seq, np.int32)),
        read_only(np.ascontiguousarray(row_pos, np.int32)), **guesses, passes=_passes(trace),
    )  # fmt: skip


def _passes(trace: RoutingTrace) -> StepCounts | None:
    seq, step = np.asarray(trace.seq), np.asarray(trace.step)
    several = ((seq[1:] != seq[:-1]) & (step[1:] == step[:-1])).any()
    return step_counts(trace) if several or trace.draft is not None else None


def _guesses(trace: RoutingTrace, known: np.ndarray) -> dict[str, np.ndarray]:
    """The fields of a workload for what a trace's routers guessed, of the rows that are ``known``."""
    made = [trace.predictions.get(f"next{n}") for n in range(1, AHEAD + 1)]
    first = made[0]
    if first is None:
        return {}
    none = (np.full_like(first.ids, -1), np.full_like(first.scores, np.nan))
    both = [none if g is None else (g.ids, g.scores) for g in made]
    ids, scores = (np.stack([g[part][known] for g in both], axis=1) for part in range(2))
    return {
        "row_guesses": read_only(np.ascontiguousarray(ids, np.int16)),
        "row_guess_scores": read_only(np.ascontiguousarray(scores, np.float32)),
    }


def _check_order(trace: RoutingTrace, step, layer, rows) -> None:
    back = np.flatnonzero((np.diff(step) < 0) | ((np.diff(step) == 0) & (np.diff(layer) <= 0)))
    if len(back):
        row = int(rows[back[0] + 1])
        raise InputError(
            f"{trace.path}, row {row}: rows are not in (step, layer) order; "
            "`uvmsim trace check` says whether the file is damaged"
        )


def _tokens_per_step(step_row, step_index, groups, bounds) -> np.ndarray:
    """Tokens of a step: rows of its first layer (later layers may be pruned)."""
    first_group = np.searchsorted(groups, step_row)
    return (bounds[first_group + 1] - bounds[first_group]).astype(np.int32)


def _attended(pos, step_row, per_step) -> np.ndarray:
    total = np.concatenate(([0], np.cumsum(pos.astype(np.int64) + 1)))
    return total[step_row + per_step] - total[step_row]


@compiled(nogil=True)
def events_kernel(experts, bounds, group_layer, n_experts, n_total):
    """Distinct ids of each run of rows, in order of first appearance."""
    rows, k = experts.shape
    n_events = len(group_layer)
    ids = np.empty(rows * k, np.int32)
    counts = np.empty(rows * k, np.int32)
    lo = np.zeros(n_events + 1, np.int64)
    tokens = np.zeros(n_events, np.int32)
    row_lo = np.zeros(n_events + 1, np.int64)
    seen = np.full(n_total, -1, np.int64)  # access number of an id within the event
    a = 0
    known = 0
    for g in range(n_events):
        start = a
        base = group_layer[g] * n_experts
        for r in range(bounds[g], bounds[g + 1]):
            if experts[r, 0] < 0:
                continue
            tokens[g] += 1
            known += 1
            for j in range(k):
                if experts[r, j] < 0:
                    continue
                e = base + experts[r, j]
                if seen[e] >= start:
                    counts[seen[e]] += 1
                else:
                    seen[e] = a
                    ids[a] = e
                    counts[a] = 1
                    a += 1
        lo[g + 1] = a
        row_lo[g + 1] = known
    return ids[:a].copy(), counts[:a].copy(), lo, tokens, row_lo


@compiled(nogil=True)
def next_uses(ids, n_total, lo, hi, out, first):
    """Fill ``out[lo:hi]`` with the number of each id's next access before ``hi`` (NEVER if none)
    and ``first`` with each id's first access in the range."""
    never = np.iinfo(np.int64).max
    first[:] = never
    for a in range(hi - 1, lo - 1, -1):
        e = ids[a]
        out[a] = first[e]
        first[e] = a
