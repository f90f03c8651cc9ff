"""Routing traces in memory, and opening them from files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.files.ipc import content_hash, read_ipc, require_file
from traces.files.schema import PREDICTORS, RoutingMeta, parse_routing_meta, routing_schema
from traces.routing.bounds import check_meta, check_values
from traces.routing.by_token import DenseRouting, dense_routing, token_index
from traces.routing.columns import DTYPES, LISTS, REQUIRED, to_numpy
from traces.routing.rows import Prediction
from traces.routing.writer import RoutingWriter

__all__ = ["RoutingTrace", "RoutingWriter", "open_routing"]


class RoutingTrace:
    """A routing trace in memory, or mapped from a file. Arrays are read-only; do not change them.

    ``seq``, ``pos``, ``step`` (int32), ``phase`` (uint8: 0 prefill, 1 decode), ``layer`` (int16):
    [rows]. ``experts``: int16 [rows, k], -1 in rows whose routing is missing. ``weights``: float32
    [rows, k], ``scores``: float32 [rows, n_experts], NaN where missing; ``token``: int32 [rows],
    ``time_ns``, ``duration_ns``: int64 [rows];
    ``draft``: uint8 [rows] (`traces.files.schema.REJECTED` and others); each None where the trace has
    no such column.
    ``predictions``: by name (`traces.files.schema.PREDICTORS`) the guesses that the trace has, often
    none.
    """

    def __init__(
        self,
        columns: dict[str, np.ndarray],
        meta: RoutingMeta,
        *,
        path: Path | None = None,
        complete: bool = True,
        recorded_sha256: str | None = None,
    ) -> None:
        self.columns, self.meta, self.path, self.complete = columns, meta, path, complete
        self.recorded_sha256 = recorded_sha256
        """The hash the writer stored, to compare with `sha256`; None where it stored none."""
        self.seq, self.pos, self.step = columns["seq"], columns["pos"], columns["step"]
        self.phase, self.layer, self.experts = (
            columns["phase"],
            columns["layer"],
            columns["experts"],
        )
        self.weights, self.scores = columns.get("weights"), columns.get("scores")
        self.token, self.time_ns = columns.get("token"), columns.get("time_ns")
        self.duration_ns, self.draft = columns.get("duration_ns"), columns.get("draft")
        self.predictions = {
            p: Prediction(columns[f"{p}_ids"], columns[f"{p}_scores"])
            for p in PREDICTORS
            if f"{p}_ids" in columns and f"{p}_scores" in columns
        }

    def __repr__(self) -> str:
        m = self.meta.model
        where = self.path.name if self.path else "in memory"
        cut = "" if self.complete else ", incomplete"
        return (
            f"<RoutingTrace {where}: {m.name}, {self.n_rows:,} rows of {len(m.moe_layers)} layers x "
            f"{m.n_experts} experts, top-{m.top_k}{cut}>"
        )

    @property
    def n_rows(self) -> int:
        return len(self.seq)

    @property
    def n_experts(self) -> int:
        return self.meta.model.n_experts

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[1])

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Layer ids that have rows, ascending."""
        return tuple(int(x) for x in np.unique(self.layer))

    @cached_property
    def token_index(self) -> np.ndarray:
        """int64 [rows]: which token (a position of a sequence in a step) a row belongs to,
        numbered from 0 in order of first appearance."""
        return token_index(self.step, self.seq, self.pos, self.layer)

    @cached_property
    def n_tokens(self) -> int:
        return int(self.token_index.max()) + 1 if self.n_rows else 0

    @cached_property
    def n_steps(self) -> int:
        if not self.n_rows:
            return 0
        change = np.diff(self.step)
        return (
            int(np.count_nonzero(change)) + 1 if (change >= 0).all() else len(np.unique(self.step))
        )

    @property
    def capabilities(self) -> frozenset[str]:
        """What a policy may ask of this trace."""
        has = {
            "router_scores": self.scores is not None,
            "router_guesses": "next1" in self.predictions,
            "router_weights": self.weights is not None,
            "ranked_ids": self.meta.ids_order == "ranked",
            "token_ids": self.token is not None,
        }
        return frozenset(k for k, v in has.items() if v)

    @cached_property
    def sha256(self) -> str:
        """Hash of the columns' values; the same for every file that holds the same rows."""
        return content_hash((k, [v]) for k, v in self.columns.items())

    @cached_property
    def dense(self) -> DenseRouting:
        """The same routing as one array [tokens, layers, k]."""
        return dense_routing(self)

    def select(self, tokens: slice) -> RoutingTrace:
        """The rows of some tokens (a slice of the numbering of `token_index`), in memory."""
        wanted = np.zeros(self.n_tokens, bool)
        wanted[tokens] = True
        return self.take(np.flatnonzero(wanted[self.token_index]))

    def head(self, n_tokens: int) -> RoutingTrace:
        """The first ``n_tokens`` tokens."""
        return self.select(slice(0, max(n_tokens, 0)))

    def take(self, rows: np.ndarray) -> RoutingTrace:
        """Some rows (indices or mask), in memory."""
        columns = {k: v[rows] for k, v in self.columns.items()}
        return RoutingTrace(columns, self.meta, path=self.path, complete=self.complete)

    def save(self, path: str | Path, meta: RoutingMeta | None = None) -> None:
        """Write to a file (complete, one batch)."""
        writer = RoutingWriter(
            path,
            meta or self.meta,
            weights=self.weights is not None,
            scores=self.scores is not None,
            tokens=self.token is not None,
            times=self.time_ns is not None,
            durations=self.duration_ns is not None,
            predictors=self.predictions,
            drafts=self.draft is not None,
            batch_rows=self.n_rows + 1,
        )
        try:
            writer.append(**self.columns)
            writer.close()
        except BaseException:
            writer.discard()
            raise


