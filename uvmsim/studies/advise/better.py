"""What another policy than the engine's would make of the same cache: our best, and Belady's bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uvmsim.studies.advise.candidate import CACHE
from uvmsim.studies.advise.predict import ENGINE_POLICY, Prediction
from uvmsim.studies.advise.search import Choice, Search

OURS, BOUND = "layer-lru", "belady"
"""The built-in policy that did best on recorded routing (README.md), and the fewest misses possible."""


@dataclass(frozen=True)
class Better:
    """Policies in the cache of the best configuration that has one."""

    slots: int
    cpu_experts: int
    cache_mib: int
    of: dict[str, Prediction]
    """By policy, the engine's own first."""

    def to_json(self) -> dict[str, Any]:
        return {
            "slots": self.slots, "cpu_experts": self.cpu_experts, "cache_mib": self.cache_mib,
            "policies": {k: v.to_json() for k, v in self.of.items()},
        }  # fmt: skip


def better_policies(search: Search, known: Sequence[Choice]) -> Better | None:
    """None where no cache fits, or nothing needs one. ``known``: what was found already."""
    if not search.what.model.moe_layers:
        return None
    caches = [c for c in known if c.candidate.kind == CACHE]
    found = caches or search.first(1, kinds=(CACHE,))
    if not found:
        return None
    c = found[0].candidate
    of = {name: search.predict(c, name) for name in (ENGINE_POLICY, OURS, BOUND)}
    return Better(sum(c.slots), c.cpu_experts, c.cache_mib, of)
