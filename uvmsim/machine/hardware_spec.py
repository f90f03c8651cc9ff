"""A machine's TOML file: its keys, and what files of before there were engines mean."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from traces.errors import InputError
from uvmsim.machine.disk import DiskSpec
from uvmsim.machine.engine import EngineSpec
from uvmsim.machine.policy_times import PolicyTimeSpec
from uvmsim.machine.quantities import Bytes, Count, Flops, Rate, Room, Share, Sourced, Time

OLD_ENGINE_KEYS = (
    "dense_launch_ns", "expert_launch_ns", "decision_ns", "cpu_sync_ns", "dense_bytes_per_s",
    "expert_tile_tokens",
)  # fmt: skip
"""The engine's keys that stood among the machine's before there were engines."""


OLD_UVM_KEYS = {
    "page_ns": "entry_ns, an entry of the fault buffer, duplicates included",
    "map_ns": "first_touch_ns, a block's host pages mapped once",
    "replay_ns": "batch_ns, which has the replay in it",
    "burst_pages": "nothing: the kernels' shapes say it",
    "fault_sharing": "nothing: the kernels' shapes say it",
}
"""Constants that the paging driver's table had, and what stands in their place."""


class UvmSpec(BaseModel):
    """The paging driver's constants on a machine; the fields of `UvmCosts`, each with its source."""

    model_config = ConfigDict(extra="forbid")
    sm_count: Sourced[Count]
    ctas_per_sm: Sourced[Count]
    batch_ns: Sourced[Time]
    entry_ns: Sourced[Time]
    first_touch_ns: Sourced[Time]
    evict_ns: Sourced[Time]
    copy_ns: Sourced[Time]
    h2d_bytes_per_s: Sourced[Rate]
    d2h_bytes_per_s: Sourced[Rate]
    duplex: Sourced[bool]
    service_ns: Sourced[Time] | None = None
    push_ns: Sourced[Time] | None = None
    look_entries: Sourced[Count] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_now(cls, data: Any) -> Any:
        """A constant of before is one fault, which names its heir."""
        for key in OLD_UVM_KEYS if isinstance(data, dict) else ():
            if key in data:
                raise ValueError(
                    f"{key} is no longer a constant; in its place: {OLD_UVM_KEYS[key]}"
                )
        return data


class HardwareSpec(BaseModel):
    """A machine's TOML file; the fields of `Hardware`, each with its source."""

    model_config = ConfigDict(extra="forbid")
    name: str
    gpu: str
    summary: str
    engine: EngineSpec
    vram_bytes: Sourced[Bytes]
    memory_bytes_per_s: Sourced[Rate]
    compute_flops: Sourced[Flops]
    h2d_bytes_per_s: Sourced[Rate]
    d2h_bytes_per_s: Sourced[Rate]
    copy_latency_ns: Sourced[Time]
    pageable_h2d_bytes_per_s: Sourced[Rate]
    pageable_d2h_bytes_per_s: Sourced[Rate]
    duplex: Sourced[bool]
    duplex_factor: Sourced[Share]
    zero_copy_bytes_per_s: Sourced[Rate]
    cpu_bytes_per_s: Sourced[Rate]
    pinned_alloc_bytes_per_s: Sourced[Rate] | None = None
    host_bytes: Sourced[Bytes] | None = None
    reserve_bytes: Sourced[Room] | None = None
    peer_bytes_per_s: Sourced[Rate] | None = None
    peer_latency_ns: Sourced[Time] | None = None
    uvm: UvmSpec | None = None
    policy_ns: dict[str, PolicyTimeSpec] | None = None
    disk: DiskSpec | None = None

    @field_validator("engine", mode="before")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        """An engine that could not be read is one fault among the others."""
        if isinstance(value, InputError):
            raise ValueError(str(value))
        return value


OLD_SUMMARY = "from a description without an [engine] table"


def from_old(data: dict[str, Any]) -> dict[str, Any]:
    """A file of before engines had tables of their own, as one of now; others as they are. A whole
    [uvm] table of before cannot be turned into one of now and is left out."""
    uvm = data.get("uvm")
    if isinstance(uvm, dict) and "entry_ns" not in uvm and set(OLD_UVM_KEYS) <= set(uvm):
        note_once(
            f"{data.get('name', 'hardware')}: its [uvm] table is of before fault-buffer entries had "
            "a cost and is left out; `--mechanism uvm` takes one with entry_ns, first_touch_ns and "
            "duplex (`uvmsim hardware rtx5090 --toml` shows it)"
        )
        data = {k: v for k, v in data.items() if k != "uvm"}
    old = [k for k in OLD_ENGINE_KEYS if k in data]
    if "engine" in data or not old:
        return data
    words = {"name": data.get("name", ""), "summary": OLD_SUMMARY}
    rest = {k: v for k, v in data.items() if k not in old}
    return rest | {"engine": words | {k: data[k] for k in old}}


_noted: set[str] = set()


def note_once(text: str) -> None:
    """Said on standard error, since results are on standard output."""
    if text not in _noted:
        _noted.add(text)
        print(f"note: {text}", file=sys.stderr)
