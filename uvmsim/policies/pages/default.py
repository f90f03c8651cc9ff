"""The driver as it comes."""

from typing import ClassVar

from uvmsim.policies.pages.base import PagePolicy


class Default(PagePolicy):
    """No program loaded: the driver's density tree and its own order."""

    name: ClassVar[str] = "default"
    source: ClassVar[str] = (
        "NVIDIA/open-gpu-kernel-modules 575.57.08, uvm_perf_prefetch.c, uvm_pmm_gpu.c"
    )
