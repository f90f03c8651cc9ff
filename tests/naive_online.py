"""`naive` for policies that learn while running: dictionaries of tokens, NumPy over a layer's experts.

Written from docs/learned-policies.md. Numbers are float32 and every operation is rounded, in one agreed
order, so that decisions are equal and not only alike.
"""

from __future__ import annotations

from typing import Any

import naive
import numpy as np

F = np.float32
HALF_LIVES = (1.0, 4.0, 16.0, 64.0, 256.0)
LN2 = np.log(2)


def log_of(x: np.ndarray) -> np.ndarray:
    bits = np.asarray(x, F).view(np.int32).astype(F)
    return bits * F(LN2 / 2**23) - F(127 * LN2)


def chance_of(u: np.ndarray) -> np.ndarray:
    y = np.clip(-u, F(-20), F(20))
    bits = (y * F(2**23 / LN2) + F(127 * 2**23)).astype(np.int32)
    return F(1) / (F(1) + bits.view(F))


def lanes(d: np.ndarray) -> np.float32:
    """The sum of all in four lanes, then of the lanes."""
    lane = [F(0)] * 4
    whole = len(d) - len(d) % 4
    for e, x in enumerate(d):
        at = e % 4 if e < whole else 0
        lane[at] = F(lane[at] + x)
    return F(F(lane[0] + lane[1]) + F(lane[2] + lane[3]))


class Token:
    """One token of a sequence: what it chose by layer, its neighbours, who is like it."""

    def __init__(self, number: int, before: Token | None):
        self.number, self.before, self.after = number, before, None
        self.chose: dict[int, list[int]] = {}
        self.marks: tuple[int, int] | None = None
        self.like: tuple[list[Token], list[Token]] = ([], [])


class Track:
    """What is known of a sequence in every layer."""

    def __init__(self, layers: int, experts: int):
        self.seq, self.seen, self.gap = None, -1, 0
        self.last: Token | None = None
        self.count = np.zeros((layers, 5, experts), F)
        self.used = np.full((layers, experts), -64)
        self.turn = [0] * layers
        self.number = np.zeros((layers, experts), F)
        self.follow = np.zeros((layers, 4, experts), F)
        self.had = np.zeros((layers, 2), F)
        self.source: list[list[list[int]]] = [[] for _ in range(layers)]
        self.known = [False] * layers

    def start_from(self, other: Track) -> None:
        self.count, self.used = other.count.copy(), other.used.copy()
        self.turn, self.known = list(other.turn), [False] * len(other.turn)


