"""The columns of a sweep's dataset: one flat row a cell."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

OK, OUT_OF_MEMORY, ERROR = "ok", "out-of-memory", "error"

_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()

PARAMETERS: tuple[tuple[str, pa.DataType], ...] = (
    ("cell", _S),  # key of the cell: the same parameters and trace give the same key
    ("uvmsim", _S),  # version that made the row
    ("trace", _S),  # path or URL it was read from
    ("trace_sha256", _S),  # of the whole trace's values
    ("trace_model", _S),
    ("limit", _I),  # tokens used; null = all
    ("unit", _S),
    ("model", _S),
    ("quantisation", _S),
    ("expert_bytes", _I),  # largest expert
    ("model_bytes", _I),
    ("experts", _I),  # of all layers together
    ("hardware", _S),
    ("program", _S),  # name of its engine profile
    ("vram_bytes", _I),
    ("link_bytes_per_s", _I),  # host to device, pinned
    ("ram_bytes_per_s", _I),  # the CPU reading weights
    ("reserve_bytes", _I),  # of device memory, for something else; null = none
    ("ctx", _I),  # tokens in the KV cache; null = what the trace needs
    ("kv_type", _S),  # null = the model's own
    ("mechanism", _S),
    ("policy", _S),  # null where the mechanism has none
    ("slots_asked", _S),  # as in the config; null = what VRAM holds
    ("pool", _S),
    ("reset", _S),
    ("write_back", _B),
    ("pageable", _B),
    ("ncmoe", _I),
    ("threshold", _I),  # of uvm's density prefetcher, in %; null elsewhere
    ("seed", _I),
    ("profile", _S),
    ("profile_sha256", _S),
    ("policy_time", _B),  # the policy's own host time was measured and counted; null without a pool
)

OUTCOME: tuple[tuple[str, pa.DataType], ...] = (
    ("status", _S),  # ok, out-of-memory or error
    ("error", _S),  # one line: what is wrong; for out-of-memory what did not fit
    ("needed_bytes", _I),
    ("available_bytes", _I),
)

MEASURES: tuple[tuple[str, pa.DataType], ...] = (
    ("slots", _I),
    ("accesses", _I),
    ("hits", _I),
    ("misses", _I),
    ("hit_rate", _F),
    ("hit_rate_by_layer", pa.list_(_F)),
    ("prefill_hit_rate", _F),
    ("decode_hit_rate", _F),
    ("evictions", _I),
    ("bytes_h2d", _I),
    ("bytes_d2h", _I),
    ("bytes_prefetched", _I),
    ("prefetch_issued", _I),
    ("prefetch_useful", _I),
    ("prefetch_late", _I),
    ("prefetch_wasted", _I),
    ("time_s", _F),
    ("tokens", _I),
    ("tokens_per_s", _F),
    ("prefill_tokens", _I),
    ("prefill_tokens_per_s", _F),
    ("decode_tokens", _I),
    ("decode_tokens_per_s", _F),
    ("ttft_s", _F),
    ("token_latency_ms_p50", _F),
    ("token_latency_ms_p90", _F),
    ("token_latency_ms_p99", _F),
    ("time_split_s_compute", _F),
    ("time_split_s_cpu", _F),
    ("time_split_s_transfer", _F),
    ("time_split_s_queueing", _F),
    ("time_split_s_paging", _F),
    ("link_utilisation", _F),
    ("chunks_in", _I),  # of uvm, as the other columns down to faulted_pages
    ("chunks_out", _I),
    ("services", _I),
    ("services_per_chunk", _F),
    ("bytes_zero_copy", _I),
    ("faulted_pages", _I),
    ("notes", _S),  # joined by "; "
)

COLUMNS = PARAMETERS + OUTCOME + MEASURES
SCHEMA = pa.schema(COLUMNS)


def flatten(measures: dict[str, Any]) -> dict[str, Any]:
    """A run's measures (`Outcome.measures`) as columns: nested names joined by ``_``."""
    flat: dict[str, Any] = {}
    for key, value in measures.items():
        if isinstance(value, dict):
            flat |= {f"{key}_{k}": v for k, v in flatten(value).items()}
        elif value is None:
            continue  # null in its column, or in all of a table's
        elif key == "notes":
            flat[key] = "; ".join(value) or None
        else:
            flat[key] = value
    return flat


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows (plain Python values) as a table of `SCHEMA`; what a row lacks is null."""
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
