"""Prefetch what a layer ahead takes by a learned probability, as much as can arrive in time."""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.core.jit import inlined
from uvmsim.policies.base import Prefetch
from uvmsim.policies.online.arithmetic import ONE
from uvmsim.policies.online.governor import Governor, ask, asks_for, judge, new_governor
from uvmsim.policies.online.history import History, new_history, place
from uvmsim.policies.online.learner import (
    Learner,
    check_known,
    count_use,
    features,
    keep_numbers,
    knowledge,
    learn,
    new_learner,
    numbers,
    see_followers,
    see_source,
    sizes,
)
from uvmsim.policies.online.link import Link, fits, new_link, pass_event, queue_copy
from uvmsim.policies.online.rows import first_row, meet
from uvmsim.policies.online.tracks import Tracks, new_tracks


class State(NamedTuple):
    """learner, history, tracks, governor, link: see uvmsim/policies/online; made: int32 [N, layers],
    the layer's turn that a track's last forecast was made in; left: float32 [experts], probability
    that nobody takes an expert; n: int64 [2], layers ahead and most experts to ask for."""

    learner: Learner
    history: History
    tracks: Tracks
    governor: Governor
    link: Link
    made: np.ndarray
    left: np.ndarray
    n: np.ndarray


class LearnedNext(Prefetch):
    """The layer `ahead`'s experts with a learned probability of at least `theta`, likeliest first."""

    name = "learned-next"
    source = (
        "ours: a logistic of decayed counts, pairs of choices, and what tokens like this one chose, "
        "learned while running; admitted while a FIFO link can bring it in time"
    )
    knowledge_depends_on = frozenset({"ahead"})
    theta: float = 0.5
    """Least probability."""
    ahead: int = 1
    """Layers ahead, 1 to 3."""
    n: int = 0
    """Most experts a call may fetch; 0 = top-k."""
    budget: float = 0.0
    """Bytes the link moves while a layer computes; what cannot be there in time is not asked for.
    0 = no limit."""
    useful: float = 0.0
    """Share of the prefetched bytes that must be of use: below it the governor raises theta, until
    nothing is asked for. 0 = no governor."""
    rate: float = 0.05
    pair_rate: float = 0.02
    search: ClassVar[dict[str, Any]] = {
        "theta": (0.05, 0.95), "ahead": (1, 3), "n": (1, 16, "log"), "budget": (1e5, 1e9, "log"),
        "useful": (0.0, 0.95), "rate": (0.005, 0.5, "log"), "pair_rate": (0.001, 0.2, "log"),
    }  # fmt: skip

    def limit(self, ctx):
        return ctx.n_experts

    def state(self, ctx):
        for name, least, most in (
            ("theta", 0, 1), ("ahead", 1, 3), ("useful", 0, 1), ("budget", 0, 1e15), ("n", 0, 1e6),
            ("rate", 0, 1e3), ("pair_rate", 0, 1e3),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise InputError(
                    f"policy learned-next: {name}={getattr(self, name):g} must be from {least} to "
                    f"{most:g}"
                )
        n_tracks, n_tokens = sizes(ctx)
        return State(
            new_learner(ctx, n_tracks, self.rate, self.pair_rate), new_history(ctx, n_tokens),
            new_tracks(n_tracks), new_governor(ctx, self.theta, self.useful),
            new_link(ctx, self.budget), np.full((n_tracks, ctx.n_layers), -1, np.int32),
            np.ones(ctx.n_experts, np.float32), np.array([self.ahead, self.n or ctx.top_k]),
        )  # fmt: skip

    def knowledge(self, s):
        return knowledge(s.learner, int(s.tracks.now[0]))

    def recall(self, s, known):
        check_known(known)
        super().recall(s, known)

    @staticmethod
    def on_event(s, pool, ev):
        pass_event(s.link, pool, ev)
        judge(s.governor, pool, ev)
        s.left[:] = ONE
        for r in range(first_row(s.history, ev), ev.chosen.shape[0]):
            token, track = meet(s.learner, s.history, s.tracks, ev, r)
            _turn(s, track, ev.layer, ev.chosen[r])
            _forecast(s, pool, track, ev.layer, token)

    @staticmethod
    def prefetch(s, pool, ev, out):
        layer = (ev.layer + s.n[0]) % pool.n_layers
        first = layer * pool.n_experts
        asked = new = 0
        while asked < pool.n_experts:
            best = np.argmin(s.left)
            chance = ONE - s.left[best]
            if not asks_for(s.governor, chance):
                break
            s.left[best] = 2  # looked at
            e = first + best
            if pool.slot_of[e] < 0:
                if new == s.n[1] or not fits(s.link, layer, s.n[0]):
                    continue
                queue_copy(s.link, layer)
                ask(s.governor, e)
                new += 1
            out[asked] = e  # what is there already shall not leave for the others
            asked += 1
        return asked


@inlined
def _turn(s, track, layer, chosen):
    """A token of a track has chosen: learn from the forecast, if nothing has come between."""
    m = s.learner
    known = m.known[track, layer] and s.made[track, layer] == m.turn[track, layer]
    if known:
        features(m, track, layer, m.old)
    count_use(m, track, layer, chosen)
    if known:
        number = m.number[track, layer]
        for e in range(number.size):
            m.err[e] = m.used[e] - number[e]
        learn(m, track, layer)
    m.known[track, layer] = False


@inlined
def _forecast(s, pool, track, layer, token):
    """What the token takes some layers on; past the last layer, what the token after it takes."""
    m, h = s.learner, s.history
    target = (layer + s.n[0]) % pool.n_layers
    wraps = layer + s.n[0] >= pool.n_layers
    see_followers(m, h, track, target, token, wraps)
    features(m, track, target, m.x)
    see_source(m, h, 0, token, layer)
    see_source(m, h, 1, token, layer - 1)
    see_source(m, h, 2, token, layer - 2)
    see_source(m, h, 3, token if wraps else h.before[place(h, token)], target)
    numbers(m, target)
    for e in range(m.u.size):
        s.left[e] *= ONE - m.u[e]
    keep_numbers(m, track, target)
    s.made[track, target] = m.turn[track, target]