class Reader:
    """Tokens, tracks and weights."""

    tracks, tokens = 32, 4096

    def __init__(self, world: Any, rate: float, pair_rate: float):
        self.world, self.rate, self.pair_rate = world, F(rate), F(pair_rate)
        n, e, self.k = world.n_layers, world.n_experts, world.top_k
        self.track = [Track(n, e) for _ in range(self.tracks)]
        self.now = self.track[0]
        self.kept: list[Token] = []
        self.of_step: dict[tuple[int, int], Token] = {}
        self.step = -1
        self.chains: tuple[dict, dict] = ({}, {})
        self.salt = [int(x) for x in np.random.default_rng(20010).integers(1, 1 << 40, e)]
        self.w = np.array([0.2] * 5 + [0] * 8 + [-1], F)
        self.gradient = np.full(14, 0.01, F)
        self.pairs = np.zeros((4, n, e, e), F)
        self.counted = 0

    def begin(self, other: Reader) -> None:
        """Go on with the weights of ``other``, and with the counts of its newest sequence; its tokens
        and all other sequences are forgotten."""
        self.w, self.gradient = other.w.copy(), other.gradient.copy()
        self.pairs = other.pairs.copy()
        self.now = self.track[0]
        self.now.start_from(other.now)

    # ---- tokens ---------------------------------------------------------------------------------

    def is_kept(self, t: Token | None) -> bool:
        return t is not None and t.number >= self.counted - self.tokens

    def meet(self, ev, seq, pos, experts) -> tuple[Token, Track]:
        if ev.step != self.step:
            self.step, self.of_step = ev.step, {}
        found = [t for t in self.track if t.seq == seq]
        if found:
            track = found[0]
        else:
            free = [t for t in self.track if t.seq is None]
            track = free[0] if free else min(self.track, key=lambda t: t.seen)
            track.start_from(self.now)
            track.seq, track.seen, track.gap, track.last = seq, ev.step, 0, None
        token = self.of_step.get((seq, pos))
        if not self.is_kept(token):
            token = Token(self.counted, track.last)
            self.counted += 1
            self.of_step[seq, pos] = token
            if self.is_kept(track.last):
                track.last.after = token
        track.gap = max(track.gap, ev.step - track.seen)
        track.seen, track.last, self.now = ev.step, token, track
        chose = token.chose.setdefault(ev.layer, [])
        chose.extend(experts[: self.k - len(chose)])
        if ev.layer == 0:
            self.mark(token)
        return token, track

    def mark(self, token: Token) -> None:
        if token.marks:
            return
        one = sum(self.salt[e] for e in token.chose[0])
        two = 31 * one
        if self.is_kept(token.before) and token.before.marks:
            two += 17 * token.before.marks[0]
        token.marks = (one % 2**40, two % 2**40)
        for kind, most in ((0, 4), (1, 2)):
            chain = self.chains[kind].setdefault(token.marks[kind] % 2**14, [])
            for q in chain[::-1][:8]:
                if not self.is_kept(q) or len(token.like[kind]) == most:
                    break
                if q.marks[kind] == token.marks[kind]:
                    token.like[kind].append(q)
            chain.append(token)

    # ---- features, numbers, steps ---------------------------------------------------------------

    def features(self, track: Track, layer: int) -> np.ndarray:
        keep = 0.5 ** (1 / np.array(HALF_LIVES))
        scale = ((1 - keep) * self.world.n_experts / self.k).astype(F)
        turn = track.turn[layer] - 1
        x = [log_of(track.count[layer, j] * scale[j] + F(0.02)) for j in range(5)]
        x.append(log_of((1 + np.minimum(turn - track.used[layer], 256)).astype(F)))
        x.append((track.used[layer] == turn).astype(F))
        one = np.ones(self.world.n_experts, F)
        x += [one * had for had in track.had[layer]]
        x += list(track.follow[layer])
        return np.array([*x, one])

    def count(self, track: Track, layer: int, experts) -> np.ndarray:
        used = np.zeros(self.world.n_experts, F)
        used[experts] = 1
        track.used[layer, experts] = track.turn[layer]
        track.turn[layer] += 1
        for j, keep in enumerate((0.5 ** (1 / np.array(HALF_LIVES))).astype(F)):
            track.count[layer, j] = track.count[layer, j] * keep + used
        return used

    def followers(self, track: Track, layer: int, token: Token, after: bool) -> None:
        track.follow[layer] = 0
        for kind in range(2):
            found = [q.after if after else q for q in token.like[kind] if self.is_kept(q)]
            found = [q for q in found if self.is_kept(q)]
            track.had[layer, kind] = len(found) > 0
            for q in found:
                part = F(F(1) / F(len(found)))
                for e in q.chose.get(layer, []):
                    track.follow[layer, kind, e] += part
                for _ in range(4):
                    q = q.after
                    if not self.is_kept(q):
                        break
                    part = F(part * F(0.78))
                    for e in q.chose.get(layer, []):
                        track.follow[layer, 2 + kind, e] += part

    def chosen_by(self, token: Token | None, layer: int) -> list[int]:
        return list(token.chose.get(layer, [])) if self.is_kept(token) and layer >= 0 else []

    def numbers(self, layer: int, x: np.ndarray, sources) -> np.ndarray:
        u = np.zeros(self.world.n_experts, F)
        for j in range(len(x)):
            u = u + self.w[j] * x[j]
        for which, experts in enumerate(sources):
            for i in experts:
                u = u + self.pairs[which, layer, i]
        return chance_of(u)

    def learn(self, track: Track, layer: int, x: np.ndarray, err: np.ndarray) -> None:
        for j in range(len(x)):
            d = err * x[j]
            self.gradient[j] += lanes(d * d)
            self.w[j] += self.rate * lanes(d) / np.sqrt(self.gradient[j])
        early = F(300) / (F(300) + F(track.turn[layer]))
        rate = self.pair_rate * (F(1) + F(3) * early)
        for which, experts in enumerate(track.source[layer]):
            for i in experts:
                self.pairs[which, layer, i] += rate * err


