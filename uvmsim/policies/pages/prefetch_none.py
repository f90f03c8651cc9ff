"""Only what faulted."""

from typing import ClassVar

from uvmsim.policies.pages.base import BYPASS, PagePolicy


class PrefetchNone(PagePolicy):
    """Only the faulted 4 KiB pages migrate, without growth to 64 KiB."""

    name: ClassVar[str] = "prefetch_none"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_none.bpf.c"

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        return BYPASS
