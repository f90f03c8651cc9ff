"""How a trace's tokens are put into forward passes: side by side, with drafts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from traces.errors import InputError
from traces.routing import RoutingTrace
from traces.routing.batches import batched
from traces.routing.drafts import Draft, drafted
from uvmsim.core.units import format_ns, parse_time


@dataclass(frozen=True)
class DraftCost:
    """What drafting a token takes, of the GPU's time."""

    share: float = 0.0
    """Of a forward pass of one token with all experts resident."""
    ns: int = 0

    @classmethod
    def parse(cls, value: str | int | float) -> DraftCost:
        """``0.05`` or ``"5%"`` of a forward pass; ``"1.5ms"``. Raises `InputError`."""
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return cls(ns=_time(text))
        if not 0 <= share < float("inf"):
            raise InputError(f"{text}: give 0 or more, as a share of a forward pass or a time")
        return cls(share)

    def __str__(self) -> str:
        if self.ns:
            return format_ns(self.ns)
        return f"{self.share:.3g} of a forward pass" if self.share else "nothing"

    def to_json(self) -> float | str:
        """As it may be given."""
        return f"{self.ns}ns" if self.ns else self.share


def _time(text: str) -> int:
    try:
        return parse_time(text)
    except InputError:
        raise InputError(
            f"{text}: give a share of a forward pass (0.05, 5%) or a time (1.5ms)"
        ) from None


@dataclass(frozen=True)
class Decoding:
    """Sequences side by side, drafts a step, and how those are counted."""

    batch: int = 1
    draft: Draft | None = None
    reject: str = "true"
    cost: DraftCost = field(default_factory=DraftCost)

    @property
    def plain(self) -> bool:
        """Whether the trace stays as it was recorded."""
        return self.batch == 1 and self.draft is None

    def __str__(self) -> str:
        side = "one sequence" if self.batch == 1 else f"{self.batch} sequences side by side"
        if self.draft is None:
            return f"{side}, no drafts"
        d = self.draft
        return f"{side}, {d.tokens} drafts a step, each accepted with {d.rate:g}"

    def to_json(self) -> dict[str, Any]:
        """What a result says of it."""
        if self.draft is None:
            return {"batch": self.batch, "draft": "0"}
        return {
            "batch": self.batch,
            "draft": str(self.draft),
            "draft_reject": self.reject,
            "draft_cost": self.cost.to_json(),
        }

    def of(self, trace: RoutingTrace, seed: int) -> tuple[RoutingTrace, list[str]]:
        """``trace`` decoded so, and what there is to say of it. Raises `InputError`."""
        if self.draft is not None:
            trace = drafted(trace, self.draft, seed=seed, reject=self.reject)
        return batched(trace, self.batch)
