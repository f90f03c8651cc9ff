"""CSV request traces: the columns that are needed, streamed, as text that is turned into numbers here,
so that whatever is no number is named with its row."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import InputError
from traces.requests.formats import Columns
from traces.requests.rows import Chunk, cell
from traces.requests.trace import Ints64

HEADER = 1 << 16
"""Bytes a header line has at most."""
BLOCK = 1 << 22
"""Bytes read at once, and so the most a row may have."""


def header(path: Path, head: bytes) -> list[str]:
    """Column names from a file's first `HEADER` bytes. Raises `InputError` where they are not text."""
    rows = [row for row in head.replace(b"\r", b"\n").split(b"\n") if row.strip()]
    if not rows or (len(rows) == 1 and len(head) >= HEADER):
        raise InputError(f"{path}: no header line of column names; name a CSV file of requests")
    try:
        names = next(csv.reader([rows[0].decode("utf-8-sig")]))
    except (UnicodeDecodeError, csv.Error):
        names = ["\0"]
    if any("\0" in name for name in names):
        raise InputError(
            f"{path}: the first line is no text in UTF-8; name a CSV or JSON file of requests"
        )
    return names


def chunks(path: Path, format: Columns, names: list[str]) -> Iterator[Chunk]:
    """The rows of a CSV file whose header is ``names``."""
    import pyarrow.csv as pacsv

    wanted = [c for c in format.wanted if c is not None]
    actual = {n.strip(): n for n in reversed(names)}
    for name in wanted:
        if sum(n.strip() == name for n in names) != 1:
            raise InputError(f"{path}: column {name!r} occurs twice; rename one")
    real = [actual[name] for name in wanted]
    convert = pacsv.ConvertOptions(
        include_columns=real, column_types={n: pa.binary() for n in real}, strings_can_be_null=False
    )
    read = pacsv.ReadOptions(use_threads=False, block_size=BLOCK)
    at = 1
    try:
        with pacsv.open_csv(path, read_options=read, convert_options=convert) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield _chunk(path, format, dict(zip(wanted, batch.columns, strict=True)), at)
                at += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: {_reason(e)}; mend the file") from None


def _reason(e: Exception) -> str:
    """pyarrow's words on one line, with rows counted from the first below the header."""
    text = " ".join(str(e).split()).removeprefix("CSV parse error: ")
    text = re.sub(r"Row #(\d+)", lambda m: f"row {int(m[1]) - 1}", text)
    if "Empty CSV" in text:
        return "a header and no requests"
    if "straddling object" in text:
        text = f"a row is longer than {BLOCK >> 20} MiB"
    return text if len(text) < 120 else text[:116] + " ..."


def _chunk(path: Path, format: Columns, columns: dict[str, pa.Array], at: int) -> Chunk:
    text = {name: _text(path, name, values, at) for name, values in columns.items()}
    chunk = Chunk(
        np.arange(at, at + len(next(iter(text.values())))),
        _numbers(path, format.prompt, text[format.prompt], at),
        _numbers(path, format.output, text[format.output], at),
    )
    if format.arrival:
        convert = _dates if format.unit == "date" else _numbers
        chunk.arrival = convert(path, format.arrival, text[format.arrival], at)
    return chunk


def _text(path: Path, name: str, data: pa.Array, at: int) -> pa.Array:
    try:
        return pc.utf8_trim_whitespace(pc.cast(data, pa.string()))
    except pa.ArrowInvalid:
        raise _refused(path, name, data, at, [pa.string()], "not text in UTF-8") from None


def _numbers(path: Path, name: str, text: pa.Array, at: int) -> Any:
    """float64 [rows]; what is no number is refused, infinities and NaN are left to `collect`."""
    try:
        return pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        raise _refused(path, name, text, at, [pa.float64()], "not a number") from None


def _dates(path: Path, name: str, text: pa.Array, at: int) -> Ints64:
    """int64 ns since 1970, with a time zone (2024's files) or without, which is taken as UTC."""
    kinds: list[pa.DataType] = [pa.timestamp("ns"), pa.timestamp("ns", "UTC")]
    for kind in kinds:
        try:
            return np.asarray(pc.cast(text, kind).cast(pa.int64()))
        except pa.ArrowInvalid:
            continue
    raise _refused(path, name, text, at, kinds, "not a date with a time, or not as the rows before")


def _refused(
    path: Path, name: str, text: pa.Array, at: int, kinds: list[pa.DataType], why: str
) -> InputError:
    """Names the first value at which every one of ``kinds`` has given up."""

    def failing(kind: pa.DataType) -> int:
        lo, hi = 0, len(text)  # text[:lo] converts, text[:hi] does not
        while hi - lo > 1:
            middle = (lo + hi) // 2
            try:
                pc.cast(text[lo:middle], kind)
                lo = middle
            except pa.ArrowInvalid:
                hi = middle
        return lo

    i = max(failing(kind) for kind in kinds)
    value = text[i].as_py()
    if not value:
        return InputError(f"{path}: row {at + i}: {name} is missing; mend or remove the row")
    return cell(path, at + i, name, value, why)
