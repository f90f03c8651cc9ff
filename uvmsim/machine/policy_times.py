"""What policies' hooks cost a machine's host: the ``[policy_ns]`` table of its description.

`uvmsim calibrate` measures it on made-up routing of gpt-oss-20b's shape
(`replay.calibrate.policy_rows`); presets have none, and there policies decide in no time. The time
model adds it to each layer's decision (`uvmsim.experts.hook_time`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from uvmsim.machine.quantities import Time, shown


class PolicyTimeSpec(BaseModel):
    """``[policy_ns.NAME]``: host time of a policy's hooks beyond LRU's, which `decision_ns` holds; ns a
    token of one layer's event, with the usual parameters."""

    model_config = ConfigDict(extra="forbid")
    decode_ns: Time
    prefill_ns: Time
    source: Annotated[str, Field(min_length=1)]


PolicyTimes = dict[str, PolicyTimeSpec]
"""By the policy's name, eviction policies and prefetchers alike."""
PHASES = ("decode_ns", "prefill_ns")


def rows(times: Mapping[str, PolicyTimeSpec] | None) -> list[tuple[str, str, str]]:
    """``(policy_ns.NAME.PHASE, value as people write it, source)`` of all."""
    return [
        (f"policy_ns.{name}.{k}", shown(k, getattr(x, k)), x.source)
        for name, x in (times or {}).items()
        for k in PHASES
    ]


def plain(times: Mapping[str, PolicyTimeSpec], sources: bool = True) -> dict[str, dict[str, Any]]:
    """Plain JSON types."""
    without = set() if sources else {"source"}
    return {name: x.model_dump(exclude=without) for name, x in times.items()}
