"""What can be wrong with a recording, found before anybody believes a number made from it.

A check is a function ``check(trace) -> iterable of Finding``, listed in `CHECKS`. Those that look
at single rows are here, those that look at whole sequences in `traces.routing.check_sequences`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from traces.routing import RoutingTrace, check_sequences
from traces.routing.recall import AHEAD

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing found; ``first`` says where it occurs first (row, seq, pos, layer, step)."""

    code: str
    severity: str
    """``error``: numbers from this trace would be wrong; ``warning``: they would mislead;
    ``note``: good to know."""
    count: int
    message: str
    advice: str
    first: dict[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Check = Callable[[RoutingTrace], Iterable[Finding]]


def at_row(t: RoutingTrace, row: int) -> dict[str, int]:
    """The place of a row, for `Finding.first`."""
    names = ("seq", "pos", "layer", "step")
    return {"row": int(row)} | {n: int(getattr(t, n)[row]) for n in names}


def _rows(
    t: RoutingTrace, bad: np.ndarray, code: str, severity: str, message: str, advice: str
) -> Iterator[Finding]:
    n = int(bad.sum())
    if n:
        yield Finding(code, severity, n, message, advice, at_row(t, int(np.argmax(bad))))


def completeness(t: RoutingTrace) -> Iterator[Finding]:
    """The closing mark, and the hash in it."""
    if not t.complete:
        yield Finding(
            "incomplete",
            "warning",
            1,
            "the recording was cut off: the closing mark is absent",
            "the rows that are here can be used; record again if the rest matters",
            at_row(t, t.n_rows - 1),
        )
    if t.recorded_sha256 and t.recorded_sha256 != t.sha256:
        yield Finding(
            "hash-mismatch",
            "error",
            1,
            "the rows are not those that were recorded: their hash differs from the stored one",
            "copy the file again from its source, or record again",
        )


def expert_ids(t: RoutingTrace) -> Iterator[Finding]:
    """Ids out of range, ids twice in a row, rows without routing."""
    ids = t.experts
    missing = np.all(ids == -1, axis=1)
    yield from _rows(
        t,
        ((ids < 0) | (ids >= t.n_experts)).any(axis=1) & ~missing,
        "expert-out-of-range",
        "error",
        f"expert ids outside 0..{t.n_experts - 1}",
        "state the right number of experts when importing, or record again",
    )
    ordered = np.sort(ids, axis=1)
    yield from _rows(
        t,
        (np.diff(ordered, axis=1) == 0).any(axis=1) & ~missing,
        "repeated-ids",
        "error",
        "rows that name an expert twice",
        "the recorder read the wrong memory (a strided tensor as a dense one?): record again",
    )
    yield from _rows(
        t,
        missing,
        "missing-rows",
        "note",
        "rows without routing (null): their experts were not observed",
        "usual for the last layer of a prefill, whose rows llama.cpp drops; statistics leave "
        "them out",
    )


def values(t: RoutingTrace) -> Iterator[Finding]:
    """Numbers that cannot be."""
    yield from _rows(
        t,
        np.any([t.seq < 0, t.pos < 0, t.step < 0, t.layer < 0, t.phase > 1], axis=0),
        "bad-value",
        "error",
        "rows with a negative seq, pos, step or layer, or a phase other than 0 and 1",
        "mend the program that wrote the trace",
    )
    if t.weights is not None:
        known = np.all(t.experts >= 0, axis=1)
        with np.errstate(invalid="ignore"):
            bad = ~(np.isfinite(t.weights) & (t.weights >= 0)).all(axis=1)
        yield from _rows(
            t,
            bad & known,
            "bad-weights",
            "error",
            "router weights that are missing, negative or not finite",
            "record again, or import without weights",
        )


def predictions(t: RoutingTrace) -> Iterator[Finding]:
    """Guesses of predictors: whole rows of different experts, best first, about layers that are."""
    for name, guess in t.predictions.items():
        ids = guess.ids
        missing = np.all(ids == -1, axis=1)
        wrong = ((ids < 0) | (ids >= t.n_experts)).any(axis=1)
        wrong |= (np.diff(np.sort(ids, axis=1), axis=1) == 0).any(axis=1)
        yield from _rows(
            t,
            wrong & ~missing,
            "bad-guesses",
            "error",
            f"rows of {name}_ids with an expert twice, none, or outside 0..{t.n_experts - 1}",
            "record again; no policy may be given these guesses",
        )
        with np.errstate(invalid="ignore"):  # two experts that were ruled out: -inf both
            rises = (np.diff(guess.scores.astype(np.float32), axis=1) > 0).any(axis=1)
            odd = (np.isnan(guess.scores) | np.isposinf(guess.scores)).any(axis=1)
        yield from _rows(
            t,
            (rises | odd) & ~missing,
            "bad-guess-scores",
            "error",
            f"rows of {name}_scores that rise along the row or are not numbers",
            "mend the program that wrote the trace: guesses are ordered best first",
        )
        last = t.layers[len(t.layers) - AHEAD[name] :]
        yield from _rows(
            t,
            ~missing & np.isin(t.layer, last),
            "guesses-of-no-layer",
            "error",
            f"rows with {name}_ids in a layer that no such layer follows",
            "mend the program that wrote the trace: these rows are null",
        )


def id_order(t: RoutingTrace) -> Iterator[Finding]:
    """Whether the ids are ordered as the metadata says."""
    known = np.all(t.experts >= 0, axis=1)
    if t.top_k < 2 or not known.any():
        return
    falls = (np.diff(t.experts, axis=1) < 0).any(axis=1)
    ascending = int((known & ~falls).sum())
    if t.meta.ids_order == "sorted":
        yield from _rows(
            t,
            known & falls,
            "not-sorted",
            "error",
            "ids said to be sorted do not ascend",
            "import again with --ids-order unknown (or ranked, if you know it)",
        )
    if t.meta.ids_order != "ranked":
        return
    # By chance a row of k ranked ids ascends once in k! rows.
    if ascending == int(known.sum()) and ascending >= 64:
        yield Finding(
            "sorted-not-ranked",
            "error",
            ascending,
            "ids are said to be ranked, yet every row ascends: they were sorted, ranks are lost",
            "import again with --ids-order sorted; policies that need ranks cannot use this trace",
            at_row(t, int(np.argmax(known))),
        )
    if t.weights is not None:
        with np.errstate(invalid="ignore"):
            rises = (np.diff(t.weights, axis=1) > 0).any(axis=1)
        yield from _rows(
            t,
            rises & known,
            "weights-against-ranks",
            "note",
            "ids are said to be ranked, yet weights rise along the row",
            "right for routers that choose by biased scores (DeepSeek-V3); else ranks are wrong",
        )


def row_order(t: RoutingTrace) -> Iterator[Finding]:
    """Steps ascend, and layers ascend in a step; so each (step, layer) is one run of rows."""
    why = "rows must be in execution order: sort by step, then layer, and write the trace again"
    falls = np.zeros(t.n_rows, bool)
    falls[1:] = t.step[1:] < t.step[:-1]
    yield from _rows(t, falls, "steps-out-of-order", "error", "rows whose step goes back", why)
    back = np.zeros(t.n_rows, bool)
    back[1:] = (t.step[1:] == t.step[:-1]) & (t.layer[1:] < t.layer[:-1])
    yield from _rows(
        t, back, "layers-out-of-order", "error", "rows whose layer goes back within a step", why
    )


def layers(t: RoutingTrace) -> Iterator[Finding]:
    """Each token has one row in each MoE layer of the model."""
    expected = t.meta.model.moe_layers
    absent = sorted(set(expected) - set(t.layers))
    if absent:
        yield Finding(
            "missing-layers",
            "error",
            len(absent),
            f"MoE layers without any row: {_some(absent)}",
            "record all layers, or import with a model that has only those",
            {"layer": absent[0]},
        )
    foreign = sorted(set(t.layers) - set(expected))
    if foreign and expected:
        yield Finding(
            "unknown-layers",
            "error",
            len(foreign),
            f"rows of layers that the model does not list as MoE: {_some(foreign)}",
            "name the right model when importing",
            at_row(t, int(np.argmax(np.isin(t.layer, foreign)))),
        )
    slot = np.searchsorted(np.asarray(t.layers), t.layer)
    count = np.bincount(
        t.token_index * len(t.layers) + slot, minlength=t.n_tokens * len(t.layers)
    ).reshape(t.n_tokens, -1)
    gaps = count == 0
    if gaps.any():
        token, layer = (int(x) for x in np.argwhere(gaps)[0])
        row = int(np.argmax(t.token_index == token))
        yield Finding(
            "missing-token-layers",
            "error",
            int(gaps.sum()),
            "tokens without a row in some layer",
            "write a null row where the routing was not seen; see docs/traces.md",
            at_row(t, row) | {"layer": t.layers[layer]},
        )
    if (count > 1).any():
        key = t.token_index * len(t.layers) + slot
        _, first = np.unique(key, return_index=True)
        again = np.ones(t.n_rows, bool)
        again[first] = False
        yield from _rows(
            t,
            again,
            "repeated-rows",
            "error",
            "a token has several rows in one layer of one step",
            "the recording holds sequences under one name, or was joined twice: record again",
        )


def times(t: RoutingTrace) -> Iterator[Finding]:
    """A step has one time and one duration, and is over when the next one begins."""
    if t.time_ns is None:
        return
    mend = "mend the program that wrote the trace"
    same_step = t.step[1:] == t.step[:-1]
    uneven = np.zeros(t.n_rows, bool)
    back = np.zeros(t.n_rows, bool)
    uneven[1:] = same_step & (t.time_ns[1:] != t.time_ns[:-1])
    back[1:] = ~same_step & (t.time_ns[1:] < t.time_ns[:-1])
    if t.duration_ns is not None:
        uneven[1:] |= same_step & (t.duration_ns[1:] != t.duration_ns[:-1])
        early = np.zeros(t.n_rows, bool)
        early[1:] = ~same_step & (t.time_ns[1:] < t.time_ns[:-1] + t.duration_ns[:-1])
        yield from _rows(
            t,
            t.duration_ns < 0,
            "negative-duration",
            "error",
            "steps that end before they begin",
            mend,
        )
        yield from _rows(
            t,
            early & ~back,
            "overlapping-steps",
            "warning",
            "steps that begin before the one before is over",
            "right for several engines in one trace; else their clocks differ",
        )
    what = "rows of one step with different times"
    yield from _rows(t, uneven, "uneven-step-times", "error", what, mend)
    what = "steps that begin before the one before them"
    yield from _rows(t, back, "times-out-of-order", "error", what, mend)


def _some(items: list[int], n: int = 8) -> str:
    return ", ".join(map(str, items[:n])) + (", ..." if len(items) > n else "")


def sequences(t: RoutingTrace) -> Iterator[Finding]:
    """The checks on whole sequences."""
    for code, severity, count, message, advice, row in check_sequences.find(t):
        yield Finding(code, severity, count, message, advice, at_row(t, row))


CHECKS: tuple[Check, ...] = (
    completeness,
    row_order,
    layers,
    expert_ids,
    values,
    predictions,
    id_order,
    times,
    sequences,
)


def check(t: RoutingTrace) -> list[Finding]:
    """Every finding, errors first."""
    found = [f for c in CHECKS for f in c(t)]
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))
