"""Several sequences of a trace decoded side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from traces.errors import InputError
from traces.routing.rearrange import Tokens, rearranged
from traces.routing.trace import RoutingTrace


def batched(t: RoutingTrace, batch: int) -> tuple[RoutingTrace, list[str]]:
    """``t`` as a server would run it that decodes ``batch`` of its sequences side by side, and what
    there is to say of that.

    There are ``batch`` slots. Before each forward pass, every slot without a sequence takes the next
    one (in the order in which they began in ``t``), and what is prefill in a slot runs, each step a
    forward pass of its own. Then one pass takes the next decode step of every slot, slot by slot. A
    sequence that ends frees its slot; when none is left to begin, the others go on alone. Every step
    of ``t`` is in exactly one of the new ones. Steps that were recorded with several sequences are
    taken apart first. ``batch`` 1 gives ``t`` itself, unless it was recorded so.

    Raises `InputError` for a batch below 1, and where ``t`` has one sequence.
    """
    if batch < 1:
        raise InputError(f"{batch}: give a number of sequences, 1 or more", argument="batch")
    tokens = Tokens(t)
    if batch == 1 and not tokens.mixed:
        return t, []
    sequences = tokens.by_sequence()
    if len(sequences) < 2 <= batch:
        raise InputError(
            f"{batch}: {t.path or 'the trace'} has one sequence, and a batch takes the next token of "
            "several: record several prompts, each a sequence, or use more of the trace (`limit`)",
            argument="batch",
        )
    passes = schedule(sequences, tokens.is_prefill.tolist(), batch)
    size = np.diff(tokens.steps)
    flat = np.array([s for one in passes for s in one], np.int64)
    step = np.repeat(np.arange(len(passes)), [len(one) for one in passes])
    count = size[flat]
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    at = tokens.order[np.repeat(tokens.steps[flat], count) + inside]
    notes = []
    if tokens.mixed:
        notes.append("steps that were recorded with several sequences are taken apart")
    if len(sequences) < batch:
        notes.append(
            f"batch {batch}: the trace has {len(sequences)} sequences, so at most "
            f"{len(sequences)} run side by side"
        )
    return rearranged(tokens, at, np.repeat(step, count)), notes


def schedule(
    sequences: Sequence[Sequence[int]], is_prefill: Sequence[bool], slots: int
) -> list[list[int]]:
    """The steps of each forward pass; ``sequences``: the steps of each in order."""
    waiting = iter(sequences)
    left: list[list[int]] = [[] for _ in range(slots)]  # what a slot has still to run, last first
    passes: list[list[int]] = []
    while True:
        for i in range(slots):
            while True:
                if not left[i]:
                    left[i] = list(reversed(next(waiting, ())))
                    if not left[i]:
                        break
                if not is_prefill[left[i][-1]]:
                    break
                passes.append([left[i].pop()])
        one = [steps.pop() for steps in left if steps]
        if not one:
            return passes
        passes.append(one)
