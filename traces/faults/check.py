"""What can be wrong with a fault trace.

A check is a function ``check(trace) -> iterable of Finding``, listed in `FAULT_CHECKS`; findings
are those of `traces.routing.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from traces.faults import BLOCK, PAGE, FaultTrace
from traces.faults.whole import Looked, missing
from traces.routing.check import SEVERITIES, Finding

MS = 1_000_000


def _rows(
    t: FaultTrace, bad: np.ndarray, code: str, severity: str, message: str, advice: str
) -> Iterator[Finding]:
    n = int(bad.sum())
    if n:
        row = int(np.argmax(bad))
        first = {"row": row, "time_ns": int(t.numbers("time_ns")[row])}
        yield Finding(code, severity, n, message, advice, first)


def completeness(t: FaultTrace) -> Iterator[Finding]:
    """The closing mark, and the hash in it."""
    if not t.complete:
        yield Finding(
            "incomplete",
            "warning",
            1,
            "the recording was cut off: the closing mark is absent",
            "the events that are here can be used; record again if the rest matters",
        )
    if t.recorded_sha256 and t.recorded_sha256 != t.sha256:
        yield Finding(
            "hash-mismatch",
            "error",
            1,
            "the events are not those that were recorded: their hash differs from the stored one",
            "copy the file again from its source, or record again",
        )


def times(t: FaultTrace) -> Iterator[Finding]:
    """Times ascend, durations are not negative; how fine the clock was."""
    time = t.numbers("time_ns")
    falls = np.zeros(t.n_rows, bool)
    falls[1:] = time[1:] < time[:-1]
    yield from _rows(
        t,
        falls,
        "out-of-order",
        "error",
        "events earlier than the one before",
        "write the trace with FaultWriter, which sorts it",
    )
    yield from _rows(
        t,
        t.numbers("duration_ns") < 0,
        "negative-duration",
        "error",
        "events that end before they start",
        "mend the program that wrote the trace",
    )
    if t.n_rows > 1 and not (time % MS).any() and time[-1] > time[0]:
        yield Finding(
            "coarse-times",
            "note",
            t.n_rows,
            "all times are whole milliseconds, as gpu_ext's CSV has them",
            "rates over seconds are right; what happens within a millisecond has order, no time",
        )


def addresses(t: FaultTrace) -> Iterator[Finding]:
    """Blocks start at 2 MiB, addresses lie in their block, sizes are not negative."""
    has_block, block = t.present("va_block"), t.numbers("va_block")
    address, has_address = t.numbers("address"), t.present("address")
    yield from _rows(
        t,
        has_block & has_address & ((address < block) | (address - block >= BLOCK)),
        "outside-block",
        "error",
        "events whose address does not lie in their VA block",
        "mend the program that wrote the trace",
    )
    # The first block of an allocation may start within its 2 MiB: a page boundary is enough.
    yield from _rows(
        t,
        has_block & (block % np.uint64(PAGE) != 0),
        "unaligned-block",
        "error",
        f"VA blocks that do not start at a page of {PAGE} bytes",
        "fill va_block with the first byte of the block, not with a number of it",
    )
    yield from _rows(
        t,
        t.numbers("bytes") < 0,
        "negative-bytes",
        "error",
        "events of negative size",
        "mend the program that wrote the trace",
    )
    placed = t.where("gpu_fault", "cpu_fault", "chunk_activate", "chunk_access")
    yield from _rows(
        t,
        placed & ~has_address & ~has_block,
        "no-address",
        "warning",
        "faults or chunk events without an address",
        "they count in rates, and nowhere else",
    )


def chunks(t: FaultTrace) -> Iterator[Finding]:
    """What the events of physical chunks say about events that were lost."""
    activate, access = t.where("chunk_activate"), t.where("chunk_access")
    yield from _rows(
        t,
        (activate | access) & ~t.present("chunk"),
        "no-chunk",
        "warning",
        "chunk events that do not say which physical chunk",
        "reuse statistics leave them out",
    )
    of = np.flatnonzero((activate | access) & t.present("chunk"))
    if not len(of) or not activate.any():
        return
    order = of[np.argsort(t.numbers("chunk")[of], kind="stable")]
    chunk, block, starts = t.numbers("chunk")[order], t.blocks[order], activate[order]
    # The row of the last activation at or before each event, within its chunk.
    last = np.maximum.accumulate(np.where(starts, np.arange(len(order)), -1))
    known = (last >= 0) & (chunk[last] == chunk)
    moved = np.zeros(t.n_rows, bool)
    moved[order] = known & (block[last] != block)
    yield from _rows(
        t,
        moved,
        "lost-activations",
        "warning",
        "services of a chunk for a block it was not activated for: an activation between is lost",
        "gpu_ext's ring buffer drops events under load; counts are too low by as much",
    )
    before = np.zeros(t.n_rows, bool)
    before[order] = ~known
    yield from _rows(
        t,
        before,
        "resident-before",
        "note",
        "services of chunks that have no activation yet: resident when tracing began",
        "start the tracer before the program, if the first fill matters",
    )
    prepared = int(t.where("eviction_prepare").sum())
    if prepared > int(activate.sum()) * 1.02 + 64:
        yield Finding(
            "more-evictions-than-activations",
            "warning",
            prepared - int(activate.sum()),
            "more evictions than activations, though an eviction makes room for an activation",
            "events were lost, or several GPUs are mixed; rates are doubtful",
        )


def wholeness(t: FaultTrace) -> Iterator[Finding]:
    """How much is missing, by the tracer's count and by what does not fit together."""
    m = missing(t)
    found = (
        (
            "lost-records",
            m.dropped,
            "records that the tracer lost by its own count",
            "counts and bytes are too low by as much; record a shorter run",
        ),
        (
            "unwritten-records",
            m.unwritten,
            "records that the tracer handed over and the trace does not hold",
            "copy the file again from its source, or record again",
        ),
        (
            "lost-migrations",
            ((m.bytes_in or 0) + (m.bytes_out or 0)) // PAGE,
            f"pages that moved twice the same way and not back between: {_mb(m.bytes_in)} to the "
            f"GPU and {_mb(m.bytes_out)} from it are missing at least",
            "bytes are too low by more than that, unless the memory was freed between, or is "
            "read-mostly",
        ),
    )
    for code, n, message, advice in (*found, *_unrecorded(m.looks)):
        if n:
            yield Finding(code, "warning", n, message, advice)
    if m.blocks_without_arrival:
        yield Finding(
            "no-arrival",
            "note",
            m.blocks_without_arrival,
            f"blocks of {BLOCK >> 20} MiB on which the GPU faulted and to which nothing was seen to "
            "come",
            "right where the GPU touches memory first; else records of migrations are missing",
        )


def _unrecorded(looked: Looked | None) -> Iterator[tuple[str, int, str, str]]:
    """Pages that moved by the page table and have no record."""
    if looked is None:
        return
    pages = (looked.came_unrecorded + looked.went_unrecorded) // PAGE
    parts = [
        f"{_mb(lost)} of {_mb(all_of)} {way}"
        for lost, all_of, way in (
            (looked.came_unrecorded, looked.came, "to the GPU"),
            (looked.went_unrecorded, looked.went, "from it"),
        )
        if lost
    ]
    yield (
        "unrecorded-moves",
        pages,
        f"pages that moved by the page table without a record: {' and '.join(parts)}",
        "counts and bytes of migrations are too low by as much; faults are not concerned",
    )


def _mb(n: int | None) -> str:
    return f"{(n or 0) / 1e6:,.1f} MB"


FAULT_CHECKS: tuple[Callable[[FaultTrace], Iterable[Finding]], ...] = (
    completeness,
    times,
    addresses,
    chunks,
    wholeness,
)


def check_faults(t: FaultTrace) -> list[Finding]:
    """Every finding, errors first."""
    found = [f for c in FAULT_CHECKS for f in c(t)]
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))
