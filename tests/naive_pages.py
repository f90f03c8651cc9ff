"""Page policies once more, slow and obvious, on dictionaries and lists.

A world is the driver as a program sees it; a twin is a program. Shares nothing with the code under
test. ``region`` answers are (first, outer) pairs, cut to the allowed region by the caller.
"""

from __future__ import annotations

from collections import Counter, defaultdict


class World:
    """The used list from head to tail, who is in which chunk, and what was asked for."""

    def __init__(self, n_blocks, n_chunks, tenant, boundaries):
        self.n_blocks, self.n_chunks = n_blocks, n_chunks
        self.tenant = tenant
        self.boundaries = boundaries
        self.used: list[int] = []
        self.block_of: dict[int, int] = {}
        self.wanted: list[int] = []
        self.room = 0
        self.now = 0
        self.batch = 0
        self.decode = False
        self.activates = 0

    def head(self, chunk):
        self.used.remove(chunk)
        self.used.insert(0, chunk)

    def tail(self, chunk):
        self.used.remove(chunk)
        self.used.append(chunk)

    def migrate(self, block):
        if 0 <= block < self.n_blocks and len(self.wanted) < self.room:
            self.wanted.append(block)

    def who(self, chunk):
        return ("high", "low", "other")[min(self.tenant[self.block_of[chunk]], 2)]

    def layer(self, block):
        for i, (a, b) in enumerate(zip(self.boundaries, self.boundaries[1:], strict=False)):
            if a <= block < b:
                return i
        return None


class Twin:
    """Does what the driver does."""

    def __init__(self, world: World, **options):
        self.w = world
        self.o = options
        self.setup(**options)

    def setup(self):
        pass

    def prefetch(self, block, page, lo, hi):
        """-> 'default', 'loop', or the region as a pair."""
        return "default"

    def tree(self, block, first, outer, counter):
        """-> a pair, or None to keep what there is."""

    def activate(self, chunk):
        pass

    def access(self, chunk):
        """True: the driver moves it to the tail."""
        return True

    def prepare(self):
        pass


class Nothing(Twin):
    def prefetch(self, block, page, lo, hi):
        return (0, 0)


class Max(Twin):
    def prefetch(self, block, page, lo, hi):
        return (lo, hi)


