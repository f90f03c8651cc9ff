"""The writer of routing traces, whose files survive a kill."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from traces.files.ipc import IpcWriter, content_hash
from traces.files.schema import RoutingMeta, guess_width, routing_schema
from traces.files.writer import TraceWriter
from traces.routing.columns import (
    DTYPES,
    GUESSES,
    LISTS,
    OPTIONAL,
    hash_input,
    missing_value,
    to_batch,
)


class RoutingWriter(TraceWriter):
    """Write a routing trace; a context manager, see `TraceWriter`.

    Rows are given in execution order (see `traces.files.schema`). `open_routing` reads what is written,
    a ``PATH.partial`` that was left behind too.
    """

    def __init__(
        self,
        path: str | Path,
        meta: RoutingMeta,
        *,
        weights: bool = False,
        scores: bool = False,
        tokens: bool = False,
        times: bool = False,
        durations: bool = False,
        predictors: Collection[str] = (),
        drafts: bool = False,
        batch_rows: int = 65536,
    ) -> None:
        k, n = meta.model.top_k, meta.model.n_experts
        self._schema = routing_schema(
            k, n, weights=weights, scores=scores, tokens=tokens, times=times,
            durations=durations, predictors=predictors, drafts=drafts, meta=meta,
        )  # fmt: skip
        width = {"experts": k, "weights": k, "scores": n}
        width |= dict.fromkeys(GUESSES, guess_width(k, n))
        self._columns = {
            name: np.empty((batch_rows, width[name]) if name in width else batch_rows, DTYPES[name])
            for name in self._schema.names
        }
        self._size, self._used = batch_rows, 0
        self._out = IpcWriter(path, self._schema, lambda b: content_hash(hash_input(b)))

    def append(
        self,
        *,
        seq: Any,
        pos: Any,
        step: Any,
        phase: Any,
        layer: Any,
        experts: Any,
        weights: Any = None,
        scores: Any = None,
        token: Any = None,
        time_ns: Any = None,
        duration_ns: Any = None,
        draft: Any = None,
        **guesses: Any,
    ) -> None:
        """Append n rows.

        ``experts`` is an integer array [n, k]; a row of -1 means that the routing is not known.
        ``weights`` is [n, k], ``scores`` [n, n_experts], the rest [n]; scalars are repeated.
        ``guesses``: the columns of `PREDICTORS`, [n, `guess_width`] each, e.g. ``pre_ids`` and
        ``pre_scores``; -1 and NaN where there is none.
        Raises `ValueError` where shapes or columns do not fit what the writer was made for.
        """
        if not guesses.keys() <= set(GUESSES):
            raise ValueError(f"no column {sorted(guesses.keys() - set(GUESSES))[0]!r} in traces")
        ids = np.asarray(experts)
        if ids.ndim != 2 or ids.shape[1] != self._columns["experts"].shape[1]:
            raise ValueError(f"experts has shape {ids.shape}, not [rows, {self._schema_k}]")
        n = len(ids)
        values = {
            "seq": seq,
            "pos": pos,
            "step": step,
            "phase": phase,
            "layer": layer,
            "experts": ids,
            "weights": weights,
            "scores": scores,
            "token": token,
            "time_ns": time_ns,
            "duration_ns": duration_ns,
            "draft": draft,
        } | guesses
        for name in OPTIONAL:
            if values.get(name) is None:
                if name in self._columns and name not in LISTS:
                    raise ValueError(f"{name} missing: the writer was made with that column")
            elif name not in self._columns:
                raise ValueError(f"{name} given to a writer that was made without that column")
        vectors = {}
        for name in self._columns:
            value = values.get(name)
            if value is None:  # such a row becomes null
                values[name] = missing_value(name)
            elif not isinstance(value, (int, np.generic)):
                vectors[name] = value = np.asarray(value)
                if value.ndim and len(value) != n:
                    raise ValueError(f"{name} has {len(value)} rows, experts {n}")
        done = 0
        while done < n:
            take = min(n - done, self._size - self._used)
            here, there = slice(self._used, self._used + take), slice(done, done + take)
            for name, column in self._columns.items():
                vector = vectors.get(name)
                if vector is None or not vector.ndim:
                    column[here] = values[name]
                else:
                    column[here] = vector[there]
            self._used += take
            done += take
            if self._used == self._size:
                self.flush()

    @property
    def _schema_k(self) -> int:
        return int(self._columns["experts"].shape[1])

    def _write_gathered(self, n: int) -> None:
        self._out.write(to_batch({k: v[:n] for k, v in self._columns.items()}, self._schema))
