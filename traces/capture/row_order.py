"""Which sequence does each row of a micro-batch belong to?

llama.cpp cuts a batch into micro-batches and may regroup it on the way: with a KV cache for each
sequence it takes equally many tokens of several sequences, one sequence after the other. The graph
shows each row's token and position but not its sequence. What holds in every version: inside a
micro-batch the rows of a sequence are one block, in order; sequences take their turns in the order
in which they were submitted. So rows are matched, block by block, against what was submitted and
not yet seen; a row that fits nothing is an error, never a guess.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """A token that was submitted. ``output``: it asked for logits."""

    seq: int
    pos: int
    token: int
    phase: int
    output: bool


class RowMatcher:
    """Takes the rows of one `llama_decode` call; hands them out micro-batch by micro-batch."""

    def __init__(self, rows: list[Row]) -> None:
        self._pending: dict[int, deque[Row]] = {}
        for row in rows:
            self._pending.setdefault(row.seq, deque()).append(row)

    @property
    def left(self) -> int:
        """Rows that no micro-batch has shown yet."""
        return sum(len(rows) for rows in self._pending.values())

    def match(self, tokens: np.ndarray | None, pos: np.ndarray | None) -> list[Row]:
        """The rows of a micro-batch with these inputs, in its order."""
        if tokens is None:
            raise InputError(
                "this libllama does not show the inputs of its graph (inp_tokens); use the one of "
                "the capture extra: pip install 'uvmsim[capture]'"
            )
        if pos is None and len(self._pending) > 1:
            raise InputError(
                "this model's graph shows no positions, so parallel sequences cannot be told "
                "apart; capture one sequence at a time"
            )
        positions = [None] * len(tokens) if pos is None else pos.tolist()
        rows: list[Row] = []
        block: deque[Row] | None = None
        seen: set[int] = set()
        for token, at in zip(tokens.tolist(), positions, strict=True):
            if block is None or not _fits(block, token, at):
                block = None
                for seq, candidate in self._pending.items():
                    if seq not in seen and _fits(candidate, token, at):
                        seen.add(seq)
                        block = candidate
                        break
            if block is None:
                raise InputError(
                    f"llama.cpp ran token {token} at position {at}, which was not submitted: this "
                    "build orders its micro-batches in an unknown way; capture one sequence at a "
                    "time or use the library of the capture extra"
                )
            rows.append(block.popleft())
        return rows


def _fits(pending: deque[Row], token: int, pos: int | None) -> bool:
    return bool(pending) and pending[0].token == token and pos in (None, pending[0].pos)
