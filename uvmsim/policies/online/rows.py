"""The tokens of an event one by one, each found in the history and on its sequence's track."""

from __future__ import annotations

from uvmsim.core.jit import inlined
from uvmsim.policies.online.history import add_choice, add_token, find_token, mark_token
from uvmsim.policies.online.learner import inherit
from uvmsim.policies.online.tracks import begin_track, find_track, free_track, touch_track


@inlined
def first_row(h, ev):
    """Of a micro-batch larger than half the history, the last tokens are looked at."""
    return max(0, ev.chosen.shape[0] - h.seq.size // 2)


@inlined
def meet(s, h, tr, ev, r):
    """Row ``r`` of an event: its token's number and its sequence's track; new ones are entered."""
    seq = ev.seqs[r]
    n = find_track(tr, seq)
    if n < 0:
        n = free_track(tr)
        inherit(s, n, tr.now[0])
        begin_track(tr, n, seq, ev.step)
    token = find_token(h, ev.step, seq, ev.positions[r])
    if token < 0:
        token = add_token(h, seq, ev.positions[r], tr.last[n])
    touch_track(tr, n, ev.step, token)
    add_choice(h, token, ev.layer, ev.chosen[r])
    if ev.layer == 0:
        mark_token(h, token)
    return token, n
