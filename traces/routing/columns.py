"""Columns of a routing trace, as NumPy arrays and as Arrow record batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from traces.files.schema import PREDICTORS

GUESSES = tuple(f"{p}_{kind}" for p in PREDICTORS for kind in ("ids", "scores"))
"""The columns of the predictors."""
DTYPES = {
    "seq": np.int32,
    "pos": np.int32,
    "step": np.int32,
    "phase": np.uint8,
    "layer": np.int16,
    "experts": np.int16,
    "weights": np.float32,
    "scores": np.float32,
    "token": np.int32,
    "time_ns": np.int64,
    "duration_ns": np.int64,
    "draft": np.uint8,
} | {name: np.int16 if name.endswith("_ids") else np.float16 for name in GUESSES}
LISTS = ("experts", "weights", "scores", *GUESSES)
OPTIONAL = ("weights", "scores", "token", "time_ns", "duration_ns", "draft", *GUESSES)
REQUIRED = ("seq", "pos", "step", "phase", "layer", "experts")


def missing_value(name: str) -> float:
    """What stands in a list column where nothing is known: -1 for ids, NaN for numbers."""
    return -1 if np.issubdtype(DTYPES[name], np.integer) else np.nan


def to_batch(columns: dict[str, np.ndarray], schema: pa.Schema) -> pa.RecordBatch:
    """Columns as one record batch; rows of -1 (ids) or NaN (weights, scores) become null."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if field.name not in LISTS:
            arrays.append(pa.array(values, field.type))
            continue
        missing = np.isnan(values) if values.dtype.kind == "f" else values == -1
        mask = missing.all(axis=1)
        arrays.append(
            pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)),
                type=field.type,
                mask=pa.array(mask) if mask.any() else None,
            )
        )
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def to_numpy(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column as NumPy: a view where the file allows it, missing list rows -1 or NaN."""
    column = batch.column(name)
    if name not in LISTS:
        return column.to_numpy()
    k = column.type.list_size
    flat = column.values.slice(column.offset * k, len(column) * k)
    fill = missing_value(name)
    if flat.null_count:
        flat = flat.fill_null(fill)
    values = flat.to_numpy(zero_copy_only=False).astype(DTYPES[name], copy=False).reshape(-1, k)
    if column.null_count:
        null = column.is_null().to_numpy(zero_copy_only=False)
        behind = values[null]
        # What lies behind a null is up to the writer; ours keeps the mark there, so no copy.
        if not (behind == -1 if fill == -1 else np.isnan(behind)).all():
            values = values.copy()
            values[null] = fill
    return values


def hash_input(
    batches: Sequence[pa.RecordBatch],
) -> Iterable[tuple[str, Sequence[np.ndarray]]]:
    names = batches[0].schema.names if batches else []
    return ((n, [to_numpy(b, n) for b in batches]) for n in names)