class Learned(naive.Evict):
    """Value by sequence, those of all that are live together, layer-lru's before it is known."""

    def __init__(self, world):
        super().__init__(world)
        get = world.options.get
        self.reader = Reader(world, get("rate", 0.05), get("pair_rate", 0.015))
        self.warm = get("warm", 64)
        n = world.n_layers
        held = world.capacity * world.n_pools / (n * world.top_k)
        self.gamma = np.exp(-1 / (get("tau", 0) or min(max(2 * held, 2.0), 6.0)))
        self.events, self.seen = [0] * n, [0] * n
        self.used: dict = {}
        self.value: dict = {e: F(0) for e in world.all_experts()}

    def begin(self, other: Learned) -> None:
        self.reader.begin(other.reader)
        self.seen = list(other.seen)

    def event(self, ev):
        layer = ev.layer
        for seq, pos, experts in ev.choices[-(self.reader.tokens // 2) :]:
            token, track = self.reader.meet(ev, seq, pos, experts)
            self.turn(track, layer, token, experts)
        self.seen[layer] += len(ev.choices)
        self.events[layer] += 1
        for e in ev.experts:
            self.used[e] = self.events[layer]
        for e in range(self.world.n_experts):
            missed = self.events[layer] - self.used.get((layer, e), -256)
            self.value[layer, e] = F(self.gamma ** min(missed, 256))
        if self.seen[layer] > self.warm:
            left = np.ones(self.world.n_experts, F)
            for t in self.reader.track:
                live = t.seq is not None and ev.step - t.seen <= t.gap
                if live and t.known[layer]:
                    left = left * (F(1) - t.number[layer])
            for e in range(self.world.n_experts):
                self.value[layer, e] = F(1) - left[e]

    def turn(self, track, layer, token, experts):
        r = self.reader
        known = track.known[layer]
        old = r.features(track, layer)
        used = r.count(track, layer, experts)
        r.followers(track, layer, token, True)
        before = r.chosen_by(token.before, layer)
        here = [r.chosen_by(token, layer - back) for back in range(3)]
        number = r.numbers(layer, r.features(track, layer), [*here, before])
        if known:
            target = np.where(used > 0, F(1), F(self.gamma) * number)
            r.learn(track, layer, old, target - track.number[layer])
        track.number[layer], track.source[layer] = number, [*here, before]
        track.known[layer] = True

    def victim(self, free):
        n = self.world.n_layers
        wait = (self.gamma ** (np.arange(n) / n)).astype(F)

        def key(e):
            return (F(self.value[e] * wait[(e[0] - self.world.layer - 1) % n]), e)

        return min(free, key=key)


naive.EVICT["learned"] = Learned


class LearnedNext(naive.Fetch):
    """Chance of every expert some layers on; what the link has queued; what paid."""

    def __init__(self, world):
        super().__init__(world)
        get = world.prefetch_options.get
        self.reader = Reader(world, get("rate", 0.05), get("pair_rate", 0.02))
        self.ahead, self.most = get("ahead", 1), get("n", 0) or world.top_k
        self.least = self.theta = get("theta", 0.5)
        self.budget, self.useful = get("budget", 0), get("useful", 0)
        self.queued = 0.0
        self.judging: set = set()
        self.used = self.unused = 0.0
        self.made: dict = {}
        self.left = np.ones(world.n_experts, F)

    def begin(self, other: LearnedNext) -> None:
        self.reader.begin(other.reader)

    def event(self, ev):
        self.queued = max(0.0, self.queued - self.budget)
        if any(e not in self.world.resident for e in ev.experts):
            self.queued = 0.0
        self.govern(ev)
        self.left = np.ones(self.world.n_experts, F)
        for seq, pos, experts in ev.choices[-(self.reader.tokens // 2) :]:
            token, track = self.reader.meet(ev, seq, pos, experts)
            self.turn(track, ev.layer, experts)
            self.forecast(track, ev.layer, token)

    def govern(self, ev):
        due = {e for e in self.judging if e[0] == ev.layer}
        self.judging -= due
        if not self.useful:
            return
        if not due:
            self.theta = max(self.least, self.theta - 0.0005)
            return
        size = float(self.world.bytes_of[ev.layer])
        paid = len(due & set(ev.experts))
        self.used = self.used * 0.98 + paid * size
        self.unused = self.unused * 0.98 + (len(due) - paid) * size
        if self.used < self.useful * (self.used + self.unused):
            self.theta = min(1.0, self.theta + 0.02)
        else:
            self.theta = max(self.least, self.theta - 0.02)

    def turn(self, track, layer, experts):
        r = self.reader
        # Features have changed where another token of the sequence passed the layer in between.
        learns = track.known[layer] and self.made.get((id(track), layer)) == track.turn[layer]
        old = r.features(track, layer)
        used = r.count(track, layer, experts)
        if learns:
            r.learn(track, layer, old, used - track.number[layer])
        track.known[layer] = False

    def forecast(self, track, layer, token):
        r, n = self.reader, self.world.n_layers
        target, wraps = (layer + self.ahead) % n, layer + self.ahead >= n
        r.followers(track, target, token, wraps)
        sources = [r.chosen_by(token, layer - back) for back in range(3)]
        sources.append(r.chosen_by(token if wraps else token.before, target))
        number = r.numbers(target, r.features(track, target), sources)
        self.left = self.left * (F(1) - number)
        track.number[target], track.source[target] = number, sources
        track.known[target] = True
        self.made[id(track), target] = track.turn[target]

    def wanted(self, ev):
        target = (ev.layer + self.ahead) % self.world.n_layers
        size = float(self.world.bytes_of[target])
        out, new = [], 0
        for e in sorted(range(self.world.n_experts), key=lambda e: (self.left[e], e)):
            chance = F(1) - self.left[e]
            if chance < self.theta or chance <= 0:
                break
            if (target, e) not in self.world.resident:
                late = self.budget and self.queued + size > self.ahead * self.budget
                if new == self.most or late:
                    continue
                self.queued += size
                self.judging.add((target, e))
                new += 1
            out.append((target, e))
        return out


naive.FETCH["learned-next"] = LearnedNext


class GateNext(LearnedNext):
    """The learned chance and the next layer's own router, weighed layer by layer."""

    def __init__(self, world):
        super().__init__(world)
        self.gate_rate = F(world.prefetch_options.get("gate_rate", 0.1))
        self.w = {n: np.array([1, 0, 0, 0, 0, 0], F) for n in range(world.n_layers)}
        self.squares = {n: np.full(6, 0.01, F) for n in range(world.n_layers)}
        self.seen: dict = {}

    def event(self, ev):
        super().event(ev)
        self.left = self.weighed

    def govern(self, ev):
        super().govern(ev)
        self.weighed = np.ones(self.world.n_experts, F)
        self.guesses = list(ev.guesses[-(self.reader.tokens // 2) :])

    def turn(self, track, layer, experts):
        if track.known[layer] and self.made.get((id(track), layer)) == track.turn[layer]:
            x = self.looked(track, layer)
            err = -self.chances(layer, x)
            err[experts] += F(1)
            for j in range(6):
                step = F(0)
                for d in err * x[j]:
                    step = F(step + d)
                self.squares[layer][j] += step * step
                root = np.sqrt(self.squares[layer][j])
                self.w[layer][j] += self.gate_rate * step / root
        super().turn(track, layer, experts)

    def forecast(self, track, layer, token):
        super().forecast(track, layer, token)
        target = (layer + self.ahead) % self.world.n_layers
        self.seen[id(track), target] = self.guesses.pop(0)[self.ahead - 1]
        self.weighed = self.weighed * (F(1) - self.chances(target, self.looked(track, target)))

    def looked(self, track, layer) -> np.ndarray:
        p = np.clip(track.number[layer], F(1e-3), F(1) - F(1e-3))
        x = np.zeros((6, self.world.n_experts), F)
        x[0] = log_of(p) - log_of(F(1) - p)
        x[5] = 1
        if self.seen[id(track), layer]:
            experts, scores = self.seen[id(track), layer]
            finite = [s for s in scores if s > -np.inf]
            scores = [F(max(s, finite[-1])) for s in scores]
            k = self.world.top_k
            scale = F(1) / max(F(scores[0] - scores[-1]), F(1e-3))
            limit = (scores[k - 1] + scores[min(k, len(scores) - 1)]) * F(0.5)
            x[1] = (scores[-1] - limit) * scale - F(0.25)
            for e, score in zip(experts, scores, strict=True):
                x[1, e] = (score - limit) * scale
                x[2, e] = e in experts[:k]
                x[4, e] = 1
            x[3, experts[0]] = 1
        return x

    def chances(self, layer, x) -> np.ndarray:
        u = np.zeros(self.world.n_experts, F)
        for j in range(6):
            u = u + self.w[layer][j] * x[j]
        return chance_of(u)


naive.FETCH["gate-next"] = GateNext
