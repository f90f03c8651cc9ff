"""Fault traces in other formats: the CSV files of gpu_ext's tracers, and Parquet.

The CSV has gpu_ext's newest header, so that scripts made for its traces read ours. Times are whole
milliseconds, as there. A value that is not known stays empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.faults import BLOCK, PAGE, FaultTrace
from traces.files.schema import META_KEY
from traces.importers.gpu_ext import CHUNK_COLUMNS, HOOKS, MS, PREFETCH_COLUMNS

HOOK_OF = {kind: hook for hook, kind in reversed(HOOKS.items())}
HELD = {
    "gpu-ext-chunk": (
        *("time_ns", "kind", "address", "bytes", "process", "va_block", "chunk", "list", "cpu"),
        *("thread", "va_space", "unused_list", "block_pointer"),
    ),
    "gpu-ext-prefetch": (
        *("time_ns", "kind", "address", "bytes", "process", "va_block", "cpu", "thread"),
        *PREFETCH_COLUMNS[7:],
    ),
}
"""What each CSV can hold."""


def export_faults(t: FaultTrace, out: str | Path, format: str | None = None) -> dict[str, Any]:
    """Write ``t`` to ``out``: as ``format``, or Parquet where the name ends in .parquet.

    The CSV formats hold only their own kinds of event; what they leave out is in the returned
    ``notes``. Raises `InputError` where there is nothing to write.
    """
    p = Path(out)
    name = format or ("parquet" if p.suffix.lower() in (".parquet", ".pq") else "")
    if name not in EXPORTERS:
        raise InputError(
            f"{out}: a fault trace is exported as Parquet (a name ending in .parquet) or with "
            f"--format {' or '.join(HELD)}"
        )
    tmp = p.with_name(f".{p.name}.{os.getpid()}.tmp")
    try:
        rows, notes = EXPORTERS[name](t, tmp)
        tmp.replace(p)
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
    finally:
        tmp.unlink(missing_ok=True)
    return {"out": str(out), "rows": rows, "bytes": p.stat().st_size, "notes": notes}


def _chunk(t: FaultTrace, tmp: Path) -> tuple[int, list[str]]:
    rows, notes = _select(t, "gpu-ext-chunk", *HOOK_OF)
    codes, words = rows.words("kind")
    hooks = pa.array([HOOK_OF.get(w, "") for w in words]).take(pa.array(codes))
    block, known = rows.numbers("va_block"), rows.present("va_block")
    size = rows.numbers("bytes", missing=BLOCK).astype(np.uint64)
    pointer = np.where(rows.present("block_pointer"), rows.numbers("block_pointer"), block)
    page = (rows.numbers("address") - block) // np.uint64(PAGE)
    evict = rows.where("eviction_prepare")
    first = np.where(evict, rows.numbers("list"), rows.numbers("chunk"))
    has_first = np.where(evict, rows.present("list"), rows.present("chunk"))
    second = np.where(evict, rows.numbers("unused_list"), rows.numbers("list"))
    has_second = np.where(evict, rows.present("unused_list"), rows.present("list"))
    columns = {
        "time_ms": _ms(rows),
        "hook_type": hooks,
        "pid": rows.column("thread"),
        "owner_pid": rows.column("process"),
        "va_space": _hex(rows.numbers("va_space"), rows.present("va_space")),
        "cpu": rows.column("cpu"),
        "chunk_addr": _hex(first, has_first),
        "list_addr": _hex(second, has_second),
        "va_block": _hex(pointer, known | rows.present("block_pointer")),
        "va_start": _hex(block, known),
        "va_end": _hex(block + size - np.uint64(1), known),
        "va_page_index": pa.array(page, mask=~(known & rows.present("address"))),
    }
    return _write(tmp, columns, CHUNK_COLUMNS), notes


def _prefetch(t: FaultTrace, tmp: Path) -> tuple[int, list[str]]:
    rows, notes = _select(t, "gpu-ext-prefetch", "gpu_fault")
    if not rows.present("address").all():
        at = int(np.argmin(rows.present("address")))
        raise InputError(
            f"{t.path}: GPU fault {at} has no address, which --format gpu-ext-prefetch needs"
        )
    block, always = rows.blocks, np.ones(rows.n_rows, bool)
    columns = {
        "time_ms": _ms(rows),
        "cpu": rows.column("cpu"),
        "fault_pid": rows.column("thread"),
        "owner_tgid": rows.column("process"),
        "va_start": _hex(block, always),
        "va_end": _hex(block + np.uint64(BLOCK - 1), always),
        "page_index": pa.array((rows.numbers("address") - block) // np.uint64(PAGE)),
    } | {name: rows.column(name) for name in PREFETCH_COLUMNS[7:]}
    return _write(tmp, columns, PREFETCH_COLUMNS), notes


def _parquet(t: FaultTrace, tmp: Path) -> tuple[int, list[str]]:
    import pyarrow.parquet as pq

    from traces.files.schema import faults_schema

    metadata = faults_schema(t.meta).metadata[META_KEY]
    state = b"true" if t.complete else b"false"
    table = t.table.replace_schema_metadata({META_KEY: metadata, b"uvmsim.complete": state})
    pq.write_table(table, tmp, compression="zstd")
    return t.n_rows, []


def _select(t: FaultTrace, format: str, *kinds: str) -> tuple[FaultTrace, list[str]]:
    """The events a format holds, and what is lost."""
    wanted = t.where(*kinds)
    if not wanted.any():
        raise InputError(
            f"{t.path}: holds no {', '.join(kinds)} events, which is all that --format {format} "
            "can hold; choose another format"
        )
    notes = []
    if not wanted.all():
        notes.append(f"left out: {int((~wanted).sum()):,} events of other kinds")
    rows = FaultTrace(t.table.filter(pa.array(wanted)), t.meta, path=t.path)
    lost = [n for n in rows.table.column_names if n not in HELD[format] and rows.has(n)]
    if lost:
        notes.append(f"left out: columns {', '.join(lost)}")
    if (rows.numbers("time_ns") % MS).any():
        notes.append("times are cut to whole milliseconds")
    return rows, notes


def _ms(t: FaultTrace) -> pa.Array:
    return pa.array(t.numbers("time_ns") // MS)


def _hex(values: np.ndarray, known: np.ndarray) -> pa.Array:
    """Addresses as 0x..., empty where not known."""
    distinct, index = np.unique(values, return_inverse=True)
    texts = pa.array([hex(v) for v in distinct.tolist()], pa.string())
    return texts.take(pa.array(index.reshape(-1), mask=~known))


def _write(tmp: Path, columns: dict[str, pa.Array], names: tuple[str, ...]) -> int:
    import pyarrow.csv as pacsv

    table = pa.table({n: columns[n] for n in names})
    with tmp.open("wb") as f:
        f.write((",".join(names) + "\n").encode())
        options = pacsv.WriteOptions(include_header=False, quoting_style="none")
        pacsv.write_csv(table, f, options)
    return int(table.num_rows)


EXPORTERS: dict[str, Callable[[FaultTrace, Path], tuple[int, list[str]]]] = {
    "gpu-ext-chunk": _chunk,
    "gpu-ext-prefetch": _prefetch,
    "parquet": _parquet,
}
