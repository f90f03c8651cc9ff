"""A load on an expert cache by the compiled server (`uvmsim.serving.stream`): memory does not grow with
the forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from uvmsim.clocks.fast import PLACES
from uvmsim.core.bind import bind
from uvmsim.experts.decisions import Decisions
from uvmsim.experts.pool import EVENTS, HITS
from uvmsim.machine.timing import copy_times
from uvmsim.policies.registry import PolicySpec, chooses
from uvmsim.runs.job import Job
from uvmsim.serving.load import Load
from uvmsim.serving.open_workload import empty
from uvmsim.serving.schedule import DONE, Queue, new_entries, new_queue
from uvmsim.serving.server import Server
from uvmsim.serving.source import Source
from uvmsim.serving.stream import (
    COLUMNS,
    FULL,
    Copies,
    Part,
    Prices,
    Tokens,
    begin_one,
    end_one,
    plan_pass,
    serve_passes,
)
from uvmsim.workload import build_workload

BLOCK = 5_000
"""Forward passes between two reports of progress."""
WORTH = 200_000
"""Forward passes to come that are worth compiling the loop for: some ten seconds a policy."""


@dataclass(frozen=True)
class Border:
    """The border between experts and KV cache moves: requests take room when they are admitted, and the
    experts have all that is left. ``slots`` and ``kv_tokens``: what each would have if it did not."""

    slots: int
    kv_tokens: int

    def array(self, job: Job) -> np.ndarray:
        """int64 [3]: bytes that both share, of a slot, of a token's KV cache."""
        slot, token = max(job.model.expert_bytes), job.model.kv_bytes_per_token
        return np.array([self.slots * slot + self.kv_tokens * token, slot, token], np.int64)

    def most_slots(self, job: Job) -> int:
        """While there is no request."""
        total, slot, _ = self.array(job).tolist()
        return min(total // slot, job.workload.n_layers * job.workload.n_experts)


@dataclass(frozen=True)
class Streamed:
    """A load that was served."""

    load: Load
    queue: Queue
    sums: np.ndarray
    """int64 [2, 7]: by phase (0: passes with tokens of a prompt), see `uvmsim.serving.stream`."""
    hits: int
    slots: int
    notes: list[str]


def why_not(job: Job, mechanism: str) -> str | None:
    """Why the compiled server cannot serve a job; None: it can."""
    spec = job.policy
    if mechanism != "expert-cache" or not isinstance(spec, PolicySpec):
        return f"mechanism {mechanism}"
    if job.hardware.engine.terms is not None:
        return "an engine profile with llama.cpp's terms"
    for what, given in (
        ("a policy that chooses what becomes of a miss", chooses(spec) or job.scratch),
        ("prefetches in pieces", job.prefetch_pieces), ("policy time", job.policy_time),
        ("emptied pools", job.reset != "never"), ("router guesses", "router_guesses" in spec.needs),
        ("router scores", "router_scores" in spec.needs),
    ):  # fmt: skip
        if given:
            return what
    return None


def serve_streamed(
    job: Job, load: Load, server: Server, source: Source,
    progress: Callable[[int, int], None] | None = None, border: Border | None = None,
) -> Streamed:  # fmt: skip
    """Serve ``load`` on an expert cache; see `uvmsim.serving.machine.serve_job`. ``progress`` is
    called with requests done and requests in all; with a ``border`` it moves. Raises
    `InputError`."""
    if border is not None:
        job = replace(job, slots=border.most_slots(job))
    load = load.warmed() if server.warmup else load
    room = 1 << 16
    while True:
        made = _served(job, load, server, source, room, progress, border)
        if made is not None:
            return made
        room *= 4


def _served(
    job: Job, load: Load, server: Server, source: Source, room: int,
    progress: Callable[[int, int], None] | None, border: Border | None,
) -> Streamed | None:  # fmt: skip
    like = build_workload(source.trace)
    layers = like.n_layers
    widest = layers * min(server.ubatch * like.top_k, like.n_experts)
    w, experts, seq, pos = empty(like, layers, widest, server.ubatch * layers, 1)
    w.event_layer[:] = np.arange(layers)
    decisions = Decisions(replace(job, workload=w))
    kernel, stream, pool, tally, states, out, most, misses = decisions.opened(widest)
    part = Part(
        new_entries(server),
        np.zeros(server.ubatch, np.int32), np.zeros(server.ubatch, np.int8),
        np.zeros(server.ubatch, np.int32), w.ids, w.counts, w.event_lo, w.event_tokens, w.row_lo,
        experts, seq, pos, w.step_phase, np.full(w.n_layers * w.n_experts, -1, np.int64),
    )  # fmt: skip
    queue, entries = new_queue(load, server), new_entries(server)
    copies = new_copies(room + len(out.copy_kind), len(out.wave_hi), len(out.waits))
    sums, cursor = np.zeros((2, COLUMNS), np.int64), np.zeros(6, np.int64)
    tokens, prices = Tokens(source.prompt, source.output, load.start), prices_of(job, border)

    def one_by_one(budget: int) -> None:
        """`serve_passes` in Python: a call takes 0.1 ms more a pass, and nothing is compiled for it."""
        for _ in range(budget):
            if not begin_one(queue, cursor, entries, tokens, part, prices, tally, w.n_experts):
                return
            if (
                kernel.run(0, layers, stream, pool, tally, *states, out, False, most, misses)
                < layers
            ):
                return
            if not end_one(
                queue, cursor, entries, part, prices, copies, sums, tally, out, w.n_experts
            ):
                return

    def whole(budget: int) -> None:
        run = bind(serve_passes, {plan_pass: kernel.run}, states=states).run
        run(
            budget, queue, cursor, entries, tokens, part, prices, copies, sums, stream, pool, tally,
            *states, out, most, misses,
        )  # fmt: skip

    serve, passes = one_by_one, 0
    while queue.n[DONE] < len(load):
        serve(BLOCK)
        passes += BLOCK
        decisions.complain(int(tally.n[EVENTS]))
        if copies.n[FULL]:
            return None
        done = int(queue.n[DONE])
        if progress:
            progress(done, len(load))
        if passes * (len(load) / max(done, 1) - 1) > WORTH:
            serve = whole
    return Streamed(load, queue, sums, int(tally.n[HITS]), decisions.slots, decisions.notes)


def prices_of(job: Job, border: Border | None = None) -> Prices:
    """What a job's machine takes for its model's work."""
    m, hw = job.model, job.hardware
    e, reach = hw.engine, hw.reach
    nbytes = np.asarray(m.expert_bytes, np.int64)
    rates = (
        reach.dense_bytes_per_s, reach.expert_bytes_per_s, reach.compute_flops,
        m.kv_bytes_per_token / m.n_layers, m.output_bytes, m.output_params,
        e.expert_tile_tokens or 1, e.row_kernel_tokens * m.top_k,
    )  # fmt: skip
    return Prices(
        np.asarray(m.dense_bytes, np.float64), np.asarray(m.dense_params, np.float64),
        np.searchsorted(list(m.moe_layers), np.arange(m.n_layers)).astype(np.int64),
        nbytes.astype(np.float64), np.asarray(m.expert_params, np.float64),
        copy_times(nbytes, hw, "h2d", job.pinned, False), np.array(rates, np.float64),
        np.array([e.dense_launch_ns, e.expert_launch_ns, e.decision_ns], np.int64),
        border.array(job) if border else np.zeros(3, np.int64),
    )  # fmt: skip


def new_copies(room: int, waves: int, waits: int) -> Copies:
    """No copy under way."""
    i64 = np.int64
    sizes = dict.fromkeys(("after", "ns", "queued", "start", "done"), room)
    sizes |= dict.fromkeys(("pre", "cpu", "compute", "copy_hi", "wait_hi"), waves)
    sizes |= dict.fromkeys(("opened", "arrived", "ended"), waves)
    sizes |= {"at": PLACES, "n": 2, "none": 0, "waits": waits}
    return Copies(
        kind=np.zeros(room, np.int8), **{name: np.zeros(n, i64) for name, n in sizes.items()}
    )
