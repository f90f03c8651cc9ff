"""What another policy than the engine's would make of the same cache: our best, and Belady's bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.advise.candidate import CACHE
from uvmsim.studies.advise.predict import ENGINE_POLICY, Prediction, Predictor
from uvmsim.studies.advise.search import choices

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


def better_policies(
    model: Model, hw: Hardware, predict: Predictor, ctx: int, kv_type: str, ubatches: Sequence[int]
) -> Better | None:
    """None where no cache fits, or nothing needs one."""
    if not model.moe_layers:
        return None
    found = choices(model, hw, predict, ctx, kv_type, ubatches, kinds=(CACHE,))
    if not found:
        return None
    c = found[0].candidate
    of = {name: predict(c, name) for name in (ENGINE_POLICY, OURS, BOUND)}
    return Better(c.slots, c.cpu_experts, c.cache_mib, of)
