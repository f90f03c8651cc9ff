"""What llama.cpp says about its own expert cache (``--moe-cache-mib``), read from its log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

_SLOTS = re.compile(r"(\d+) layers, \S+: +(\d+) slots \(")
_COUNTS = re.compile(
    r"llama_moe_cache: ubatch +(<=|>) +8: hits = (\d+), misses = (\d+), "
    r"hit rate = [\d.]+%, uploaded = ([\d.]+) MiB"
)
_LARGE = re.compile(r"llama_moe_cache: large batches: (\d+) experts copied from the cache")


@dataclass(frozen=True)
class MoeCacheCounts:
    """The counters of one context, as it printed them when it was freed."""

    slots: tuple[int, ...] = ()
    """One number a group of layers with equal expert tensors; 0 where a group is not cached."""
    hits: int = 0
    misses: int = 0
    uploaded_mib: float = 0.0
    """Printed with two decimals a line."""
    large_batch_tensors: int = 0
    """Expert tensors that batches past the cache read from it."""
    lines: tuple[str, ...] = ()
    """What the counters were read from."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the lines are left out."""
        return {
            "slots": list(self.slots),
            "hits": self.hits,
            "misses": self.misses,
            "uploaded_mib": self.uploaded_mib,
            "large_batch_tensors": self.large_batch_tensors,
        }


def concerns_moe_cache(line: str) -> bool:
    """Whether a log line belongs to what `read_counts` understands."""
    return bool(_SLOTS.search(line) or _COUNTS.search(line) or _LARGE.search(line))


def read_counts(lines: Iterable[str]) -> MoeCacheCounts | None:
    """The counters in a log; None where it speaks of no expert cache.

    Micro-batches of up to 8 tokens and larger ones, which llama.cpp counts apart, are added up.
    """
    lines = tuple(line.strip() for line in lines if concerns_moe_cache(line))
    if not lines:
        return None
    c = MoeCacheCounts(lines=lines)
    for line in lines:
        if m := _SLOTS.search(line):
            c = replace(c, slots=(*c.slots, int(m[2])))
        elif m := _COUNTS.search(line):
            c = replace(
                c,
                hits=c.hits + int(m[2]),
                misses=c.misses + int(m[3]),
                uploaded_mib=round(c.uploaded_mib + float(m[4]), 2),
            )
        elif m := _LARGE.search(line):
            c = replace(c, large_batch_tensors=c.large_batch_tensors + int(m[1]))
    return c
