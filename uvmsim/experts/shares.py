"""What each of several GPUs has of a run: a workload, a model and a job of its own.

A share is a run by itself, so the pool's kernel, policies and the replay engine work on it unchanged.
Layers and experts are numbered from 0 in every share; the tables of `Share` lead back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from traces.errors import InputError
from uvmsim.core.read_only import read_only
from uvmsim.machine.model import Model
from uvmsim.runs.job import Job
from uvmsim.runs.splits import EXPERTS, LAYERS, POOL, POPULARITY, SPLITS
from uvmsim.workload import AHEAD, Workload

NOBODY = -1


@dataclass(frozen=True)
class Share:
    """One device's part; e events, a accesses, x experts of its own."""

    job: Job
    device: int
    events: np.ndarray
    """int64 [e]: the run's number of each event."""
    accesses: np.ndarray
    """int64 [a]: the run's number of each access."""
    experts: np.ndarray
    """int64 [x]: the run's number of each expert; -1: a number that stands for none."""
    layers: np.ndarray
    """int64: the run's number of each layer."""


def shares_of(job: Job) -> list[Share]:
    """The parts of a job by device. With ``pool`` the first device has everything. Raises
    `InputError` for a split that is not known, and where there is too little to share."""
    d, w = job.gpus, job.workload
    if job.split not in SPLITS:
        raise InputError(f"{job.split}: must be one of {', '.join(SPLITS)}", argument="split")
    if job.split in (EXPERTS, POPULARITY):
        if d > w.n_experts:
            raise InputError(f"{d}: more than the {w.n_experts} experts of a layer", "gpus")
        owner = owners(job.profile or w, d, by_popularity=job.split == POPULARITY)
        return [_experts_of(job, owner, i) for i in range(d)]
    if job.split == POOL:
        return [_layers_of(job, 0, w.n_layers, 0, last=True)]
    if d > w.n_layers:
        raise InputError(f"{d}: more than the {w.n_layers} layers with experts", argument="gpus")
    assert job.split == LAYERS
    edges = [i * w.n_layers // d for i in range(d + 1)]
    return [_layers_of(job, edges[i], edges[i + 1], i, last=i == d - 1) for i in range(d)]


def owners(w: Workload, devices: int, by_popularity: bool) -> np.ndarray:
    """int64 [layers, experts]: the device of each expert, each layer's experts dealt out in turn: as
    they are numbered, one further in each layer, or by popularity, to and fro."""
    number = np.arange(w.n_experts)
    if not by_popularity:
        return (number[None, :] + np.arange(w.n_layers)[:, None]) % devices
    uses = np.bincount(w.ids, weights=w.counts, minlength=w.n_layers * w.n_experts)
    rank_of = np.argsort(-uses.reshape(w.n_layers, -1), axis=1, kind="stable")
    lap, seat = number // devices, number % devices
    owner = np.empty((w.n_layers, w.n_experts), np.int64)
    np.put_along_axis(
        owner, rank_of, np.broadcast_to(np.where(lap % 2, devices - 1 - seat, seat), owner.shape), 1
    )
    return owner


# ---- layers ---------------------------------------------------------------------------------------


def _layers_of(job: Job, first: int, end: int, device: int, last: bool) -> Share:
    """MoE layers ``first`` .. ``end - 1``, and the blocks before each of them; the last device has what
    follows the last."""
    w = job.workload
    events = np.flatnonzero((w.event_layer >= first) & (w.event_layer < end))
    mine, accesses = _layers_workload(w, events, first, end)
    profile = job.profile
    if profile is not None:
        kept = np.flatnonzero((profile.event_layer >= first) & (profile.event_layer < end))
        profile = _layers_workload(profile, kept, first, end)[0]
    model = _blocks_of(job.model, first, end, last)
    made = replace(job, workload=mine, model=model, profile=profile, gpus=1)
    x = np.arange(first * w.n_experts, end * w.n_experts, dtype=np.int64)
    return Share(made, device, events, accesses, x, np.arange(first, end))


def _layers_workload(
    w: Workload, events: np.ndarray, first: int, end: int
) -> tuple[Workload, np.ndarray]:
    lengths = np.diff(w.event_lo)[events]
    accesses = _spans(w.event_lo[:-1][events], lengths)
    row_lengths = np.diff(w.row_lo)[events]
    rows = _spans(w.row_lo[:-1][events], row_lengths)
    made = replace(
        w, n_layers=end - first, ids=w.ids[accesses] - np.int32(first * w.n_experts),
        counts=w.counts[accesses], event_lo=_bounds(lengths),
        event_layer=w.event_layer[events] - np.int32(first), event_step=w.event_step[events],
        event_tokens=w.event_tokens[events], event_first=w.event_first[events],
        row_lo=_bounds(row_lengths), scores=_rows(w.scores, rows),
        row_experts=read_only(_rows(w.row_experts, rows)), row_seq=read_only(_rows(w.row_seq, rows)),
        row_pos=read_only(_rows(w.row_pos, rows)),
    )  # fmt: skip
    if len(w.row_guesses):
        guesses, ranks = w.row_guesses[rows].copy(), w.row_guess_scores[rows].copy()
        layer = np.repeat(w.event_layer[events], row_lengths)
        for n in range(AHEAD):
            # What is said of another device's layer is no news here.
            away = layer + n + 1 >= end
            guesses[away, n], ranks[away, n] = NOBODY, np.nan
        made = replace(made, row_guesses=read_only(guesses), row_guess_scores=read_only(ranks))
    return made, accesses


def _blocks_of(m: Model, first: int, end: int, last: bool) -> Model:
    """The blocks that belong to MoE layers ``first`` .. ``end - 1`` (`dense_times` has the rule)."""
    if first == 0 and last:
        return m
    lo = m.moe_layers[first - 1] + 1 if first else 0
    hi = m.n_layers if last else m.moe_layers[end - 1] + 1
    return replace(
        m, n_layers=hi - lo, moe_layers=tuple(x - lo for x in m.moe_layers[first:end]),
        expert_bytes=m.expert_bytes[first:end], expert_params=m.expert_params[first:end],
        dense_bytes=m.dense_bytes[lo:hi], dense_params=m.dense_params[lo:hi],
        output_bytes=m.output_bytes if last else 0, output_params=m.output_params if last else 0,
        embedding_bytes=m.embedding_bytes if not first else 0,
        embedding_params=m.embedding_params if not first else 0,
        kv_bytes_per_token=m.kv_bytes_per_token * (hi - lo) // m.n_layers,
        tensors=(), described_by="",
    )  # fmt: skip


# ---- experts --------------------------------------------------------------------------------------


def _experts_of(job: Job, owner: np.ndarray, device: int) -> Share:
    """Every layer, with the experts that a device owns."""
    w = job.workload
    kept = owner == device
    n = int((owner[..., None] == np.arange(job.gpus)).sum(1).max())
    """Of the layer and device that have most; a number that others do not use stands for none."""
    place = np.where(kept, np.cumsum(kept, axis=1) - 1, NOBODY)
    experts = np.full((w.n_layers, n), NOBODY, np.int64)
    layer, e = np.nonzero(kept)
    experts[layer, place[layer, e]] = layer * w.n_experts + e
    mine, accesses = _experts_workload(w, place, experts, n)
    profile = job.profile
    if profile is not None:
        profile = _experts_workload(profile, place, experts, n)[0]
    m = job.model
    model = replace(m, n_experts=n, top_k=mine.top_k, tensors=(), described_by="")
    if job.gpus == 1:
        model = m
    elif device:
        none = (0,) * m.n_layers
        model = replace(
            model, dense_bytes=none, dense_params=none, output_bytes=0, output_params=0,
            embedding_bytes=0, embedding_params=0, kv_bytes_per_token=0,
        )  # fmt: skip
    made = replace(job, workload=mine, model=model, profile=profile, gpus=1)
    events = np.arange(w.n_events, dtype=np.int64)
    return Share(made, device, events, accesses, experts.ravel(), np.arange(w.n_layers))


def _experts_workload(
    w: Workload, place: np.ndarray, experts: np.ndarray, n: int
) -> tuple[Workload, np.ndarray]:
    """Accesses, rows and guesses of experts with a ``place`` (int64 [layers, experts], -1: none)."""
    layer = w.ids // w.n_experts
    here = place[layer, w.ids % w.n_experts]
    accesses = np.flatnonzero(here >= 0)
    before = np.concatenate(([0], np.cumsum(here >= 0))).astype(np.int64)
    ids = (layer[accesses] * n + here[accesses]).astype(np.int32)
    row_layer = np.repeat(w.event_layer, np.diff(w.row_lo))
    chosen, _ = _placed(w.row_experts, place, row_layer)
    if w.unit == "access":
        top_k = 1
        rows = np.arange(len(chosen)) if not len(chosen) else np.flatnonzero(chosen[:, 0] >= 0)
        # Rows are accesses here, so both have the same bounds.
        row_lo = before[w.row_lo] if len(w.row_experts) else w.row_lo
    else:
        rows = np.flatnonzero(chosen[:, 0] >= 0) if len(chosen) else np.zeros(0, np.int64)
        used = np.concatenate(([0], np.cumsum(chosen[:, 0] >= 0))) if len(chosen) else None
        row_lo = used[w.row_lo].astype(np.int64) if used is not None else w.row_lo
    top_k = min(w.top_k, n)
    made = replace(
        w, n_experts=n, top_k=top_k, ids=ids, counts=w.counts[accesses], event_lo=before[w.event_lo],
        event_tokens=np.diff(row_lo).astype(np.int32) if len(chosen) else w.event_tokens,
        row_lo=row_lo, row_experts=read_only(_rows(chosen, rows)[:, :top_k]),
        row_seq=read_only(_rows(w.row_seq, rows)), row_pos=read_only(_rows(w.row_pos, rows)),
    )  # fmt: skip
    if len(w.scores):
        which = experts[row_layer[rows]] - row_layer[rows][:, None] * w.n_experts
        known = np.take_along_axis(w.scores[rows], np.maximum(which, 0), axis=1)
        lowest = np.float32(-np.inf)
        scores = np.where(experts[row_layer[rows]] >= 0, known, lowest).astype(np.float32)
        made = replace(made, scores=np.ascontiguousarray(scores))
    if len(w.row_guesses):
        width = min(w.row_guesses.shape[2], 2 * top_k, n)
        guesses = np.full((len(rows), AHEAD, width), NOBODY, np.int16)
        ranks = np.full((len(rows), AHEAD, width), np.nan, np.float32)
        for ahead in range(AHEAD):
            target = np.minimum(row_layer + ahead + 1, w.n_layers - 1)
            found, rank = _placed(
                w.row_guesses[:, ahead], place, target, w.row_guess_scores[:, ahead]
            )
            guesses[:, ahead], ranks[:, ahead] = found[rows, :width], rank[rows, :width]
        made = replace(made, row_guesses=read_only(guesses), row_guess_scores=read_only(ranks))
    return made, accesses


def _placed(
    chosen: np.ndarray, place: np.ndarray, layer: np.ndarray, ranks: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Experts of rows by their places, in their order, those without one left out (-1 at the end);
    and what they rank by, moved along."""
    if not len(chosen):
        return chosen, np.zeros(chosen.shape, np.float32)
    here = np.where(chosen >= 0, place[layer[:, None], np.maximum(chosen, 0)], NOBODY)
    order = np.argsort(here < 0, axis=1, kind="stable")
    found = np.ascontiguousarray(np.take_along_axis(here, order, 1).astype(np.int16))
    if ranks is None:
        return found, np.zeros(found.shape, np.float32)
    moved = np.take_along_axis(ranks, order, 1)
    return found, np.where(found >= 0, moved, np.float32(np.nan)).astype(np.float32)


# ---- arrays ---------------------------------------------------------------------------------------


def _rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[rows]) if len(array) else array


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def _spans(start: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Numbers start[0] .. start[0] + lengths[0] - 1, start[1] .. and so on."""
    offset = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return (np.repeat(start, lengths) + offset).astype(np.int64)
