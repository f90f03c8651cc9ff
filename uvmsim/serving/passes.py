"""A schedule as a whole: every forward pass of a load, given how long each takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.files.schema import DECODE, PREFILL
from traces.jit import compiled
from traces.routing import RoutingTrace
from traces.routing.bounds import check_values
from uvmsim.serving.load import Load
from uvmsim.serving.schedule import (
    NOW,
    OUTPUT,
    PROMPT,
    ZERO,
    Queue,
    begin,
    commit,
    compose,
    cut,
    entries_for,
    new_entries,
    new_queue,
)
from uvmsim.serving.server import Server
from uvmsim.serving.source import Source

GUESS_PASS, GUESS_TOKEN = 1_000_000, 20_000
"""ns: what a forward pass is taken for before any has been simulated, and a token of it more."""


@dataclass(frozen=True)
class Schedule:
    """S forward passes of E entries, and what became of the requests."""

    load: Load
    lo: np.ndarray
    """int64 [S + 1]: first entry of each forward pass."""
    request: np.ndarray
    """int32 [E]"""
    kind: np.ndarray
    """int8 [E]: `uvmsim.serving.schedule.PROMPT` or OUTPUT."""
    first: np.ndarray
    """int32 [E]: first token of its kind."""
    count: np.ndarray
    """int32 [E]"""
    idle: np.ndarray
    """int64 [S]: ns before the pass in which there was nothing to do."""
    queue: Queue

    def same_as(self, other: Schedule) -> bool:
        """The same passes, with the same pauses."""
        names = ("lo", "request", "kind", "first", "count", "idle")
        return all(np.array_equal(getattr(self, x), getattr(other, x)) for x in names)

    @property
    def zero_ns(self) -> int:
        """When the clock started."""
        return int(self.queue.n[ZERO])


def schedule(load: Load, server: Server, pass_ns: np.ndarray) -> Schedule:
    """Play ``load`` with passes that take ``pass_ns`` (int64); later ones are taken to last as long as
    the last of their kind did."""
    passes = 64 + 2 * len(load) + int(load.output.max(initial=1)) * 2
    while True:
        queue, entries = new_queue(load, server), new_entries(server)
        room = passes * (1 + min(server.slots, 8))
        lo, idle = np.zeros(passes + 1, np.int64), np.empty(passes, np.int64)
        parts = entries_for(room)
        n = _play(queue, entries, pass_ns, lo, parts, idle)
        if n >= 0:
            request, kind, first, length = (x[: lo[n]] for x in parts)
            return Schedule(load, lo[: n + 1], request, kind, first, length, idle[:n], queue)
        passes *= 2


@compiled(nogil=True)
def _play(q, entries, pass_ns, lo, parts, idle):
    """Forward passes written to ``lo``, ``parts`` and ``idle``; -1 where these are too small."""
    known = len(pass_ns)
    last = np.zeros(2, np.float64)  # ns a token, by whether the pass has prompt tokens
    at = np.zeros(2, np.int64)
    p = 0
    rest = np.int64(0)
    while True:
        before = q.n[NOW]
        if not begin(q):
            return p
        rest += q.n[NOW] - before
        m = compose(q, entries)
        now = q.n[NOW]
        at[0] = 0
        while at[0] < m:
            if p == len(idle):
                return -1
            end = cut(q, entries, m, at, parts, lo[p])
            if end < 0:
                return -1
            tokens = parts.length[lo[p] : end].sum()
            prompts = int((parts.kind[lo[p] : end] == PROMPT).any())
            if p < known:
                ns = pass_ns[p]
                last[prompts] = ns / tokens
            elif last[prompts] > 0:
                ns = np.int64(last[prompts] * tokens)
            else:
                ns = GUESS_PASS + GUESS_TOKEN * tokens
            now += ns
            idle[p] = rest
            rest = np.int64(0)
            p += 1
            lo[p] = end
        commit(q, entries, m, now)


def trace_of(s: Schedule, source: Source, drop_rows: bool = False) -> RoutingTrace:
    """The passes as a routing trace: sequences are requests, steps are passes; a pass with any
    tokens of a prompt counts as prefill.

    ``drop_rows``: in the last layer only tokens that something is sampled after have a routing, as in
    llama.cpp (``inp_out_ids``).
    """
    per_pass = np.add.reduceat(s.count, s.lo[:-1]).astype(np.int64)
    prompts = np.maximum.reduceat(s.kind == PROMPT, s.lo[:-1])
    total, layers = int(per_pass.sum()), len(source.trace.layers)
    rows = total * layers
    columns: dict[str, np.ndarray] = {
        "seq": np.empty(rows, np.int32), "pos": np.empty(rows, np.int32),
        "step": np.empty(rows, np.int32), "phase": np.empty(rows, np.uint8),
        "layer": np.empty(rows, np.int16),
        "experts": np.empty((rows, source.trace.top_k), np.int16),
    }  # fmt: skip
    _rows(
        s.lo, s.request, s.kind, s.first, s.count, per_pass,
        np.where(prompts, PREFILL, DECODE).astype(np.uint8), s.load.prompt, s.load.start,
        source.prompt, source.output, np.array(source.trace.layers, np.int16), drop_rows,
        columns["seq"], columns["pos"], columns["step"], columns["phase"], columns["layer"],
        columns["experts"],
    )  # fmt: skip
    made = RoutingTrace(columns, source.trace.meta)
    check_values(made)
    return made


@compiled(nogil=True)
def _rows(
    lo, request, kind, first, count, per_pass, phase_of, prompts, start, prompt, output, layers,
    drop, seq, pos, step, phase, layer, experts,
):  # fmt: skip
    """Rows in the order (pass, layer, token)."""
    r = 0
    n_layers = len(layers)
    for p in range(len(per_pass)):
        n = per_pass[p]
        t = 0
        for e in range(lo[p], lo[p + 1]):
            i = request[e]
            for j in range(count[e]):
                if kind[e] == PROMPT:
                    at = first[e] + j
                    ids = prompt[(start[i, 0] + at) % len(prompt)]
                else:
                    at = prompts[i] + first[e] + j
                    ids = output[(start[i, 1] + first[e] + j) % len(output)]
                sampled = kind[e] == OUTPUT or at + 1 == prompts[i]
                for m in range(n_layers):
                    row = r + m * n + t
                    seq[row] = i
                    pos[row] = at
                    step[row] = p
                    phase[row] = phase_of[p]
                    layer[row] = layers[m]
                    unknown = drop and not sampled and m + 1 == n_layers
                    for x in range(experts.shape[1]):
                        experts[row, x] = -1 if unknown else ids[m, x]
                t += 1
        r += n * n_layers