class Sequential(Twin):
    def setup(self, percent=100, pages=0, direction="forward"):
        self.percent, self.pages, self.direction = percent, pages, direction

    def prefetch(self, block, page, lo, hi):
        if self.pages > 0:
            n = self.pages
        elif self.percent <= 0:
            n = 0
        elif self.percent >= 100:
            n = hi - lo
        else:
            n = max(1, (hi - lo) * self.percent // 100)
        if n == 0:
            return (0, 0)
        first = {"forward": page + 1, "backward": page - n, "forward_start": lo}[self.direction]
        return (first, first + n)


class Direction(Twin):
    def setup(self, direction="forward", pages=0):
        self.direction, self.n = direction, pages or 10_000

    def prefetch(self, block, page, lo, hi):
        return {
            "forward": (page + 1, page + 1 + self.n),
            "backward": (page - self.n, page),
            "around": (page - self.n, page + self.n),
        }[self.direction]


class Tree(Twin):
    def setup(self, threshold=50):
        self.threshold = defaultdict(lambda: threshold)

    def prefetch(self, block, page, lo, hi):
        return "loop"

    def tree(self, block, first, outer, counter):
        who = min(self.w.tenant[block], 2)
        if 100 * counter > self.threshold[who] * (outer - first):
            return (first, outer)
        return None


class PidTree(Tree):
    def setup(self, high=20, low=80, other=50):
        self.threshold = [high, low, other]


class PidBoth(PidTree):
    def setup(self, high=10, low=80, other=50):
        super().setup(high, low, other)
        self.accesses = Counter()

    def access(self, chunk):
        self.accesses[chunk] += 1
        param = self.threshold[min(self.w.tenant[self.w.block_of[chunk]], 2)]
        if self.accesses[chunk] % max(1, param // 10) == 0:
            self.w.tail(chunk)
        return False


class Stride(Twin):
    def setup(self, threshold=2, pages=2, max_stride=128):
        self.threshold, self.pages, self.max_stride = threshold, pages, max_stride
        self.map = {}

    def prefetch(self, block, page, lo, hi):
        if block not in self.map:
            if len(self.map) < 4096:
                self.map[block] = {"last": page, "stride": 0, "confidence": 0}
            return (0, 0)
        e = self.map[block]
        stride, e["last"] = page - e["last"], page
        if stride == 0:
            return (0, 0)
        if abs(stride) > self.max_stride:
            e["confidence"] = max(0, e["confidence"] - 1)
            return (0, 0)
        if stride == e["stride"]:
            e["confidence"] += 1
        else:
            e["confidence"] = max(0, e["confidence"] - 1)
            e["stride"] = stride
        if e["confidence"] < self.threshold:
            return (0, 0)
        return ahead(page, e["stride"], self.pages)


def ahead(page, stride, n):
    """n pages from page + stride on, in the stride's direction."""
    pages = [page + stride + (i if stride >= 0 else -i) for i in range(n)]
    return (min(pages), max(pages) + 1)


class StrideLfu(Stride):
    def setup(self, sample=256, **how):
        super().setup(**how)
        self.sample, self.accesses, self.freq = sample, 0, {}

    def activate(self, chunk):
        self.freq[chunk] = 1

    def access(self, chunk):
        self.accesses += 1
        if self.accesses % self.sample == 0 and self.freq[chunk] < 255:
            self.freq[chunk] += 1
            self.w.tail(chunk)
        return False


class Markov(Twin):
    """Without collisions in its table: the tests use few enough pairs that differ in their place."""

    def setup(self, threshold=2, pages=2, max_delta=128):
        self.threshold, self.pages, self.max_delta = threshold, pages, max_delta
        self.last, self.delta, self.table = {}, {}, {}

    def prefetch(self, block, page, lo, hi):
        before = self.delta.pop(block, None)
        last = self.last.get(block)
        self.last[block] = page
        if last is None or abs(page - last) > self.max_delta:
            return (0, 0)
        delta = self.delta[block] = page - last
        if before is not None:
            following, sure = self.table.get((block, before), (None, 0))
            if following is None:
                self.table[block, before] = (delta, 1)
            elif following == delta:
                self.table[block, before] = (delta, sure + 1)
            else:
                self.table[block, before] = (delta, max(0, sure - 1))
        following, sure = self.table.get((block, delta), (None, 0))
        if following is None or sure < self.threshold:
            return (0, 0)
        return ahead(page, following, self.pages)


class Fifo(Twin):
    def access(self, chunk):
        return False


class FifoChance(Fifo):
    def setup(self, high=3, low=0, other=1):
        self.give = {"high": high, "low": low, "other": other}
        self.chance = {}

    def activate(self, chunk):
        self.chance[chunk] = self.give[self.w.who(chunk)]

    def access(self, chunk):
        self.activate(chunk)
        return False

    def prepare(self):
        for _ in range(8):
            if not self.w.used or self.chance[self.w.used[0]] == 0:
                return
            self.chance[self.w.used[0]] -= 1
            self.w.tail(self.w.used[0])


class Lfu(Twin):
    def setup(self):
        self.freq = {}

    def activate(self, chunk):
        self.freq[chunk] = 1
        self.w.head(chunk)

    def access(self, chunk):
        if self.freq[chunk] < 255:
            self.freq[chunk] += 1
            self.w.tail(chunk)
        return False


class Mru(Twin):
    def activate(self, chunk):
        self.w.tail(chunk)

    def access(self, chunk):
        self.w.head(chunk)
        return False


class FreqPidDecay(Twin):
    def setup(self, high=1, low=10, other=5):
        self.decay = {"high": high, "low": low, "other": other}
        self.accesses = Counter()

    def access(self, chunk):
        self.accesses[chunk] += 1
        if self.accesses[chunk] % self.decay[self.w.who(chunk)] == 0:
            self.w.tail(chunk)
        return False

    def prepare(self):
        del self.accesses[self.w.used[0]]


class PidQuota(Twin):
    def setup(self, high=0, low=100, other=0):
        self.percent = {"high": high, "low": low, "other": other}
        self.owner = {}

    def activate(self, chunk):
        self.owner[chunk] = self.w.who(chunk)

    def access(self, chunk):
        who = self.w.who(chunk)
        if not self.percent[who]:
            return True
        active = Counter(self.owner.values())
        if active[who] <= (active["high"] + active["low"]) * self.percent[who] // 100:
            self.w.tail(chunk)
        return False


class TwoQ(Twin):
    def setup(self, generation=0):
        self.length = generation or self.w.n_chunks
        self.seen = defaultdict(
            list
        )  # generations in which a frame was accessed, without large gaps

    def access(self, chunk):
        now = self.w.activates // self.length
        seen = self.seen[chunk]
        if seen and now - seen[-1] > 2:
            seen.clear()
        if now not in seen:
            seen.append(now)
        self.w.tail(chunk) if len(seen) >= 2 else self.w.head(chunk)
        return False


class CycleMoe(Twin):
    """Frames counted often; each CPU of the fault handler has counts of its own."""

    def setup(self, t1=3, cpus=1):
        self.t1 = t1
        self.counts = [Counter() for _ in range(cpus)]

    def often(self, chunk):
        """Count it on the CPU that serves this batch; whether it has been there often."""
        here = self.counts[self.w.batch % len(self.counts)]
        here[chunk] += 1
        return here[chunk] >= self.t1

    def activate(self, chunk):
        if self.often(chunk):
            self.w.tail(chunk)


class MaxCycleMoe(Max, CycleMoe):
    pass


class PassiveMru(Max, CycleMoe):
    """What an activation returns is ignored, so those that keep their place are at the tail."""


class MruExpert(PassiveMru):
    def activate(self, chunk):
        self.w.tail(chunk) if self.often(chunk) else self.w.head(chunk)
