"""A program's own hints: advice, and ranges prefetched to the device or back to the host between
kernels."""

from __future__ import annotations

import numpy as np

from uvmsim.paging.kernels import Kernels
from uvmsim.paging.tables import (
    ACCESSED_BY,
    PREFER_GPU,
    READ_MOSTLY,
    REMOTE_FLAG,
    TO_DEVICE,
    TO_HOST,
)

PREFETCH = "prefetch"
ADVICE = {
    "none": 0,
    PREFETCH: 0,
    "prefer-gpu": PREFER_GPU,
    "prefer-cpu": REMOTE_FLAG,
    "accessed-by": ACCESSED_BY,
    "read-mostly": READ_MOSTLY,
}
"""What a program can say of its managed memory, and the bits of `uvmsim.paging.tables.Pages.advice`."""


def with_prefetch(
    k: Kernels, before: int, first_page: int, last_page: int, to_host: bool = False
) -> Kernels:
    """``k`` with a cudaMemPrefetchAsync of pages [first_page, last_page) in front of kernel number
    ``before``, which waits for it (one stream). It counts for that kernel's step.

    To the device: missing pages come in, victims go. To the host: whole blocks are copied back and
    their frames are free: room made in advance.
    """
    if not 0 <= before < len(k.step):
        raise ValueError(f"there is no kernel {before}: 0 to {len(k.step) - 1}")
    if not 0 <= first_page < last_page:
        raise ValueError(f"pages {first_page} to {last_page} are no range")
    wave = int(k.wave_hi[before - 1]) if before else 0
    touch = int(k.touch_hi[wave - 1]) if wave else 0
    action = k.action if len(k.action) else np.zeros(len(k.step), np.int8)

    def put(x: np.ndarray, at: int, value: int) -> np.ndarray:
        return np.insert(x, at, value)

    wave_hi = put(k.wave_hi, before, wave)
    wave_hi[before:] += 1
    touch_hi = put(k.touch_hi, wave, touch)
    touch_hi[wave:] += 1
    return Kernels(
        step=put(k.step, before, int(k.step[before])),
        compute_ns=put(k.compute_ns, before, 0),
        wave_hi=wave_hi,
        copy_bytes=put(k.copy_bytes, before, 0),
        tenant=put(k.tenant, before, int(k.tenant[before])),
        tail_ns=put(k.tail_ns, before, 0),
        touch_hi=touch_hi,
        burst=put(k.burst, wave, 1),
        fetched=put(k.fetched, wave, 0),
        limit=put(k.limit, wave, 0),
        looks=put(k.looks, wave, 1),
        first=put(k.first, touch, first_page),
        last=put(k.last, touch, last_page),
        action=put(action, before, TO_HOST if to_host else TO_DEVICE),
    )
