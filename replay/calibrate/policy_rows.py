"""What each policy's hooks cost this host, on made-up routing of gpt-oss-20b's shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replay.calibrate.stats import Row, row
from traces.routing import routing
from traces.synth.generate import with_overlap, zipf_logits
from uvmsim.core.read_only import read_only
from uvmsim.experts.hook_time import ROUNDS, STEPS, hook_time, hook_times
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.policies.base import Eviction
from uvmsim.policies.registry import builtin, parse
from uvmsim.runs.job import Job
from uvmsim.workload import AHEAD, Workload, build_workload

TABLE = "policies"
MODEL = "gpt-oss-20b"
ZIPF, STICKINESS, TOPIC = 0.6, 0.44, 0.33
"""Popularity slope, overlaps at lag 1 and within a sequence, as `uvmsim trace synth` takes them."""
PROMPT = 512
RESIDENT = 0.25
"""Share of all experts that has a slot."""
FEW = ("layer-lru", "learned", "learned-next", "lfu", "lru", "next-layer")
"""What a quick calibration measures: the policies that `compare` shows unless others are asked for,
and `learned-next`."""


def policy_rows(quick: bool) -> list[Row]:
    """Rows with ``policy``, ``phase`` and ``least_ns``: host time beyond LRU's, ns a token of one
    layer's event, the least of `ROUNDS` rounds; the spread is the rounds'. Processor time of this
    thread.

    Policies that are given the future are bounds, which nobody runs, and are left out.
    """
    made: list[Row] = []
    job = _job()
    for name, cls in builtin().items():
        if "next_use" in cls.needs or (quick and name not in FEW):
            continue
        spec = parse(name if issubclass(cls, Eviction) else f"lru+{name}")
        mine = replace(job, policy=spec)
        rounds = hook_times(mine)
        least = hook_time(mine, rounds)
        for i, phase in enumerate(("prefill", "decode")):
            told = {"policy": name, "phase": phase, "least_ns": round(getattr(least, phase))}
            made.append(row(rounds[:, i], **told))
    return made


def source_of(rows: list[Row]) -> str:
    """How the rows were found, for a profile."""
    of = {r["policy"] for r in rows}
    return (
        f"processor time of the hooks beyond lru's, the least of {ROUNDS} rounds of {STEPS:,} forward "
        f"passes; made-up routing of {MODEL}'s shape, {RESIDENT:.0%} resident, one pool, a prompt of "
        f"{PROMPT} tokens, usual parameters; {len(of)} policies, one thread"
    )


def policy_tables(rows: list[Row]) -> dict[str, dict[str, int]]:
    """By policy: ``decode_ns`` and ``prefill_ns`` of ``[policy_ns.NAME]``."""
    found: dict[str, dict[str, int]] = {}
    for r in rows:
        found.setdefault(r["policy"], {})[f"{r['phase']}_ns"] = int(r["least_ns"])
    return {name: {k: found[name][k] for k in ("decode_ns", "prefill_ns")} for name in found}


def _job() -> Job:
    model = Model.load(MODEL)
    w = stream(model.n_layers, model.n_experts, model.top_k)
    slots = round(RESIDENT * model.n_layers * model.n_experts)
    return Job(w, model, Hardware.load("h100"), policy=parse("lru"), slots=slots, profile=w)


def stream(n_layers: int, n_experts: int, top_k: int, seed: int = 0) -> Workload:
    """A prompt of `PROMPT` tokens and `STEPS` tokens one by one, with routers' scores and, of each
    token, guesses of the next two layers that are right more often than not."""
    tokens = PROMPT + STEPS
    logits = zipf_logits(n_layers, n_experts, ZIPF, seed)
    synth = with_overlap(logits, top_k, STICKINESS, TOPIC, seed)
    ids, weights = synth.generate(np.array([0, tokens]), seed)
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    scores = rng.gumbel(size=(tokens, n_layers, n_experts)).astype(np.float32)
    bonus = np.take_along_axis(scores, ids.astype(np.int64), axis=2) + np.float32(2)
    np.put_along_axis(scores, ids.astype(np.int64), bonus, axis=2)
    w = build_workload(
        routing(ids, n_experts, weights=weights, scores=scores, prefill=PROMPT, ranked=True)
    )
    ahead = [_guesses(scores, i + 1, 2 * top_k, w) for i in range(AHEAD)]
    guesses, values = (np.ascontiguousarray(np.stack(x, axis=1)) for x in zip(*ahead, strict=True))
    return replace(w, row_guesses=read_only(guesses), row_guess_scores=read_only(values))


def _guesses(scores: np.ndarray, ahead: int, m: int, w: Workload) -> tuple[np.ndarray, np.ndarray]:
    """int16 and float32 [R, m]: the best of the layer ``ahead``, for each row of the workload; none
    (-1) where there is no such layer."""
    n_layers = scores.shape[1]
    layer = np.repeat(w.event_layer, np.diff(w.row_lo)) + ahead
    there = layer < n_layers
    of = scores[w.row_pos, np.minimum(layer, n_layers - 1)]
    best = np.argsort(-of, axis=1, kind="stable")[:, :m]
    values = np.take_along_axis(of, best, axis=1)
    return (
        np.where(there[:, None], best, -1).astype(np.int16),
        np.where(there[:, None], values, 0).astype(np.float32),
    )
