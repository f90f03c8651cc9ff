"""The real cupti-python: its names and layouts, and, where there is a GPU, a real recording."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cupti import RECORD, FakeCupti

from traces import InputError
from traces.capture import cuda_driver
from traces.capture.cupti import _configure
from traces.capture.um_records import Decoder
from traces.faults import open_faults

ROOT = Path(__file__).resolve().parents[1]
cupti: Any = pytest.importorskip(
    "cupti.cupti", reason="cupti-python (the cupti extra) is not installed"
)


def test_the_stand_in_is_like_the_real_one() -> None:
    assert np.dtype(cupti.activity_unified_memory_counter3_dtype) == RECORD
    for name in (
        "ActivityUnifiedMemoryCounterKind",
        "ActivityUnifiedMemoryCounterScope",
        "ActivityUnifiedMemoryAccessType",
        "ActivityUnifiedMemoryMigrationCause",
        "ActivityUnifiedMemoryRemoteMapCause",
        "ActivityKind",
        "Result",
    ):
        for member in getattr(FakeCupti, name):
            assert int(getattr(cupti, name)[member.name]) == int(member)
    for name in vars(FakeCupti):
        if name.startswith("activity_") and not name.endswith("_dtype"):
            assert callable(getattr(cupti, name))
    assert callable(cupti.get_timestamp)


def test_settings_reach_the_memory_that_cupti_reads() -> None:
    seen: list[np.ndarray] = []
    dtype = np.dtype(cupti.activity_unified_memory_counter_config_dtype)

    class Spy:
        ActivityUnifiedMemoryCounterKind = cupti.ActivityUnifiedMemoryCounterKind
        ActivityUnifiedMemoryCounterScope = cupti.ActivityUnifiedMemoryCounterScope
        ActivityUnifiedMemoryCounterConfig = cupti.ActivityUnifiedMemoryCounterConfig

        @staticmethod
        def activity_configure_unified_memory_counter(pointer: int, n: int) -> None:
            seen.append(np.frombuffer(ctypes.string_at(pointer, n * dtype.itemsize), dtype))

    _configure(Spy, 2)
    assert seen[0]["kind"].tolist() == [1, 2, 3, 4, 5, 6, 7] * 2
    assert seen[0]["device_id"].tolist() == [0] * 7 + [1] * 7
    assert set(seen[0]["scope"]) == set(seen[0]["enable"]) == {1}


def test_records_are_read_from_the_real_objects() -> None:
    raw = np.zeros(3, RECORD)
    raw["kind"], raw["counter_kind"], raw["start"] = 25, 4, [5, 6, 7]
    at = raw.ctypes.data

    class Record:
        """``from_ptr`` of the real class counts references to CUPTI's own buffers: not here."""

        def __init__(self, i: int) -> None:
            self.ptr, self.kind = at + i * RECORD.itemsize, 25

    decoder = Decoder(cupti, 0)
    for some in ([0, 1, 2], [0, 2], [2, 1]):
        assert (decoder.copy([Record(i) for i in some]) == raw[some]).all()


COMMAND = ("capture", "cupti", "-o", "t.arrow", "--", "python", "p.py")
PROGRAM = """\
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *args):
    code = getattr(cuda, name)(*args)
    assert code == 0, (name, code)
size = {size}
context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuMemAllocManaged", ctypes.byref(pointer), ctypes.c_size_t(size), 1)
for i in range(3):
    ctypes.memset(pointer.value, i, size)
    call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(i + 1), ctypes.c_size_t(size))
    call("cuCtxSynchronize")
assert ctypes.string_at(pointer.value, 1) == bytes([3])
raise SystemExit(7)
"""


@pytest.mark.gpu
def test_a_real_recording(tmp_path: Path) -> None:
    try:
        cuda_driver.start()
    except InputError as e:
        pytest.skip(str(e))
    size = 64 << 20
    (tmp_path / "p.py").write_text(PROGRAM.format(size=size))
    done = subprocess.run(
        [sys.executable, "-c", "from uvmsim.cli import main; main()", *COMMAND],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    t = open_faults(tmp_path / "t.arrow")
    codes, words = t.words("kind")
    seen = {words[c] for c in set(codes.tolist())}
    assert t.complete and {"cpu_fault", "migration_in", "migration_out"} <= seen
    time = t.numbers("time_ns")
    assert (np.diff(time) >= 0).all() and time[0] >= 0
    assert int(t.numbers("bytes")[t.where("migration_out")].sum()) >= size
    assert (t.numbers("bytes")[t.where("migration_in", "migration_out")] % 4096 == 0).all()
