"""Routing traces in other formats. Each exporter is one function, listed in `EXPORTERS`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.files.schema import PHASES, routing_schema
from traces.routing import RoutingTrace
from traces.routing.columns import GUESSES, to_batch


def export_routing(t: RoutingTrace, out: str | Path) -> dict[str, Any]:
    """Write ``t`` to ``out``, whose ending names the format.

    Parquet keeps everything; what another format cannot hold is in the returned ``notes``.
    """
    p = Path(out)
    exporter = EXPORTERS.get(p.suffix.lower())
    if exporter is None:
        raise InputError(f"{out}: unknown format; end the name in {', '.join(EXPORTERS)}")
    tmp = p.with_name(f".{p.name}.{os.getpid()}.tmp")
    try:
        notes = exporter(t, tmp)
        tmp.replace(p)
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
    finally:
        tmp.unlink(missing_ok=True)
    return {"out": str(out), "rows": t.n_rows, "bytes": p.stat().st_size, "notes": notes}


def _parquet(t: RoutingTrace, tmp: Path) -> list[str]:
    import pyarrow.parquet as pq

    schema = routing_schema(
        t.top_k,
        t.n_experts,
        weights=t.weights is not None,
        scores=t.scores is not None,
        tokens=t.token is not None,
        times=t.time_ns is not None,
        durations=t.duration_ns is not None,
        predictors=t.predictions,
        drafts=t.draft is not None,
        meta=t.meta,
    )
    state = {b"uvmsim.complete": b"true" if t.complete else b"false"}
    table = pa.Table.from_batches([to_batch(t.columns, schema)])
    table = table.replace_schema_metadata((schema.metadata or {}) | state)
    pq.write_table(table, tmp, compression="zstd")
    return []


def _csv(t: RoutingTrace, tmp: Path) -> list[str]:
    import pyarrow.csv as pacsv

    columns: dict[str, pa.Array] = {n: pa.array(getattr(t, n)) for n in ("seq", "pos", "step")}
    columns["phase"] = pa.DictionaryArray.from_arrays(t.phase.astype(np.int8), list(PHASES)).cast(
        pa.string()
    )
    columns["layer"] = pa.array(t.layer)
    for i in range(t.top_k):
        ids = np.ascontiguousarray(t.experts[:, i])
        columns[f"e{i}"] = pa.array(ids, mask=ids < 0)
    if t.weights is not None:
        for i in range(t.top_k):
            w = np.ascontiguousarray(t.weights[:, i])
            columns[f"w{i}"] = pa.array(w, mask=np.isnan(w))
    if t.token is not None:
        columns["token_id"] = pa.array(t.token)
    pacsv.write_csv(pa.table(columns), tmp)
    return _lost(t, "scores", "time_ns", "duration_ns", "draft")


def _jsonl(t: RoutingTrace, tmp: Path) -> list[str]:
    d = t.dense
    known = np.all(d.ids >= 0, axis=2)
    with tmp.open("w", encoding="utf-8") as f:
        for i in range(len(d.seq)):
            line: dict[str, Any] = {
                "seq": int(d.seq[i]),
                "pos": int(d.pos[i]),
                "step": int(d.step[i]),
                "phase": PHASES[d.phase[i]],
                "layers": _rows(d.ids[i], known[i]),
            }
            if d.weights is not None:
                line["weights"] = _rows(d.weights[i], known[i])
            f.write(json.dumps(line) + "\n")
    return _lost(t, "scores", "time_ns", "duration_ns", "draft", "token") + _layer_note(t)


def _rows(values: np.ndarray, known: np.ndarray) -> list[Any]:
    return [row if ok else None for row, ok in zip(values.tolist(), known, strict=True)]


def _npz(t: RoutingTrace, tmp: Path) -> list[str]:
    d = t.dense.by_sequence()
    arrays = {
        "expert_ids": d.ids,
        "token_pos": d.pos,
        "seq_offsets": d.sequence_starts(),
        "layers": np.asarray(d.layers),
    }
    if d.weights is not None:
        arrays["weights"] = d.weights
    with tmp.open("wb") as f:
        np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
    lost = _lost(t, "scores", "time_ns", "duration_ns", "draft", "token")
    return ["NPZ holds no steps and phases", *lost]


def _lost(t: RoutingTrace, *names: str) -> list[str]:
    gone = [n for n in (*names, *GUESSES) if n in t.columns]
    return [f"left out: {', '.join(gone)}"] if gone else []


def _layer_note(t: RoutingTrace) -> list[str]:
    if t.layers == tuple(range(len(t.layers))):
        return []
    return [f"layers are counted from 0 in this format; here they are {t.layers[0]} and up"]


EXPORTERS: dict[str, Callable[[RoutingTrace, Path], list[str]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".npz": _npz,
}
