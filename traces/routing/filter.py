"""Parts of a trace: some sequences, a phase, sequences of some length, those without loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from traces.errors import InputError
from traces.files.schema import PHASES
from traces.routing.loops import TOO_MANY, loops
from traces.routing.trace import RoutingTrace


def filtered(
    t: RoutingTrace,
    *,
    no_loops: bool = False,
    sequences: tuple[int, ...] | None = None,
    phase: str = "all",
    length: tuple[int, int | None] = (1, None),
) -> tuple[RoutingTrace, list[str]]:
    """The rows that are wanted, in memory, and what was done in a line each, which the metadata keep
    under ``extra["filter"]``.

    ``sequences``: their numbers; ``phase``: ``all``, ``prefill`` or ``decode``; ``length``: least and
    most tokens of a sequence (all its phases), None: no limit; ``no_loops``: without sequences of which
    more than 5 % of the tokens are looped (`traces.routing.loops`). Raises `InputError` where a
    sequence does not exist and where nothing is left.
    """
    d = t.dense
    seqs, sizes = np.unique(d.seq, return_counts=True)
    keep = np.ones(len(seqs), bool)
    notes = []
    if sequences is not None:
        lacking = sorted(set(sequences) - set(seqs.tolist()))
        if lacking:
            raise InputError(
                f"--sequences {lacking[0]}: {t.path} has no such sequence; it has "
                f"{seqs.min()} to {seqs.max()}"
            )
        keep &= np.isin(seqs, sequences)
        notes.append(f"{keep.sum()} of {len(seqs)} sequences by number")
    low, high = length
    if low > 1 or high is not None:
        fits = (sizes >= low) & (sizes <= (high if high is not None else sizes.max()))
        notes.append(
            f"{(keep & ~fits).sum()} sequences left out, not of {low} to "
            f"{'any number of' if high is None else high} tokens"
        )
        keep &= fits
    if no_loops:
        found = loops(d)
        share = np.array([found["by_sequence"][str(s)] for s in seqs])
        clean = share <= TOO_MANY
        notes.append(
            f"{(keep & ~clean).sum()} sequences ({sizes[keep & ~clean].sum():,} tokens) left out, over "
            f"{TOO_MANY:.0%} of their tokens in loops told by {found['told_by']}"
        )
        keep &= clean
    rows = np.isin(np.asarray(t.seq), seqs[keep])
    if phase != "all":
        rows &= np.asarray(t.phase) == PHASES.index(phase)
        notes.append(f"{phase} only")
    if not rows.any():
        raise InputError(f"{t.path}: nothing is left ({'; '.join(notes)}); ask for more")
    part = t.take(np.flatnonzero(rows))
    before = t.meta.extra.get("filter")
    told = "; ".join([*([before] if before else []), *notes])
    part.meta = replace(t.meta, extra=t.meta.extra | ({"filter": told} if told else {}))
    return part, notes
