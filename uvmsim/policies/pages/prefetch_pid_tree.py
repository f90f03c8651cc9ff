"""A threshold a process."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import ENTER_LOOP, PagePolicy, set_region


class State(NamedTuple):
    threshold: np.ndarray  # int64 [3]: per cent, of the high, the low and any other process


class PrefetchPidTree(PagePolicy):
    """The tree walk with a threshold for each process: the favoured one gets wider regions."""

    name: ClassVar[str] = "prefetch_pid_tree"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_pid_tree.bpf.c"
    high: int = 20
    low: int = 80
    other: int = 50

    def state(self, ctx):
        return State(np.array([self.high, self.low, self.other], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        return ENTER_LOOP

    @staticmethod
    def page_prefetch_iter(s, d, block, first, outer, counter, region):
        if counter * 100 > (outer - first) * s.threshold[min(d.tenant_of[block], 2)]:
            set_region(region, first, outer)
        return 0
