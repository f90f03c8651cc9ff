"""What the driver asks a program, as `uvmsim.policies.pages.base.PagePolicy` has it. These do what
the driver does without one; `uvmsim.core.bind` puts a policy's own in their place and sets the
switches."""

from __future__ import annotations

from typing import Any

import numpy as np

from uvmsim.core.read_only import read_only
from uvmsim.policies.base import Number
from uvmsim.policies.pages.base import DEFAULT, Driver

HAS_PREFETCH = False
"""A policy has prefetch hooks of its own, and so on."""
HAS_ORDER = False
MIGRATES = False
WORK_OF_ORDER = False
"""What runs after a batch belongs to the policy that orders evictions."""
RECORDS = False
"""The program is written, for a readable clock and for export."""


def page_prefetch(s: Any, d: Driver, block: Number, page: Number, region: np.ndarray) -> Number:
    return DEFAULT


def page_prefetch_iter(
    s: Any,
    d: Driver,
    block: Number,
    first: Number,
    outer: Number,
    counter: Number,
    region: np.ndarray,
) -> Number:
    return 0


def block_activate(s: Any, d: Driver, chunk: Number) -> Number:
    return 0


def block_access(s: Any, d: Driver, chunk: Number) -> Number:
    return DEFAULT


def evict_prepare(s: Any, d: Driver) -> Number:
    return 0


def after_batch(s: Any, d: Driver) -> Number:
    return 0


def seen_by_hooks(d: Driver) -> Driver:
    """The driver's tables as hooks get them: to read. The contract's actions write on their behalf."""
    return Driver(
        read_only(d.resident), read_only(d.n_resident), read_only(d.n_pages),
        read_only(d.chunk_of), read_only(d.block_of), read_only(d.next), read_only(d.prev),
        read_only(d.tenant_of), read_only(d.accessed), read_only(d.wanted), read_only(d.n),
    )  # fmt: skip
