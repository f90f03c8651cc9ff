"""Batches and drafts on plain Python lists: slow, obvious, and written from docs/batches-and-drafts.md.

A trace is a list of sequences; a sequence is a list of steps (phase, [token]); a token is its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Slot:
    """What one slot of a server has still to run."""

    steps: list = field(default_factory=list)


def batches(sequences: list[list[tuple[int, list]]], batch: int) -> list[list]:
    """Tokens of each forward pass. One clock tick: fill slots, run their prompts, then one pass."""
    waiting = [list(s) for s in sequences]
    slots = [Slot() for _ in range(batch)]
    passes: list[list] = []
    while waiting or any(slot.steps for slot in slots):
        for slot in slots:
            while waiting or slot.steps:
                if not slot.steps:
                    slot.steps = waiting.pop(0)
                while slot.steps and slot.steps[0][0] == 0:  # prefill: passes of their own
                    passes.append(list(slot.steps.pop(0)[1]))
                if slot.steps:
                    break
        together: list = []
        for slot in slots:
            if slot.steps:
                together += slot.steps.pop(0)[1]
        if together:
            passes.append(together)
    return passes


def drafts(
    sequence: list[tuple[int, list]], k: int, accepted: dict
) -> list[tuple[int, list[tuple[object, int]]]]:
    """The steps of a sequence with ``k`` drafts: (phase, [(token, 0 own, 1 accepted, 2 rejected)])."""
    out: list[tuple[int, list[tuple[object, int]]]] = []
    i = 0
    while i < len(sequence):
        phase, tokens = sequence[i]
        if phase == 0:
            out.append((0, [(t, 0) for t in tokens]))
            i += 1
            continue
        step = [(tokens[0], 0)]
        still, taken = True, 1
        for j in range(i + 1, i + 1 + k):
            if j >= len(sequence) or sequence[j][0] == 0:
                break
            token = sequence[j][1][0]
            still = still and accepted[token]
            step.append((token, 1 if still else 2))
            taken += still
        out.append((1, step))
        i += taken
    return out
