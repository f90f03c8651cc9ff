"""Open a file of requests: which format, and its reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.errors import InputError
from traces.files.ipc import require_file
from traces.requests import csv_files, jsonl_files, sharegpt
from traces.requests.formats import KNOWN, Columns, named, recognised
from traces.requests.rows import Chunk, collect
from traces.requests.tokens import Tokenizer
from traces.requests.trace import RequestTrace

_PICKLES = (".pkl", ".pickle", ".ds")
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}


def open_requests(
    path: str | Path,
    *,
    format: str | None = None,
    limit: int | None = None,
    sort: bool = False,
    skip_empty: bool = False,
    seed: int = 0,
    output_len: int | None = None,
    tokenizer: str | Path | None = None,
    lib: str | Path | None = None,
) -> RequestTrace:
    """Read a request trace of another tool (docs/serving.md has the formats).

    ``format``: None finds it by the file's columns. ``limit``: the first so many requests.
    ``sort``: put requests in the order of their times, where a file is not. ``skip_empty``: leave rows
    of 0 tokens out, with a note. For ShareGPT: ``seed`` of the shuffle, ``output_len`` tokens an
    answer, ``tokenizer`` a GGUF file that counts tokens through the libllama ``lib``.

    Raises `InputError` for anything that is no such file, with the row at fault.
    """
    p = Path(path)
    require_file(p)
    if limit is not None and limit < 1:
        raise InputError(f": {limit} requests; ask for 1 or more", "limit")
    kind, head = _kind(p)
    if kind == "json":
        found = _chosen(p, format, kind, ["conversations"])
        if tokenizer is None:
            return sharegpt.load(p, found, limit=limit, seed=seed, output_len=output_len)
        with Tokenizer(tokenizer, lib) as t:
            return sharegpt.load(
                p, found, limit=limit, seed=seed, output_len=output_len,
                count=t.count, counted_by=f"tokens counted by {t.path.name}",
            )  # fmt: skip
    for name, value in (("tokenizer", tokenizer), ("output_len", output_len)):
        if value is not None:
            raise InputError(f": {p} has token counts; this is for ShareGPT files", name)
    found, rows = _table(p, format, kind, head)
    trace = collect(p, found, rows, limit=limit, sort=sort, skip_empty=skip_empty)
    return _with_notes(trace, found)


def _table(
    path: Path, format: str | None, kind: str, head: bytes
) -> tuple[Columns, Iterator[Chunk]]:
    if kind == "csv":
        names = csv_files.header(path, head)
        found = _chosen(path, format, kind, [n.strip() for n in names])
        return found, csv_files.chunks(path, found, names)
    first = next(jsonl_files.lines(path), None)
    found = _chosen(path, format, kind, list(first[1]) if first else [])
    return found, jsonl_files.chunks(path, found)


def _kind(path: Path) -> tuple[str, bytes]:
    """csv, jsonl or json by the first bytes, and these."""
    try:
        with path.open("rb") as f:
            head = f.read(csv_files.HEADER)
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from None
    if not head:
        raise InputError(f"{path}: empty file; name a file of requests")
    if path.suffix.lower() in _PICKLES or (head[0] == 0x80 and len(head) > 1 and head[1] < 6):
        raise InputError(
            f"{path}: a pickle, as DistServe's: never loaded, since that can run any code; write it "
            "as CSV: arrived_at,num_prefill_tokens,num_decode_tokens"
        )
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise InputError(f"{path}: compressed ({name}); unpack it first")
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return {b"[": "json", b"{": "jsonl"}.get(begin, "csv"), head


def _chosen(path: Path, name: str | None, kind: str, columns: list[str]) -> Columns:
    """The format that was asked for, or that the columns tell."""
    if name is None:
        found = recognised(kind, columns)
        if found:
            return found
        have = ", ".join(repr(c) if len(c) < 30 else repr(c[:27]) + "..." for c in columns[:8])
        raise InputError(
            f"{path}: no request trace that is known, by its columns ({have or 'none'}); known are "
            f"{', '.join(c.name for c in KNOWN)}: rename columns to one's (docs/serving.md)"
        )
    asked = named(name)
    if asked is None:
        raise InputError(
            f": {name}: unknown; choose one of {', '.join(c.name for c in KNOWN)}", "format"
        )
    if asked.kind != kind:
        raise InputError(
            f": {name} is {asked.kind.upper()}, but {path} looks like {kind.upper()}", "format"
        )
    lacks = [c for c in asked.wanted if c not in columns]
    if lacks:
        raise InputError(
            f": {name} has a column {lacks[0]!r}, {path} has not; name another", "format"
        )
    return asked


def _with_notes(trace: RequestTrace, format: Columns) -> RequestTrace:
    from dataclasses import replace

    if not format.parts:
        return trace
    note = (
        "sessions flattened: each request goes out after the tools before it, but does not wait for "
        "the answers before it, whose times only a run can tell"
    )
    return replace(trace, notes=(*trace.notes, note))
