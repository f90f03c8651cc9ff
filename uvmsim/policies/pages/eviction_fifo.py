"""In the order of loading."""

from typing import ClassVar

from uvmsim.policies.pages.base import BYPASS, PagePolicy


class EvictionFifo(PagePolicy):
    """A chunk keeps its place from allocation to eviction."""

    name: ClassVar[str] = "eviction_fifo"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_fifo.bpf.c"

    @staticmethod
    def block_access(s, d, chunk):
        return BYPASS
