"""The two record types as Arrow schemas, with versioned metadata.

Routing: one row per (token, layer), in execution order: steps ascend; within a step layers ascend
in the order they ran; within a (step, layer) the tokens keep the order of the micro-batch. A *step*
is one forward pass of one micro-batch. So every (step, layer) is one contiguous run of rows, which
is the unit the simulator serves.

A row whose routing is not known (llama.cpp drops the rows of a prefill's last layer that need no
logits) has a null ``experts`` value: missing, never invented.

Faults: one row per event of the driver, in time order.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from traces.errors import InputError
from traces.models.info import ModelInfo

ROUTING_SCHEMA = "uvmsim.routing"
ROUTING_VERSION = 3
"""2 added the optional columns ``duration_ns`` and those of `PREDICTORS`; files without them are
still written as 1. 3 added ``draft``. (``time_ns`` was there from the start. A reader leaves columns
that it does not know out of its hash, and would call the file damaged: hence the number.)"""
FAULTS_SCHEMA = "uvmsim.faults"
FAULTS_VERSION = 2
"""2 added ``chunk``, ``list`` and the optional columns; files of version 1 open as before."""
META_KEY = b"uvmsim"

PREFILL, DECODE = 0, 1
PHASES = ("prefill", "decode")

NO_DRAFT, ACCEPTED, REJECTED = 0, 1, 2
"""The column ``draft``: a token that was certain when its step began, a drafted one that the step kept,
and one that it computed for nothing (the token of its position comes in a later step)."""

PREDICTORS = {
    "next1": "the router of the next MoE layer (norm, gate and bias of that layer) on the residual "
    "stream that this layer's experts read",
    "next2": "the router of the MoE layer after the next on the same residual stream",
    "pre": "this layer's router (its norm, gate and bias) on the residual stream that this layer's "
    "attention reads",
}
"""Guesses of a layer's experts from a router run too early. Each has two columns, ``<name>_ids`` and
``<name>_scores``: the best `guess_width` experts, best first, and what they were ranked by. ``next1``
and ``next2`` stand in the row of the layer that makes the guess, not of the one it is about."""


def guess_width(k: int, n_experts: int) -> int:
    """Experts in a row of a predictor's columns: 2k, or all where there are fewer."""
    return min(2 * k, n_experts)


FAULT_KINDS = (
    "gpu_fault",
    "cpu_fault",
    "migration_in",
    "migration_out",
    "prefetch",
    "eviction",
    "chunk_activate",
    "chunk_access",
    "eviction_prepare",
    "thrashing",
    "throttling",
    "remote_map",
    "replay",
)


@dataclass(frozen=True)
class RoutingMeta:
    """What a routing trace says about itself, stored as JSON in the Arrow schema."""

    model: ModelInfo
    ids_order: str = "unknown"
    """``ranked`` (first id = strongest), ``sorted`` (ascending ids, rank lost) or ``unknown``."""
    tool: str = ""
    """Program and version that made the file."""
    command: str = ""
    """The command line that made it, every parameter resolved."""
    prompt_source: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    """Host, CPU, GPU, library versions: what is needed to make the trace again."""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self, version: int = 1) -> bytes:
        d = asdict(self) | {"schema": ROUTING_SCHEMA, "version": version}
        return json.dumps(d, sort_keys=True).encode()


def routing_schema(
    k: int,
    n_experts: int,
    *,
    weights: bool,
    scores: bool,
    tokens: bool,
    times: bool,
    durations: bool = False,
    predictors: Collection[str] = (),
    drafts: bool = False,
    meta: RoutingMeta | None = None,
) -> pa.Schema:
    """Arrow schema of a routing trace with the optional columns asked for.

    ``k`` is the number of ids a row, ``n_experts`` the length of a score row; ``predictors``: those
    of `PREDICTORS` whose two columns the trace shall have. ``meta`` is stored with the version that
    the columns need.
    """
    cols = [
        pa.field("seq", pa.int32(), False),
        pa.field("pos", pa.int32(), False),
        pa.field("step", pa.int32(), False),
        pa.field("phase", pa.uint8(), False),
        pa.field("layer", pa.int16(), False),
        pa.field("experts", pa.list_(pa.int16(), k), True),
    ]
    if weights:
        cols.append(pa.field("weights", pa.list_(pa.float32(), k), True))
    if scores:
        cols.append(pa.field("scores", pa.list_(pa.float32(), n_experts), True))
    if tokens:
        cols.append(pa.field("token", pa.int32(), False))
    if times:
        cols.append(pa.field("time_ns", pa.int64(), False))
    if durations:
        cols.append(pa.field("duration_ns", pa.int64(), False))
    width = guess_width(k, n_experts)
    for name in (p for p in PREDICTORS if p in predictors):
        cols.append(pa.field(f"{name}_ids", pa.list_(pa.int16(), width), True))
        cols.append(pa.field(f"{name}_scores", pa.list_(pa.float16(), width), True))
    if drafts:
        cols.append(pa.field("draft", pa.uint8(), False))
    version = ROUTING_VERSION if drafts else 2 if durations or predictors else 1
    return pa.schema(cols, metadata={META_KEY: meta.to_bytes(version)} if meta else None)


