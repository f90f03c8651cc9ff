"""A fault brings the rest of its block."""

from typing import NamedTuple

import numpy as np

from uvmsim.policies.pages.base import BYPASS, MAX_OUTER, PagePolicy, set_region


class State(NamedTuple):
    before: np.ndarray  # int64 [1]


class RestOfBlock(PagePolicy):
    """A fault brings the rest of its block, and `before` pages in front of it."""

    before: int = 0

    def state(self, ctx):
        return State(np.array([self.before], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, page - s.before[0], region[MAX_OUTER])
        return BYPASS
