"""Rows of a file, checked as whole arrays and put together to a trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from traces.errors import InputError
from traces.requests.formats import Columns
from traces.requests.trace import MAX_TOKENS, Ints64, RequestTrace

NS = {"s": 1e9, "ms": 1e6}
MAX_NS = 1 << 62
"""146 years: arithmetic on two such times stays in int64."""


@dataclass
class Chunk:
    """Some rows in file order. What is wrong with a row, `collect` says."""

    rows: Ints64
    """What a row is called: its number in the file, from 1."""
    prompt: NDArray[np.float64]
    output: NDArray[np.float64]
    arrival: NDArray[np.float64] | Ints64 | None = None
    """In the format's unit: float64 for s and ms, int64 ns for dates and ns."""
    after: Ints64 | None = None
    """ns after ``arrival``, by which the file is sorted, at which requests go out; None: at once."""
    blocks: Ints64 = field(default_factory=lambda: np.zeros(0, np.int64))
    n_blocks: Ints64 | None = None


def cell(path: Path, row: int, name: str, value: object, why: str) -> InputError:
    """The error of one value of a file."""
    if isinstance(value, (list, dict)):  # whose text may be as long and as deep as it likes
        shown = f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    else:
        shown = repr(value)
    if len(shown) > 40:
        shown = shown[:36] + "...'" if isinstance(value, str) else shown[:37] + "..."
    return InputError(f"{path}: row {row}: {name} is {shown}: {why}; mend or remove the row")


def collect(
    path: Path,
    format: Columns,
    chunks: Iterable[Chunk],
    *,
    limit: int | None = None,
    sort: bool = False,
    skip_empty: bool = False,
) -> RequestTrace:
    """Check all chunks and join them. Stops reading after ``limit`` requests unless ``sort``."""
    kept: list[Chunk] = []
    n = n_empty = n_over = 0
    for raw in chunks:
        chunk, empty = _checked(path, format, raw, skip_empty)
        over = _trim_blocks(format, chunk)
        n, n_empty, n_over = n + len(chunk.rows), n_empty + empty, n_over + over
        kept.append(chunk)
        if limit is not None and n >= limit and not sort:
            break
    if not n:
        left = f" ({n_empty:,} without output left out)" if n_empty else ""
        raise InputError(f"{path}: no requests in it{left}; name a file with some")
    notes = []
    if n_empty:
        what = format.failures or "requests without tokens (`skip_empty`)"
        notes.append(f"{n_empty:,} {what} left out")
    if n_over:
        notes.append(
            f"{n_over:,} requests with more blocks than their prompt fills: the rest left out"
        )
    return _joined(path, format, kept, notes, limit, sort)


def _checked(path: Path, format: Columns, chunk: Chunk, skip_empty: bool) -> tuple[Chunk, int]:
    """The chunk without what is left out, and how many rows that are."""
    _tokens(path, chunk.rows, format.prompt, chunk.prompt)
    _tokens(path, chunk.rows, format.output, chunk.output)
    if chunk.arrival is not None:
        _times(path, chunk.rows, format, chunk.arrival)
    gone = chunk.output == 0 if format.failures or skip_empty else np.zeros(len(chunk.rows), bool)
    if skip_empty:
        gone |= chunk.prompt == 0
    for name, values in ((format.prompt, chunk.prompt), (format.output, chunk.output)):
        zero = np.flatnonzero((values == 0) & ~gone)
        if len(zero):
            why = "a request has at least 1 token (`skip_empty` leaves such rows out)"
            raise cell(path, int(chunk.rows[zero[0]]), name, 0, why)
    if not gone.any():
        return chunk, 0
    stay = ~gone
    left = Chunk(chunk.rows[stay], chunk.prompt[stay], chunk.output[stay])
    left.arrival = None if chunk.arrival is None else chunk.arrival[stay]
    left.after = None if chunk.after is None else chunk.after[stay]
    if chunk.n_blocks is not None:
        left.blocks = chunk.blocks[np.repeat(stay, chunk.n_blocks)]
        left.n_blocks = chunk.n_blocks[stay]
    return left, int(gone.sum())


def _first(bad: np.ndarray) -> int | None:
    return int(np.argmax(bad)) if bad.any() else None


