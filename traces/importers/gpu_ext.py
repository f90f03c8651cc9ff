"""The CSV files of gpu_ext's driver tracers: ``chunk_trace`` and ``prefetch_trace``.

``chunk_trace`` has one row per call of three hooks: ACTIVATE (a physical 2 MiB chunk was given to
a VA block), POPULATE (a block's pages were made resident: one service; also called USED or ACCESS)
and EVICTION_PREPARE (a victim is about to be chosen; which one is not recorded). Older files lack
``pid``, ``owner_pid`` and ``va_space``. ``prefetch_trace`` has one row per faulted page for which
the driver works out what to prefetch.

Times are whole milliseconds since the first event. Ring-buffer records of several CPUs come
slightly out of order, so that events before the first one get times near 2^64 ns: they become
negative. Rows are sorted by time; those of one millisecond keep the order of the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.faults import BLOCK, PAGE, FaultTrace, fault_table
from traces.importers.format import Format

CHUNK_COLUMNS = (
    *("time_ms", "hook_type", "pid", "owner_pid", "va_space", "cpu", "chunk_addr", "list_addr"),
    *("va_block", "va_start", "va_end", "va_page_index"),
)
CHUNK_NEWER = ("pid", "owner_pid", "va_space")
PREFETCH_COLUMNS = (
    *("time_ms", "cpu", "fault_pid", "owner_tgid", "va_start", "va_end", "page_index"),
    *("faulted_first", "faulted_outer", "max_first", "max_outer", "tree_offset", "leaf_count"),
    *("level_count", "pages_accessed"),
)
PREFETCH_NEWER = ("fault_pid", "owner_tgid")
HOOKS = {
    "ACTIVATE": "chunk_activate",
    "POPULATE": "chunk_access",
    "USED": "chunk_access",
    "ACCESS": "chunk_access",
    "EVICTION_PREPARE": "eviction_prepare",
}
MS = 1_000_000
WRAPPED_MS = 2**64 // MS + 1
POINTERS = ("va_space", "chunk_addr", "list_addr", "va_block", "va_start", "va_end")


def is_chunk_header(names: list[str]) -> bool:
    """Whether a CSV header is that of ``chunk_trace``."""
    return {"time_ms", "hook_type", "chunk_addr"} <= set(names)


def is_prefetch_header(names: list[str]) -> bool:
    """Whether a CSV header is that of ``prefetch_trace``."""
    return {"time_ms", "page_index", "va_start"} <= set(names) and "hook_type" not in names


def load_chunk(path: Path) -> FaultTrace:
    """Read a ``chunk_trace`` CSV.

    ``address`` is the first byte of the chunk's VA range, ``va_block`` that of its block, ``bytes``
    the size of the block's range, ``chunk`` and ``list`` are kernel addresses. EVICTION_PREPARE
    rows have the used and the unused list in the columns of chunk and list: they become ``list``
    and ``unused_list``.
    """
    csv = _Csv(path, CHUNK_COLUMNS, CHUNK_NEWER)
    start, end = csv.number("va_start", np.uint64), csv.number("va_end", np.uint64)
    page = csv.number("va_page_index", np.uint64)
    block_pointer = csv.number("va_block", np.uint64)
    pointer_known = csv.there("va_block") & (block_pointer != start)
    known = csv.there("va_start")
    csv.refuse(known & csv.there("va_end") & (end < start), "va_end lies before va_start")
    csv.refuse(known & (page >= BLOCK // PAGE), f"va_page_index is not below {BLOCK // PAGE}")
    hooks = csv.table.column("hook_type").combine_chunks()
    words = hooks.dictionary.to_pylist()
    codes = hooks.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    csv.refuse(
        np.isin(codes, [i for i, w in enumerate(words) if w not in HOOKS]) | (codes < 0),
        f"hook_type is not one of {', '.join(HOOKS)}",
    )
    kinds = pa.DictionaryArray.from_arrays(hooks.indices, [HOOKS.get(w, w) for w in words])
    evict = np.isin(codes, [i for i, w in enumerate(words) if w == "EVICTION_PREPARE"])
    first, second = csv.number("chunk_addr", np.uint64), csv.number("list_addr", np.uint64)
    has_first, has_second = csv.there("chunk_addr"), csv.there("list_addr")
    columns = {
        "time_ns": csv.time_ns(),
        "kind": kinds.dictionary_decode(),
        "address": pa.array(start + page * np.uint64(PAGE), mask=~known),
        "bytes": pa.array((end - start).astype(np.int64) + 1, mask=~(known & csv.there("va_end"))),
        "process": csv.column("owner_pid", np.int32),
        "va_block": pa.array(start, mask=~known),
        "chunk": pa.array(first, mask=evict | ~has_first),
        "list": pa.array(
            np.where(evict, first, second), mask=~np.where(evict, has_first, has_second)
        ),
        "unused_list": pa.array(second, mask=~evict | ~has_second),
        "cpu": csv.column("cpu", np.int32),
        "thread": csv.column("pid", np.int32),
        "va_space": csv.column("va_space", np.uint64),
        "block_pointer": pa.array(block_pointer, mask=~pointer_known),
    }
    return csv.trace(columns)


def load_prefetch(path: Path) -> FaultTrace:
    """Read a ``prefetch_trace`` CSV: GPU faults, ``address`` the page, ``bytes`` its size; the
    tracer's other columns keep their names."""
    csv = _Csv(path, PREFETCH_COLUMNS, PREFETCH_NEWER)
    start, page = csv.number("va_start", np.uint64), csv.number("page_index", np.uint64)
    end = csv.number("va_end", np.uint64)
    csv.refuse(~csv.there("va_start") | ~csv.there("page_index"), "va_start or page_index is empty")
    csv.refuse(page >= BLOCK // PAGE, f"page_index is not below {BLOCK // PAGE}")
    csv.refuse(csv.there("va_end") & (end < start), "va_end lies before va_start")
    columns: dict[str, Any] = {
        "time_ns": csv.time_ns(),
        "kind": pa.repeat("gpu_fault", csv.rows),
        "address": start + page * np.uint64(PAGE),
        "bytes": pa.repeat(PAGE, csv.rows),
        "process": csv.column("owner_tgid", np.int32),
        "va_block": start,
        "cpu": csv.column("cpu", np.int32),
        "thread": csv.column("fault_pid", np.int32),
    }
    for name in PREFETCH_COLUMNS[7:]:
        columns[name] = csv.column(name, np.int32)
    return csv.trace(columns)


class _Csv:
    """A tracer's CSV file, with the line numbers of what is wrong in it."""

    def __init__(self, path: Path, names: tuple[str, ...], newer: tuple[str, ...]) -> None:
        self.path, self.meant = path, names
        self.notes: list[str] = []
        self.table = self._read(names)
        lacking = [n for n in names if n not in self.table.column_names and n not in newer]
        if lacking:
            raise InputError(f"{path}: line 1: column {lacking[0]!r} is missing; record it again")
        self.rows = self.table.num_rows
        if not self.rows:
            raise InputError(f"{path}: a header and no events; trace while a program is paging")

    def _read(self, names: tuple[str, ...]) -> pa.Table:
        import pyarrow.csv as pacsv

        word = pa.dictionary(pa.int32(), pa.string())
        types = {n: word if n in POINTERS or n == "hook_type" else pa.int64() for n in names}
        try:
            with pa.memory_map(str(self.path)) as source:
                text = source.read_buffer()
                table = pacsv.read_csv(
                    pa.BufferReader(text.slice(0, self._whole(text))),
                    read_options=pacsv.ReadOptions(use_threads=False),
                    convert_options=pacsv.ConvertOptions(
                        column_types=types, strings_can_be_null=True, null_values=[""]
                    ),
                ).unify_dictionaries()
            table.column_names  # noqa: B018 - raises where a name is not text
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: is not UTF-8 text; record it again") from None
        except (pa.ArrowException, OSError) as e:
            why = re.sub(r"Row #(\d+)", r"line \1", str(e).splitlines()[0])
            why = re.sub(r"^(CSV parse error|In CSV column #\d+): ", "", why)
            raise InputError(f"{self.path}: {why}; mend or remove that line") from None
        return table

    def _whole(self, text: pa.Buffer) -> int:
        """Bytes of the file without a last line that was cut off."""
        header = bytes(text.slice(0, min(4096, text.size))).partition(b"\n")[0]
        tail = bytes(text.slice(max(0, text.size - 4096)))
        last = tail.rpartition(b"\n")[2]
        if not last or last.count(b",") >= header.count(b",") or len(last) == text.size:
            return int(text.size)
        self.notes.append("the last line was cut off (tracer killed?) and is left out")
        return int(text.size - len(last))

    def there(self, name: str) -> np.ndarray:
        """bool [rows]: where a column has a value."""
        if name not in self.table.column_names:
            return np.zeros(self.rows, bool)
        return self.table.column(name).is_valid().to_numpy()

    def number(self, name: str, dtype: Any) -> np.ndarray:
        """A column as numbers, 0 where empty; pointers are hexadecimal (0x...) or decimal."""
        if name not in self.table.column_names:
            return np.zeros(self.rows, dtype)
        column = self.table.column(name).combine_chunks()
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if isinstance(column, pa.DictionaryArray):
            values = np.zeros(len(column.dictionary) + 1, dtype)
            for i, text in enumerate(column.dictionary.to_pylist()):
                try:
                    values[i] = int(text, 0)
                except (ValueError, OverflowError):
                    self.refuse(
                        (column.indices.to_numpy(zero_copy_only=False) == i),
                        f"{name} is {text!r}, not an address",
                    )
            return values[column.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        plain = column.fill_null(0).to_numpy(zero_copy_only=False)
        self.refuse(
            (plain < max(low, -(2**63))) | (plain > min(high, 2**63 - 1)), f"{name} is out of range"
        )
        return plain.astype(dtype)

    def column(self, name: str, dtype: Any) -> pa.Array | None:
        """The same as an Arrow array, null where empty; None where there is no such column."""
        if name not in self.table.column_names:
            return None
        return pa.array(self.number(name, dtype), mask=~self.there(name))

    def time_ns(self) -> np.ndarray:
        """int64 [rows]: times in ns."""
        self.refuse(~self.there("time_ms"), "time_ms is empty")
        ms = self.number("time_ms", np.int64)
        ms = np.where(ms > WRAPPED_MS // 2, ms - WRAPPED_MS, ms)
        self.refuse(np.abs(ms) > WRAPPED_MS // 2, "time_ms is out of range")
        early = int((ms < 0).sum())
        if early:
            self.notes.append(f"{early:,} events lie before the first one: negative times")
        return ms * MS

    def refuse(self, bad: np.ndarray, what: str) -> None:
        """Raise `InputError` with the first line that is bad."""
        if bad.any():
            line = int(np.argmax(bad)) + 2
            raise InputError(f"{self.path}: line {line}: {what}; mend or remove that line")

    def trace(self, columns: dict[str, Any]) -> FaultTrace:
        """The events as a trace in memory."""
        if (np.diff(columns["time_ns"]) < 0).any():
            self.notes.append("lines were not in order of time: sorted")
        foreign = [n for n in self.table.column_names if n not in self.meant]
        if foreign:
            self.notes.append(f"columns left out: {', '.join(foreign)}")
        return FaultTrace(fault_table(columns), {"notes": self.notes, "time_unit_ns": MS})


def _header(head: bytes) -> list[str]:
    return head.partition(b"\n")[0].decode("utf-8-sig", "replace").strip().split(",")


FORMATS = (
    Format(
        "gpu-ext-chunk", load_chunk, recognises=lambda h: is_chunk_header(_header(h)), faults=True
    ),
    Format(
        "gpu-ext-prefetch", load_prefetch, recognises=lambda h: is_prefetch_header(_header(h)),
        faults=True,
    ),
)  # fmt: skip
