"""Twins of the page policies that know layers or reach across blocks, and the table of all."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from naive_pages import (
    CycleMoe,
    Direction,
    Fifo,
    FifoChance,
    FreqPidDecay,
    Lfu,
    Markov,
    Max,
    MaxCycleMoe,
    Mru,
    MruExpert,
    Nothing,
    PassiveMru,
    PidBoth,
    PidQuota,
    PidTree,
    Sequential,
    Stride,
    StrideLfu,
    Tree,
    Twin,
    TwoQ,
)  # fmt: skip


class TemplateBelady(Max, CycleMoe):
    def setup(self, t1=3, cpus=1):
        super().setup(t1, cpus)
        self.current = 0

    def activate(self, chunk):
        layer, layers = self.w.layer(self.w.block_of[chunk]), len(self.w.boundaries) - 1
        if self.often(chunk):
            self.w.tail(chunk)
        elif layer is not None and (layer - self.current) % layers > layers / 2:
            self.w.head(chunk)
        if layer is not None:
            self.current = layer


class ReuseDist(Max):
    def setup(self, near_ms=50):
        self.near = near_ms * 1e6
        self.last, self.mean = {}, {}

    def activate(self, chunk):
        if chunk in self.last:
            gap = self.w.now - self.last[chunk]
            mean = self.mean.get(chunk)
            self.mean[chunk] = gap if mean is None else (mean * 3 + gap) // 4
            if self.mean[chunk] < self.near:
                self.w.tail(chunk)
        self.last[chunk] = self.w.now


class Walk:
    """Blocks in the order of their faults, each once until another one faults."""

    def __init__(self):
        self.visits: list[int] = []

    def moved(self, block):
        if self.visits and self.visits[-1] == block:
            return False
        self.visits.append(block)
        return True

    def steps(self, n):
        """The last n moves; fewer where there were not so many."""
        last = self.visits[-n - 1 :]
        return [b - a for a, b in pairwise(last)]

    def way(self, n):
        """+1 or -1 where the last n moves went that way, else None."""
        steps = self.steps(n)
        if len(steps) == n and all(x > 0 for x in steps):
            return 1
        if len(steps) == n and all(x < 0 for x in steps):
            return -1
        return None


class CrossBlock(CycleMoe):
    """One work item a CPU: a request that nobody has begun is overwritten by the next."""

    def setup(self, mode="2-step", evict="passive_mru", t1=3, cpus=1):
        super().setup(t1, cpus)
        self.mode, self.evict, self.walk = mode, evict, Walk()

    def target(self, block):
        if self.mode == "blind":
            return block + 1
        way = self.walk.way(2 if self.mode == "2-step" else 3)
        if self.mode == "adjacent" and any(abs(x) != 1 for x in self.walk.steps(3)):
            return None
        return None if way is None else block + way

    def prefetch(self, block, page, lo, hi):
        if self.walk.moved(block):
            target = self.target(block)
            if target is not None:
                self.request(target)
        return (lo, hi)

    def request(self, block):
        self.w.wanted = []
        self.w.migrate(block)

    def activate(self, chunk):
        if self.evict in ("passive_mru", "cycle_moe"):
            super().activate(chunk)

    def access(self, chunk):
        return self.evict != "fifo"


class Throttled(CycleMoe):
    def setup(self, max_faults=50, window_us=1000, t1=3, cpus=1):
        super().setup(t1, cpus)
        self.most, self.window = max_faults, 1000 * window_us
        self.walk, self.began, self.faults = Walk(), 0, []

    def prefetch(self, block, page, lo, hi):
        if self.w.now >= self.began + self.window:
            self.began, self.faults = self.w.now, []
        self.faults.append(page)
        if self.walk.moved(block) and len(self.faults) <= self.most:
            way = self.walk.way(2)
            if way is not None:
                self.w.wanted = []
                self.w.migrate(block + way)
        return (lo, hi)


class Cooperative(CrossBlock):
    def setup(self, ring=8, radius=2, t1=3, cpus=1):
        super().setup("2-step", "lru", t1, cpus)
        self.ring, self.radius = deque(maxlen=ring), radius

    def request(self, block):
        super().request(block)
        self.ring.append(block)

    def access(self, chunk):
        block = self.w.block_of[chunk]
        near = any(t >= 0 and t - self.radius <= block <= t + self.radius for t in self.ring)
        if near or self.often(chunk):
            self.w.tail(chunk)
            return False
        return True


class StrideMultiblock(Max, CycleMoe):
    def setup(self, blocks=6, strides=4, t1=3, cpus=1):
        super().setup(t1, cpus)
        self.blocks, self.strides = blocks, strides
        self.walk, self.expected, self.sure = Walk(), None, 0

    def prefetch(self, block, page, lo, hi):
        if not self.walk.moved(block):
            return (lo, hi)
        last = self.walk.steps(self.strides)
        found = len(last) == self.strides and len(set(last)) == 1
        self.sure += (1 if found else -2) + (2 if block == self.expected else 0)
        self.sure = sorted((0, self.sure, 10))[1]
        self.expected = None
        if found:
            self.expected = block + last[0]
            self.w.wanted = []
            for k in range(min(1 + self.sure // 2, 6, self.blocks)):
                self.w.migrate(block + (k + 1) * last[0])
        return (lo, hi)


class ProactiveLayer(Max, CycleMoe):
    def setup(self, prefetch_bytes=4 << 20, ahead=1, t1=3, cpus=1):
        super().setup(t1, cpus)
        self.blocks, self.ahead = -(-prefetch_bytes // (2 << 20)), ahead
        self.token, self.entered = [], set()

    def prefetch(self, block, page, lo, hi):
        if len(self.token) > 10 and block < self.token[-1]:
            self.token, self.entered = [], set()
        self.token.append(block)
        layer = self.w.layer(block)
        if layer is not None and layer > max(self.entered, default=-1):
            self.entered.add(layer)
            starts = self.w.boundaries
            i = (layer + self.ahead) % (len(starts) - 1)
            self.w.wanted = []
            for b in list(range(starts[i], starts[i + 1]))[: self.blocks]:
                self.w.migrate(b)
        return (lo, hi)


class ServingAdaptive(Throttled):
    def setup(self, max_faults=50, window_ms=10):
        super().setup(max_faults, 1000 * window_ms)

    def prefetch(self, block, page, lo, hi):
        super().prefetch(block, page, lo, hi)
        self.w.wanted = []
        return (lo, hi) if len(self.faults) > self.most else "default"

    def activate(self, chunk):
        pass


class Qos(Twin):
    def setup(self, target=200, ki=10, decay=2, period_ms=100):
        self.target, self.ki, self.decay = target, ki, decay
        self.period, self.began, self.faults, self.integral = period_ms * 1_000_000, 0, 0, 0

    def prefetch(self, block, page, lo, hi):
        past = self.w.now - self.began
        if past >= self.period:
            error = self.faults * 10**9 // past - self.target
            self.integral -= self.integral // 2**self.decay
            self.integral = max(0, self.integral + self.ki * error)
            self.began, self.faults = self.w.now, 0
        if self.w.tenant[block] == 0:
            self.faults += 1
            return (lo, hi)
        return "default" if self.integral else (lo, hi)


class LlamaPhase(Twin):
    def setup(self, decode="around", radius=32):
        self.mode, self.radius = decode, radius

    def prefetch(self, block, page, lo, hi):
        if not self.w.decode or self.mode == "max":
            return (lo, hi)
        if self.mode == "default":
            return "default"
        return (
            (page + 1, hi) if self.mode == "forward" else (page - self.radius, page + self.radius)
        )


class MoeExpert(Max):
    def setup(self):
        self.current, self.activated = None, set()

    def prefetch(self, block, page, lo, hi):
        layer = self.w.layer(block)
        if layer is not None:
            if self.current is not None and layer < self.current:
                for b in sorted(self.activated):
                    self.w.migrate(b)
                self.activated = set()
            self.current = layer
        return (lo, hi)

    def activate(self, chunk):
        self.activated.add(self.w.block_of[chunk])


class ExpertBuffering(Twin):
    def setup(self, kinds, mode="protect"):
        self.kinds, self.mode = kinds, mode

    def access(self, chunk):
        kind = self.kinds.get(self.w.block_of[chunk])
        if self.mode == "observe" or kind is None:
            return True
        if kind in ("shared", "hot"):
            self.w.tail(chunk)
        elif self.mode == "protect":
            return True
        else:
            self.w.head(chunk)
        return False


TWINS = {
    "default": Twin,
    "prefetch_none": Nothing,
    "prefetch_always_max": Max,
    "prefetch_adaptive_sequential": Sequential,
    "prefetch_adaptive_tree_iter": Tree,
    "prefetch_direction": Direction,
    "prefetch_stride": Stride,
    "prefetch_pid_tree": PidTree,
    "prefetch_eviction_pid": PidBoth,
    "prefetch_stride_lfu": StrideLfu,
    "prefetch_delta_markov": Markov,
    "eviction_fifo": Fifo,
    "eviction_fifo_chance": FifoChance,
    "eviction_lfu": Lfu,
    "eviction_mru": Mru,
    "eviction_freq_pid_decay": FreqPidDecay,
    "eviction_pid_quota": PidQuota,
    "eviction_2q_approx": TwoQ,
    "eviction_cycle_moe": CycleMoe,
    "prefetch_always_max_cycle_moe": MaxCycleMoe,
    "prefetch_max_passive_mru": PassiveMru,
    "prefetch_max_mru_expert": MruExpert,
    "prefetch_template_belady": TemplateBelady,
    "prefetch_reuse_dist": ReuseDist,
    "prefetch_cross_block_v2": CrossBlock,
    "prefetch_throttled_xb": Throttled,
    "prefetch_cooperative": Cooperative,
    "prefetch_stride_multiblock": StrideMultiblock,
    "prefetch_proactive_layer": ProactiveLayer,
    "prefetch_moe_expert": MoeExpert,
    "prefetch_serving_adaptive": ServingAdaptive,
    "prefetch_always_max_qos": Qos,
    "prefetch_always_max_xcoord": Max,
    "prefetch_llama_phase": LlamaPhase,
    "expert_buffering_policy": ExpertBuffering,
}