def _tokens(path: Path, rows: Ints64, name: str, values: NDArray[np.float64]) -> None:
    for bad, why in (
        (~np.isfinite(values), "not a number of tokens"),
        (values < 0, "less than nothing"),
        (values > MAX_TOKENS, f"more than {MAX_TOKENS:,} tokens"),
        (values != np.floor(values), "not a whole number"),
    ):
        if (i := _first(bad)) is not None:
            value = values[i]
            whole = np.isfinite(value) and value == int(value) and abs(value) < 1e15
            raise cell(path, int(rows[i]), name, int(value) if whole else float(value), why)


def _times(path: Path, rows: Ints64, format: Columns, values: NDArray[np.float64] | Ints64) -> None:
    dates = format.unit == "date"
    for bad, why in (
        (~np.isfinite(values), "not a time"),
        (values < (-MAX_NS if dates else 0), "before 1824" if dates else "before time 0"),
        (values > MAX_NS / NS.get(format.unit, 1.0), "too late a time"),
    ):
        if (i := _first(bad)) is not None:
            value = str(np.datetime64(int(values[i]), "ns")) if dates else values[i].item()
            raise cell(path, int(rows[i]), str(format.arrival), value, why)


def _trim_blocks(format: Columns, chunk: Chunk) -> int:
    """Leave out the blocks that lie beyond a prompt; how many requests had some."""
    if chunk.n_blocks is None:
        return 0
    most = np.ceil(chunk.prompt / format.block_tokens).astype(np.int64)
    over = chunk.n_blocks > most
    if not over.any():
        return 0
    lo = np.repeat(np.cumsum(chunk.n_blocks) - chunk.n_blocks, chunk.n_blocks)
    place = np.arange(len(chunk.blocks)) - lo
    chunk.blocks = chunk.blocks[place < np.repeat(most, chunk.n_blocks)]
    chunk.n_blocks = np.minimum(chunk.n_blocks, most)
    return int(over.sum())


def _joined(
    path: Path,
    format: Columns,
    kept: list[Chunk],
    notes: list[str],
    limit: int | None,
    sort: bool,
) -> RequestTrace:
    rows = np.concatenate([c.rows for c in kept])
    prompt = np.concatenate([c.prompt for c in kept]).astype(np.int32)
    output = np.concatenate([c.output for c in kept]).astype(np.int32)
    blocks = np.concatenate([c.blocks for c in kept])
    held = np.concatenate(
        [np.zeros(len(c.rows), np.int64) if c.n_blocks is None else c.n_blocks for c in kept]
    )
    arrival_ns: Ints64 | None = None
    if kept[0].arrival is not None:
        when = np.concatenate([c.arrival for c in kept if c.arrival is not None])
        late = np.flatnonzero(np.diff(when) < 0)
        if len(late) and not sort:
            raise InputError(
                f"{path}: row {rows[late[0] + 1]}: {format.arrival} is earlier than row "
                f"{rows[late[0]]}'s; give `sort` to put the requests in the order of their times"
            )
        arrival_ns = _relative(when, format)
        if kept[0].after is not None:
            arrival_ns = arrival_ns + np.concatenate([c.after for c in kept if c.after is not None])
        order = np.argsort(arrival_ns, kind="stable")
        if (np.diff(order) != 1).any():
            prompt, output, arrival_ns = prompt[order], output[order], arrival_ns[order]
            blocks, held = _gathered(blocks, held, order)
            if len(late):
                notes.append("put in the order of their times, which the file is not in")
    lo = np.concatenate((np.zeros(1, np.int64), np.cumsum(held)))
    trace = RequestTrace(
        arrival_ns,
        prompt,
        output,
        blocks,
        lo,
        format.block_tokens,
        source=format.source,
        format=format.name,
        path=str(path),
        notes=tuple(notes),
    )
    return trace if limit is None else trace.first(limit)


def _relative(when: NDArray[np.float64] | Ints64, format: Columns) -> Ints64:
    """ns after the first request. Differences first: float64 seconds of a date are 240 ns apart."""
    since = when - when.min()
    if since.dtype == np.int64:
        return since
    return np.rint(since * NS[format.unit]).astype(np.int64)


def _gathered(blocks: Ints64, held: Ints64, order: Ints64) -> tuple[Ints64, Ints64]:
    """Blocks and their counts, with requests in another order."""
    lo, held = (np.cumsum(held) - held)[order], held[order]
    if not len(blocks):
        return blocks, held
    place = np.arange(len(blocks)) - np.repeat(np.cumsum(held) - held, held)
    return blocks[np.repeat(lo, held) + place], held