def parse_routing_meta(schema: pa.Schema, where: str) -> RoutingMeta:
    """The metadata of a routing trace; raises `InputError` where it is absent or too new."""
    raw = (schema.metadata or {}).get(META_KEY)
    if raw is None:
        raise InputError(
            f"{where}: not a uvmsim trace (an Arrow file without our metadata); "
            "bring it in with `uvmsim trace import`"
        )
    d = json.loads(raw)
    if d.get("schema") != ROUTING_SCHEMA:
        raise InputError(f"{where}: holds {d.get('schema')!r} records, not routing")
    if d.get("version", 0) > ROUTING_VERSION:
        raise InputError(
            f"{where}: written by a newer uvmsim (routing schema {d['version']}, this one reads "
            f"up to {ROUTING_VERSION}); update uvmsim"
        )
    names = ("ids_order", "tool", "command", "prompt_source", "machine", "extra")
    return RoutingMeta(model=ModelInfo.from_json(d["model"]), **{k: d[k] for k in names if k in d})


FAULT_COLUMNS: dict[str, Any] = {
    "time_ns": pa.int64(),
    "kind": pa.dictionary(pa.int8(), pa.string()),
    "address": pa.uint64(),
    "bytes": pa.int64(),
    "duration_ns": pa.int64(),
    "count": pa.int32(),
    "access": pa.dictionary(pa.int8(), pa.string()),
    "cause": pa.dictionary(pa.int8(), pa.string()),
    "process": pa.int32(),
    "va_block": pa.uint64(),
    "chunk": pa.uint64(),
    "list": pa.uint64(),
}
"""Columns of every fault trace; all but the first two may have missing values."""

FAULT_OPTIONAL: dict[str, Any] = {
    "device": pa.int32(),
    "cpu": pa.int32(),
    "thread": pa.int32(),
    "va_space": pa.uint64(),
    "unused_list": pa.uint64(),
    "block_pointer": pa.uint64(),
    "faulted_first": pa.int32(),
    "faulted_outer": pa.int32(),
    "max_first": pa.int32(),
    "max_outer": pa.int32(),
    "tree_offset": pa.int32(),
    "leaf_count": pa.int32(),
    "level_count": pa.int32(),
    "pages_accessed": pa.int32(),
    "batch": pa.int64(),
    "client": pa.int32(),
    "gpu_time_ns": pa.int64(),
}
"""Columns that only some tracers know; a file has those its writer asked for."""


def faults_schema(meta: dict[str, Any] | None = None, optional: Iterable[str] = ()) -> pa.Schema:
    """Arrow schema of a fault trace: one event a row, times in ns, addresses in bytes.

    ``optional``: names of `FAULT_OPTIONAL` that the trace shall have besides `FAULT_COLUMNS`.
    """
    asked = set(optional)
    if not asked <= FAULT_OPTIONAL.keys():
        raise ValueError(f"no column {sorted(asked - FAULT_OPTIONAL.keys())[0]!r} in fault traces")
    md = (meta or {}) | {"schema": FAULTS_SCHEMA, "version": FAULTS_VERSION}
    columns = FAULT_COLUMNS | {k: v for k, v in FAULT_OPTIONAL.items() if k in asked}
    return pa.schema(
        [pa.field(k, v, k not in ("time_ns", "kind")) for k, v in columns.items()],
        metadata={META_KEY: json.dumps(md, sort_keys=True).encode()},
    )
