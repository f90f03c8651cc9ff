"""Whole blocks for all, as long as the favoured process does not fault too often."""

from typing import ClassVar, NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    MAX_FIRST,
    MAX_OUTER,
    NOW_NS,
    PagePolicy,
    set_region,
    whole,
)

SECOND_NS = 1_000_000_000
HIGH = 0
START_NS, FAULTS, INTEGRAL = 0, 1, 2
TARGET, KI, DECAY, PERIOD_NS = 0, 1, 2, 3
LARGE = 1 << 31


class State(NamedTuple):
    h: np.ndarray  # int64 [3]: when this period began, faults of process 0 in it, integral
    p: np.ndarray  # int64 [4]: target, gain, decay, period


class PrefetchAlwaysMaxQos(PagePolicy):
    """prefetch_always_max, but for others while the favoured process faults above its target."""

    name: ClassVar[str] = "prefetch_always_max_qos"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/prefetch_always_max_qos.bpf.c (2026)"
    target: int = 200  # faults a second of the process of high priority
    ki: int = 10
    decay: int = 2  # the integral loses 1/2^decay a period
    period_ms: int = 100

    def state(self, ctx):
        target, ki = whole(self, "target", 0, LARGE), whole(self, "ki", 0, 1 << 20)
        decay, period = whole(self, "decay", 0, 62), whole(self, "period_ms", 1, LARGE)
        p = np.array([target, ki, decay, 1_000_000 * period], np.int64)
        return State(np.zeros(3, np.int64), p)

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        h, p = s.h, s.p
        past = d.n[NOW_NS] - h[START_NS]
        if past >= p[PERIOD_NS]:
            error = h[FAULTS] * SECOND_NS // past - p[TARGET]
            left = h[INTEGRAL] - (h[INTEGRAL] >> p[DECAY])
            h[INTEGRAL] = max(left + p[KI] * error, 0)
            h[START_NS], h[FAULTS] = d.n[NOW_NS], 0
        if d.tenant_of[block] == HIGH:
            h[FAULTS] += 1
        elif h[INTEGRAL] > 0:
            return DEFAULT
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        return BYPASS
