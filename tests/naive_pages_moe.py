"""Twins of the page policies that know layers or reach across blocks, and the table of all."""

from __future__ import annotations

from collections import deque

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


class TemplateBelady(Max):
    def setup(self, near=3):
        self.near, self.current = near, 0

    def activate(self, chunk):
        layer = self.w.layer(self.w.block_of[chunk])
        if layer is not None:
            self.current = layer

    def access(self, chunk):
        layer = self.w.layer(self.w.block_of[chunk])
        if layer is None:
            return True
        if (layer - self.current) % (len(self.w.boundaries) - 1) <= self.near:
            self.w.tail(chunk)
        else:
            self.w.head(chunk)
        return False


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


class CrossBlock(Twin):
    def setup(self, mode="2-step", evict="passive_mru", gap_us=0):
        self.mode, self.gap = mode, gap_us * 1000
        self.visits: list[int] = []
        self.asked = None
        kinds = {"passive_mru": PassiveMru, "cycle_moe": CycleMoe, "lru": Twin, "fifo": Fifo}
        self.order = kinds[evict](self.w)
        self.activate, self.access = self.order.activate, self.order.access

    def target(self):
        steps = [b - a for a, b in zip(self.visits, self.visits[1:], strict=False)]
        if self.mode == "blind":
            return self.visits[-1] + 1
        need = 2 if self.mode == "2-step" else 3
        last = steps[-need:]
        if self.mode == "adjacent" and any(abs(x) != 1 for x in last):
            return None
        if len(last) == need and (all(x > 0 for x in last) or all(x < 0 for x in last)):
            return self.visits[-1] + (1 if last[0] > 0 else -1)
        return None

    def prefetch(self, block, page, lo, hi):
        if not self.visits or self.visits[-1] != block:
            self.visits.append(block)
            target = self.target()
            late = self.asked is None or self.w.now - self.asked >= self.gap
            if target is not None and late:
                self.asked = self.w.now
                self.request(target)
        return (lo, hi)

    def request(self, block):
        self.w.migrate(block)


class Throttled(CrossBlock):
    def setup(self, mode="2-step", evict="lru", gap_us=1000):
        super().setup(mode, evict, gap_us)


class Cooperative(CrossBlock):
    def setup(self, ring=64):
        super().setup("2-step", "lru")
        self.ring = deque(maxlen=ring)

    def request(self, block):
        super().request(block)
        self.ring.append(block)

    def prepare(self):
        for _ in range(8):
            if not self.w.used or self.w.block_of[self.w.used[0]] not in self.ring:
                return
            self.w.tail(self.w.used[0])


class StrideMultiblock(Max):
    def setup(self, blocks=1, threshold=2):
        self.blocks, self.threshold = blocks, threshold
        self.last, self.stride, self.sure = None, 0, 0

    def prefetch(self, block, page, lo, hi):
        if block != self.last:
            if self.last is not None:
                if block - self.last == self.stride:
                    self.sure += 1
                else:
                    self.sure, self.stride = max(0, self.sure - 1), block - self.last
            self.last = block
            if self.sure >= self.threshold:
                for k in range(self.blocks):
                    self.w.migrate(block + (k + 1) * self.stride)
        return (lo, hi)


class ProactiveLayer(Max):
    def setup(self, blocks=16):
        self.blocks, self.current = blocks, None

    def prefetch(self, block, page, lo, hi):
        layer = self.w.layer(block)
        if layer is not None and layer != self.current:
            self.current = layer
            starts = self.w.boundaries
            i = (layer + 1) % (len(starts) - 1)
            for b in list(range(starts[i], starts[i + 1]))[: self.blocks]:
                self.w.migrate(b)
        return (lo, hi)


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
    "expert_buffering_policy": ExpertBuffering,
}
