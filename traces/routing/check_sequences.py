"""Checks on whole sequences: padding, mixtures, copies, loops.

Each yields (code, severity, count, message, advice, row of the first place).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from traces.files.schema import REJECTED
from traces.routing import RoutingTrace
from traces.routing.by_token import DenseRouting, run_bounds

Found = tuple[str, str, int, str, str, int]

DUMMY_RUN = 8
"""Tokens in a row with the same routing in every layer that make a dummy run."""
COPY_TOKENS = 8
"""Shorter sequences may be alike by chance, or by a common prompt."""
LOOP_TAIL = 60
LOOP_PERIODS = 128
LOOP_LAYERS = 2
LOOP_SHARE = 0.3
"""Share of the tail's tokens whose experts in the first layers are exactly those of one period
before. Unrelated tokens agree in about 1 % of cases, literally repeated text in 80 % and more."""
SHORTER = 0.1
"""By how much a longer period must fit better: multiples of the true one fit as well."""


def find(t: RoutingTrace) -> Iterator[Found]:
    """Every finding about sequences. Drafts that were rejected are of no sequence."""
    if t.draft is not None:
        t = t.take(np.flatnonzero(t.draft != REJECTED))
    d = t.dense
    yield from _positions(t, d)
    order = np.argsort(d.seq, kind="stable")
    grouped = d.take(order)
    bounds = grouped.sequence_starts()
    first_row = np.full(t.n_tokens, t.n_rows, np.int64)
    np.minimum.at(first_row, t.token_index, np.arange(t.n_rows))
    rows = first_row[order]
    yield from _dummies(grouped, bounds, rows)
    yield from _copies(grouped, bounds, rows)
    yield from _loops(grouped, bounds, rows)


def _positions(t: RoutingTrace, d: DenseRouting) -> Iterator[Found]:
    """Positions of a sequence that do not follow each other; steps and sequences mixed."""
    order = np.argsort(d.seq, kind="stable")
    seq, pos = d.seq[order], d.pos[order].astype(np.int64)
    same = seq[1:] == seq[:-1]
    breaks = np.flatnonzero(same & (pos[1:] != pos[:-1] + 1)) + 1
    mixed, gaps = _resumed(seq, pos, breaks)

    def row(token: int) -> int:
        return int(np.argmax(t.token_index == order[token]))

    if mixed:
        yield (
            "interleaved-sequences",
            "error",
            len(mixed),
            "positions jump between several texts within one sequence: sequences were mixed",
            "record with one sequence number a text, or split the dump by position",
            row(mixed[0]),
        )
    if gaps:
        yield (
            "position-gaps",
            "warning",
            len(gaps),
            "positions of a sequence do not follow each other: tokens lost, or several texts "
            "under one number",
            "check the recorder; a shifted context also does this",
            row(gaps[0]),
        )
    step_runs = run_bounds(d.step)
    changes = np.zeros(len(d.seq), bool)
    changes[1:] = (d.seq[1:] != d.seq[:-1]) & (d.step[1:] == d.step[:-1])
    several = np.logical_or.reduceat(changes, step_runs[:-1]) if len(changes) else changes
    if several.any():
        yield (
            "mixed-steps",
            "note",
            int(several.sum()),
            "steps that hold tokens of several sequences (a batched run)",
            "right for a server; for single-user figures record one sequence at a time",
            int(np.argmax(t.token_index == int(step_runs[:-1][np.argmax(several)]))),
        )
    pieces = run_bounds(d.seq)
    _, seen = np.unique(d.seq[pieces[:-1]], return_index=True)
    if not several.any() and len(seen) < len(pieces) - 1:
        again = np.ones(len(pieces) - 1, bool)
        again[seen] = False
        yield (
            "alternating-sequences",
            "warning",
            int(again.sum()),
            "sequences take turns: one goes on after another ran",
            "time order is that of several users; for single-user figures import one sequence",
            int(np.argmax(t.token_index == int(pieces[:-1][np.argmax(again)]))),
        )


def _resumed(seq: np.ndarray, pos: np.ndarray, breaks: np.ndarray) -> tuple[list[int], list[int]]:
    """Split breaks into those that go on with an earlier piece of the sequence, and the others."""
    mixed, gaps = [], []
    waiting: set[int] = set()
    current = None
    for b in breaks.tolist():
        if seq[b] != current:
            current, waiting = seq[b], set()
        waiting.add(int(pos[b - 1]) + 1)
        if int(pos[b]) in waiting:
            waiting.discard(int(pos[b]))
            mixed.append(b)
        else:
            gaps.append(b)
    return mixed, gaps


def _dummies(d: DenseRouting, bounds: np.ndarray, rows: np.ndarray) -> Iterator[Found]:
    """Runs of tokens with the same routing in all layers: padding, warm-up, a stuck recorder."""
    known = np.any(d.ids >= 0, axis=(1, 2))
    same = np.zeros(len(d.ids), bool)
    same[1:] = np.all(d.ids[1:] == d.ids[:-1], axis=(1, 2)) & known[1:]
    same[bounds[:-1]] = False
    starts = np.flatnonzero(~same)
    length = np.diff(np.append(starts, len(same)))
    bad = length >= DUMMY_RUN
    if bad.any():
        yield (
            "dummy-rows",
            "error",
            int(length[bad].sum()),
            f"tokens in runs of {DUMMY_RUN} or more with the same routing in every layer",
            "padding or warm-up was recorded: leave it out and import again",
            int(rows[starts[np.argmax(bad)]]),
        )


def _copies(d: DenseRouting, bounds: np.ndarray, rows: np.ndarray) -> Iterator[Found]:
    seen: set[bytes] = set()
    copies = []
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if b - a < COPY_TOKENS:
            continue
        digest = hashlib.sha256(d.ids[a:b].tobytes()).digest()
        if digest in seen:
            copies.append(a)
        seen.add(digest)
    if copies:
        yield (
            "duplicated-sequences",
            "warning",
            len(copies),
            "sequences with exactly the routing of an earlier one",
            "the same prompt was recorded twice: import without them (--sequences)",
            int(rows[copies[0]]),
        )


def _loops(d: DenseRouting, bounds: np.ndarray, rows: np.ndarray) -> Iterator[Found]:
    ids = np.sort(d.ids[:, :LOOP_LAYERS], axis=2)
    looping = [
        a
        for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        if loop_period(ids[a:b])
    ]
    if looping:
        yield (
            "loops",
            "warning",
            len(looping),
            f"of {len(bounds) - 1} sequences end in a loop: their routing repeats",
            "locality is overstated there: leave them out, or sample with a higher temperature",
            int(rows[looping[0]]),
        )


def loop_period(ids: np.ndarray) -> int:
    """Period of the repetition in which a sequence ends, in tokens; 0 where it does not.

    ``ids`` is [tokens, layers, k], rows sorted. The last three periods (and at least `LOOP_TAIL`
    tokens) are compared with those one period before. Early layers are looked at because they
    follow the token itself more than its context.
    """
    n, best, period = len(ids), LOOP_SHARE - SHORTER, 0
    for p in range(1, min(LOOP_PERIODS, n // 3) + 1):
        tail = max(3 * p, LOOP_TAIL)
        if tail > n:
            continue
        late, early = ids[n - tail + p :], ids[n - tail : n - p]
        share = float(((late == early) & (late >= 0)).all(axis=2).mean())
        if share > best + SHORTER:
            best, period = share, p
    return period
