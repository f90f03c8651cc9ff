"""A machine's disk as `uvmsim calibrate --disk DIR` measures it: ``[disk.direct]`` and so on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from uvmsim.machine.quantities import Count, Rate, Time

WHOLE = 1 << 40
"""Readahead of a mapped file whose rate was measured with all its faults in it."""


class DiskModeSpec(BaseModel):
    """``[disk.MODE]``: reads of experts in one way (`uvmsim.machine.tier.MODES`). A mapped file's
    ``bytes_per_s`` has its faults in it."""

    model_config = ConfigDict(extra="forbid")
    bytes_per_s: Rate
    latency_ns: Time
    depth: Count = 32
    source: Annotated[str, Field(min_length=1)]


class DiskSpec(BaseModel):
    """``[disk]``."""

    model_config = ConfigDict(extra="forbid")
    direct: DiskModeSpec | None = None
    buffered: DiskModeSpec | None = None
    mmap: DiskModeSpec | None = None

    def of(self, mode: str) -> dict[str, Any] | None:
        """The fields of a `uvmsim.machine.tier.Tier` that is read so; None where nobody measured it."""
        found: DiskModeSpec | None = getattr(self, mode)
        if found is None:
            return None
        made = {k: getattr(found, k) for k in ("bytes_per_s", "latency_ns", "depth")}
        return made | ({"readahead": WHOLE, "fault_ns": 0} if mode == "mmap" else {})

    def to_spec(self) -> dict[str, Any]:
        """As the tables of a TOML file."""
        return self.model_dump(exclude_none=True)
