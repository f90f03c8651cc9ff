"""CUPTI's unified-memory records as columns of a fault trace.

Field meanings: ``CUpti_ActivityUnifiedMemoryCounter3`` in NVIDIA's CUPTI reference.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KINDS = {
    "BYTES_TRANSFER_HTOD": "migration_in",
    "BYTES_TRANSFER_DTOH": "migration_out",
    "CPU_PAGE_FAULT_COUNT": "cpu_fault",
    "GPU_PAGE_FAULT": "gpu_fault",
    "THRASHING": "thrashing",
    "THROTTLING": "throttling",
    "REMOTE_MAP": "remote_map",
}
"""CUPTI's counter kinds, and what their records are in a fault trace."""
SIZED = ("migration_in", "migration_out", "thrashing", "remote_map")
"""Kinds whose value is a size in bytes. (Of a GPU fault it is the number of fault groups, of a CPU
fault the program counter.)"""


class Decoder:
    """Turns records of the ``cupti`` module into columns.

    CUPTI hands over its own buffer, one Python object a record. Reading ten attributes of each
    would take some 50 µs, so records are copied as raw memory and taken apart by NumPy.
    """

    def __init__(self, cupti: Any, origin_ns: int) -> None:
        self._cupti, self._origin = cupti, origin_ns
        self._dtype = _layout(cupti)
        self._activity = int(cupti.ActivityKind.UNIFIED_MEMORY_COUNTER)
        kinds = cupti.ActivityUnifiedMemoryCounterKind
        self._kind = {int(getattr(kinds, name)): word for name, word in KINDS.items()}
        self._access = _words(cupti.ActivityUnifiedMemoryAccessType)
        self._migration = _words(cupti.ActivityUnifiedMemoryMigrationCause)
        self._remote = _words(cupti.ActivityUnifiedMemoryRemoteMapCause)

    def copy(self, records: Sequence[Any]) -> np.ndarray:
        """The unified-memory records among ``records``, as a structured array of our own."""
        size, n = self._dtype.itemsize, len(records)
        if n and records[-1].ptr == records[0].ptr + (n - 1) * size:
            found = np.frombuffer(ctypes.string_at(records[0].ptr, n * size), self._dtype)
            if (found["kind"] == self._activity).all():
                return found
        # Records of other kinds among them: somebody else has CUPTI record something too.
        mine = [ctypes.string_at(r.ptr, size) for r in records if r.kind == self._activity]
        return np.frombuffer(b"".join(mine), self._dtype)

    def columns(self, r: np.ndarray) -> dict[str, Any]:
        """Columns for `FaultWriter.append`; records of other kinds, or without a time, are left
        out."""
        words = tuple(dict.fromkeys(self._kind.values()))
        code = np.full(int(max(self._kind)) + 1, -1, np.int8)
        for number, word in self._kind.items():
            code[number] = words.index(word)
        in_range = (r["counter_kind"] >= 0) & (r["counter_kind"] < len(code))
        kind = np.where(in_range, code[np.where(in_range, r["counter_kind"], 0)], -1)
        known = (kind >= 0) & (r["start"] > 0)
        r, kind = r[known], kind[known]

        def of(*names: str) -> np.ndarray:
            return np.isin(kind, [words.index(n) for n in names])

        start, end = r["start"].astype(np.int64), r["end"].astype(np.int64)
        value, flags = r["value"], r["flags_"]
        small = np.minimum(value, np.uint64(2**31 - 1)).astype(np.int32)
        cause = _spell(flags, self._migration, of("migration_in", "migration_out"))
        remote = of("remote_map")
        if remote.any():
            cause = pc.if_else(pa.array(remote), _spell(flags, self._remote, remote), cause)
        inward, from_device = of("migration_in"), of("gpu_fault", "migration_out", "throttling")
        device = np.where(inward, r["dst_id"], r["src_id"]).astype(np.int32)
        return {
            "time_ns": start - self._origin,
            "kind": pa.DictionaryArray.from_arrays(pa.array(kind), list(words)),
            "address": pa.array(r["address"], mask=r["address"] == 0),
            "bytes": pa.array(value.astype(np.int64), mask=~of(*SIZED)),
            "duration_ns": pa.array(end - start, mask=end < start),
            "count": pa.array(small, mask=~of("gpu_fault")),
            "access": _spell(flags, self._access, of("gpu_fault")),
            "cause": cause,
            "process": r["process_id"].astype(np.int32),
            "device": pa.array(device, mask=~(inward | from_device)),
        }


def _layout(cupti: Any) -> np.dtype:
    """Memory layout of the records; CUPTI numbers its layouts, the newest is what it sends."""
    found = [
        (int(m[1]), name)
        for name in dir(cupti)
        if (m := re.fullmatch(r"activity_unified_memory_counter(\d+)_dtype", name))
    ]
    if not found:
        raise RuntimeError("this cupti-python has no layout of unified-memory records")
    return np.dtype(getattr(cupti, max(found)[1]))


def _words(enum: Any) -> dict[int, str]:
    return {int(member): member.name.lower() for member in enum}


def _spell(codes: np.ndarray, words: dict[int, str], where: np.ndarray) -> pa.Array:
    """Numbers as words, null elsewhere; ``code N`` for one that CUPTI has no name for."""
    distinct, index = np.unique(codes, return_inverse=True)
    texts = pa.array([words.get(c, f"code {c}") for c in distinct.tolist()], pa.string())
    return texts.take(pa.array(index.reshape(-1), mask=~where))
