"""A trace's tokens in other forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from traces.errors import InputError
from traces.files.schema import PREFILL
from traces.routing.by_token import run_bounds
from traces.routing.trace import RoutingTrace

TIMES = ("time_ns", "duration_ns")
"""Columns that say when a recorded step ran: of no use once there are other steps."""


@dataclass(frozen=True)
class Tokens:
    """What `batched` and `drafted` need of a trace, by token in the order in which they ran."""

    trace: RoutingTrace

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [rows]: the rows, token by token."""
        return np.argsort(self.trace.token_index, kind="stable")

    @cached_property
    def lo(self) -> np.ndarray:
        """int64 [T + 1]: where the rows of each token begin."""
        count = np.bincount(self.trace.token_index, minlength=self.trace.n_tokens)
        return np.concatenate(([0], np.cumsum(count)))

    @cached_property
    def first(self) -> np.ndarray:
        """int64 [T]: the first row of each token."""
        return self.rows[self.lo[:-1]]

    def of(self, column: np.ndarray) -> np.ndarray:
        """A column's values by token: [T]."""
        return np.asarray(column)[self.first]

    @cached_property
    def order(self) -> np.ndarray:
        """int64 [T]: the tokens, step by step, those of one sequence in a step together."""
        step = self.of(self.trace.step)
        if (np.diff(step) < 0).any():
            raise InputError(f"{self.trace.path}: steps go back; `uvmsim trace check` says where")
        return np.lexsort((self.of(self.trace.seq), step))

    @cached_property
    def steps(self) -> np.ndarray:
        """int64 [S + 1]: bounds in `order` of what each sequence did in each recorded step. In the
        following that is a step: recorded batches are taken apart."""
        return run_bounds(self.of(self.trace.step)[self.order], self.of(self.trace.seq)[self.order])

    @property
    def mixed(self) -> bool:
        """Whether recorded steps hold several sequences."""
        return len(self.steps) != len(run_bounds(self.of(self.trace.step)))

    @cached_property
    def is_prefill(self) -> np.ndarray:
        """bool [S]"""
        phase: np.ndarray = self.of(self.trace.phase)[self.order[self.steps[:-1]]]
        return phase == PREFILL

    def by_sequence(self) -> list[list[int]]:
        """The steps of each sequence, sequences in the order in which they began."""
        seq = self.of(self.trace.seq)[self.order[self.steps[:-1]]].tolist()
        found: dict[int, list[int]] = {}
        for i, s in enumerate(seq):
            found.setdefault(s, []).append(i)
        return list(found.values())


def rearranged(
    tokens: Tokens, at: np.ndarray, step: np.ndarray, *, routed_as: np.ndarray | None = None,
    draft: np.ndarray | None = None,
) -> RoutingTrace:  # fmt: skip
    """The trace with other steps. Its recorded times are left out.

    ``at``: int64 [n], the token (by number) that each new token stands for: whose sequence, position
    and phase it has; a token may come several times. ``step``: int64 [n], ascending; tokens of one step
    keep their order. ``routed_as``: int64 [n], the token whose routing it has; None: its own.
    ``draft``: uint8 [n], the new column.
    """
    t = tokens.trace
    source = at if routed_as is None else routed_as
    count = np.diff(tokens.lo)[source]
    which = np.repeat(np.arange(len(source)), count)
    inside = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    rows = tokens.rows[tokens.lo[source][which] + inside]
    order = np.lexsort((which, np.asarray(t.layer)[rows], step[which]))
    rows, which = rows[order], which[order]
    columns = {k: np.asarray(v)[rows] for k, v in t.columns.items() if k not in TIMES}
    for name in ("seq", "pos", "phase"):
        columns[name] = tokens.of(t.columns[name])[at][which]
    columns["step"] = step[which].astype(np.int32)
    if draft is not None:
        columns["draft"] = draft[which].astype(np.uint8)
    return RoutingTrace(columns, t.meta, path=t.path, complete=t.complete)
