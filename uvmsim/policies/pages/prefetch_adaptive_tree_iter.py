"""The density tree with a threshold of one's own."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import ENTER_LOOP, PagePolicy, set_region


class State(NamedTuple):
    threshold: np.ndarray  # int64 [1]: per cent


class PrefetchAdaptiveTreeIter(PagePolicy):
    """The driver's tree walk with another threshold: subregions more than that full."""

    name: ClassVar[str] = "prefetch_adaptive_tree_iter"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_adaptive_tree_iter.bpf.c"
    threshold: int = 50  # what its loader writes where NVML gives no PCIe rate (-t)

    def state(self, ctx):
        return State(np.array([self.threshold], np.int64))

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        return ENTER_LOOP

    @staticmethod
    def page_prefetch_iter(s, d, block, first, outer, counter, region):
        if counter * 100 > (outer - first) * s.threshold[0]:
            set_region(region, first, outer)
        return 0
