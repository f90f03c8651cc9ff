"""A workload that grows: forward passes are appended as they are made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from uvmsim.core.read_only import read_only
from uvmsim.workload import Workload


def empty(
    like: Workload, events: int, accesses: int, rows: int, steps: int
) -> tuple[Workload, np.ndarray, np.ndarray, np.ndarray]:
    """A workload of ``like``'s shapes with room for so much, and its rows' experts, sequences and
    positions, which it shows read-only."""
    experts = np.zeros((rows, like.top_k), np.int16)
    seq, pos = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    made = replace(
        like, ids=np.zeros(accesses, np.int32), counts=np.zeros(accesses, np.int32),
        event_lo=np.zeros(events + 1, np.int64), event_layer=np.zeros(events, np.int32),
        event_step=np.zeros(events, np.int32), event_tokens=np.zeros(events, np.int32),
        event_first=np.ones(events, bool), row_lo=np.zeros(events + 1, np.int64),
        scores=np.zeros((0, 0), np.float32), step_phase=np.zeros(steps, np.uint8),
        step_tokens=np.zeros(steps, np.int32), step_kv=np.zeros(steps, np.int64),
        step_seq=np.zeros(steps, np.int32), missing_rows=0, row_experts=read_only(experts),
        row_seq=read_only(seq), row_pos=read_only(pos),
    )  # fmt: skip
    return made, experts, seq, pos


class OpenWorkload:
    """``whole`` has room for all passes that may come; what was appended is at its front.

    Whoever holds ``whole`` sees passes come, since its arrays stay where they are.
    """

    def __init__(self, like: Workload, tokens: int):
        """Room for ``tokens`` tokens, each in a pass of its own at worst. Of ``like``: shapes."""
        rows = tokens * like.n_layers
        self.whole, self._experts, self._seq, self._pos = empty(
            like, rows, rows * like.top_k, rows, tokens
        )
        self.accesses = self.events = self.rows = self.steps = 0

    def append(self, part: Workload) -> None:
        """The passes of ``part`` after those that are there."""
        w, a, e, r, s = self.whole, self.accesses, self.events, self.rows, self.steps
        accesses, events = a + len(part.ids), e + part.n_events
        rows, steps = r + len(part.row_seq), s + part.n_steps
        w.ids[a:accesses], w.counts[a:accesses] = part.ids, part.counts
        w.event_lo[e + 1 :] = a + part.event_lo[-1]
        w.event_lo[e + 1 : events + 1] = a + part.event_lo[1:]
        w.event_layer[e:events], w.event_step[e:events] = part.event_layer, s + part.event_step
        w.event_tokens[e:events] = part.event_tokens
        w.row_lo[e + 1 : events + 1] = r + part.row_lo[1:]
        w.step_phase[s:steps], w.step_tokens[s:steps] = part.step_phase, part.step_tokens
        w.step_kv[s:steps], w.step_seq[s:steps] = part.step_kv, part.step_seq
        self._experts[r:rows] = part.row_experts
        self._seq[r:rows], self._pos[r:rows] = part.row_seq, part.row_pos
        self.accesses, self.events, self.rows, self.steps = accesses, events, rows, steps
