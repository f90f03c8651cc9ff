"""The newest goes first."""

from typing import ClassVar

from uvmsim.policies.pages.base import BYPASS, PagePolicy, move_head, move_tail


class EvictionMru(PagePolicy):
    """New chunks go to the tail, each one served again to the head."""

    name: ClassVar[str] = "eviction_mru"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/eviction_mru.bpf.c"

    @staticmethod
    def block_activate(s, d, chunk):
        move_tail(d, chunk)
        return BYPASS

    @staticmethod
    def block_access(s, d, chunk):
        move_head(d, chunk)
        return BYPASS
