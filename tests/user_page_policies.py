"""Page policies as a user writes them, for the tests."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import DEFAULT, PagePolicy, move_head


class State(NamedTuple):
    seen: np.ndarray  # int64 [chunks]
    reach: np.ndarray  # int64 [2]


class Watch(PagePolicy):
    """Counts accesses and moves nothing; ``reach`` goes past its table's end, ``stray`` moves a
    chunk that may be free."""

    name: ClassVar[str] = "watch"
    reach: int = 0
    stray: int = -1

    def state(self, ctx):
        reach = np.array([self.reach, self.stray], np.int64)
        return State(np.zeros(ctx.n_chunks, np.int64), reach)

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        s.seen[s.reach[0]] += 1
        return DEFAULT

    @staticmethod
    def block_access(s, d, chunk):
        s.seen[chunk] += 1
        return DEFAULT

    @staticmethod
    def evict_prepare(s, d):
        if s.reach[1] >= 0:
            move_head(d, s.reach[1])
        return 0
