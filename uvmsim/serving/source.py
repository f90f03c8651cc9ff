"""Routing to borrow: recorded tokens that requests of a load are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL
from traces.routing import RoutingTrace


@dataclass(frozen=True)
class Source:
    """Recorded tokens, by phase; L layers with experts, k experts a token, Q sequences.

    A request's prompt is ``prompt[a], prompt[a + 1], ...`` from the first token of a sequence on, its
    output likewise: past the sequence's end they go on with the next one's, past the last with the
    first.
    """

    trace: RoutingTrace
    """The first; it says what model they are of."""
    prompt: np.ndarray
    """int16 [P, L, k]: expert ids within a layer, -1 where not known."""
    output: np.ndarray
    """int16 [D, L, k]"""
    first: np.ndarray
    """int64 [Q, 2]: first token of each sequence in ``prompt`` and in ``output``."""
    tokens: np.ndarray
    """int64 [Q, 2]: how many it has."""
    notes: tuple[str, ...] = ()

    def borrow(self, prompt: np.ndarray, output: np.ndarray, seed: int) -> np.ndarray:
        """int64 [N, 2]: where the routing of requests of these lengths (int [N]) begins.

        Each takes a sequence at random among those that are long enough in both phases; where there is
        none, among those that lack the fewest tokens.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        wanted = np.stack([prompt, output], axis=1).astype(np.int64)
        draw = rng.random(len(wanted))
        chosen = np.empty(len(wanted), np.int64)
        for lo in range(0, len(wanted), 4096):
            part = slice(lo, lo + 4096)
            lack = np.maximum(wanted[part, None, :] - self.tokens[None], 0).sum(axis=2)
            best = lack == lack.min(axis=1, keepdims=True)
            rank = np.cumsum(best, axis=1)
            nth = (draw[part] * rank[:, -1]).astype(np.int64) + 1
            chosen[part] = np.argmax(rank >= nth[:, None], axis=1)
        return self.first[chosen]


def source_of(traces: Sequence[RoutingTrace]) -> Source:
    """The tokens of one or several traces of one model. Raises `InputError`."""
    first = traces[0]
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    starts, lengths, notes = [], [], []
    before = [0, 0]
    for t in traces:
        shape = (t.layers, t.n_experts, t.top_k)
        if shape != (first.layers, first.n_experts, first.top_k):
            raise InputError(f"{t.path}: made by a model of another shape than {first.path}")
        dense = t.dense.by_sequence()
        bounds = dense.sequence_starts()
        for lo, hi in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            own = dense.phase[lo:hi]
            starts.append(list(before))
            mine = []
            for i, phase in enumerate((PREFILL, DECODE)):
                ids = dense.ids[lo:hi][own == phase]
                parts[i].append(ids)
                before[i] += len(ids)
                mine.append(len(ids))
            lengths.append(mine)
    prompt, output = (np.ascontiguousarray(np.concatenate(p)) for p in parts)
    at, n = np.array(starts, np.int64), np.array(lengths, np.int64)
    if not len(prompt):
        prompt, at[:, 0], n[:, 0] = output, at[:, 1], n[:, 1]
        notes.append("the trace has no prompts: their routing is that of generated tokens")
    if not len(output):
        output, at[:, 1], n[:, 1] = prompt, at[:, 0], n[:, 0]
        notes.append("the trace has no generated tokens: their routing is that of prompts")
    return Source(first, prompt, output, at, n, tuple(notes))