def open_routing(path: str | Path, *, checked: bool = True) -> RoutingTrace:
    """Open a routing trace: Arrow IPC (memory-mapped) or Parquet, whole or cut off.

    Raises `InputError` where the file is missing, not a routing trace, holds no row, or holds what
    no trace can (`traces.routing.bounds`). ``checked=False`` lets impossible rows pass: it is for
    `traces.routing.check`, which lists them; nothing else may be given such a trace.
    """
    p = Path(path)
    require_file(p)
    with p.open("rb") as f:
        parquet = f.read(4) == b"PAR1"
    if parquet:
        batches, schema, mark = _read_parquet(p)
    else:
        content = read_ipc(p)
        batches, schema, mark = content.batches, content.schema, content.trailer or {}
    try:
        meta = parse_routing_meta(schema, str(p))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise InputError(
            f"{p}: its metadata is damaged ({type(e).__name__}); copy or record it again"
        ) from None
    check_meta(meta, p)
    _check_columns(schema, meta, p)
    if not batches:
        raise InputError(f"{p}: holds no rows (stopped before the first flush?); record it again")
    columns = {}
    for name in (n for n in schema.names if n in DTYPES):
        if name not in LISTS and any(b.column(name).null_count for b in batches):
            raise InputError(f"{p}: column {name!r} has empty values; make the trace again")
        chunks = [to_numpy(b, name) for b in batches]
        columns[name] = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    trace = RoutingTrace(
        columns,
        meta,
        path=p,
        complete=bool(mark.get("complete")),
        recorded_sha256=mark.get("sha256"),
    )
    if checked:
        check_values(trace)
    return trace


def _check_columns(schema: pa.Schema, meta: RoutingMeta, p: Path) -> None:
    """Raise `InputError` unless the columns have the types of `traces.files.schema`."""
    m = meta.model
    wanted = routing_schema(
        m.top_k, m.n_experts, weights=True, scores=True, tokens=True, times=True, durations=True,
        predictors=PREDICTORS, drafts=True,
    )  # fmt: skip
    for name in PREDICTORS:
        pair = [f"{name}_{kind}" for kind in ("ids", "scores")]
        absent = [c for c in pair if c not in schema.names]
        if len(absent) == 1:
            raise InputError(
                f"{p}: column {absent[0]!r} is missing beside its other half; make the trace again"
            )
    for field in wanted:
        if field.name not in schema.names:
            if field.name in REQUIRED:
                raise InputError(f"{p}: column {field.name!r} is missing; make the trace again")
            continue
        found = schema.field(field.name).type
        if not _same_type(found, field.type):
            raise InputError(
                f"{p}: column {field.name!r} is {found}, not {field.type}; make the trace again"
            )


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for the names of list items, which Parquet changes."""
    if pa.types.is_fixed_size_list(wanted):
        return (
            pa.types.is_fixed_size_list(found)
            and found.list_size == wanted.list_size
            and found.value_type == wanted.value_type
        )
    return bool(found == wanted)


def _read_parquet(p: Path) -> tuple[list[pa.RecordBatch], pa.Schema, dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(p)
    except (pa.ArrowException, OSError) as e:
        why = str(e).splitlines()[0]
        raise InputError(f"{p}: damaged Parquet file ({why}); export or copy it again") from None
    state = (table.schema.metadata or {}).get(b"uvmsim.complete", b"true")
    return table.combine_chunks().to_batches(), table.schema, {"complete": state == b"true"}
