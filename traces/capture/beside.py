"""What runs beside a capture of llama.cpp: managed memory, and a recording of its page faults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traces.capture.find_library import LibraryFile
from traces.capture.options import CaptureOptions, CaptureResult
from traces.errors import InputError
from traces.files.ipc import check_free

UNIFIED_MEMORY = "GGML_CUDA_ENABLE_UNIFIED_MEMORY"
"""Where this is set, to anything, llama.cpp's CUDA back end allocates managed memory (ggml-cuda.cu,
`ggml_cuda_device_malloc`)."""
_MUCH_DRIFT_NS = 100_000


def check_beside(
    options: CaptureOptions, file: LibraryFile, out: Path, faults: Path | None
) -> None:
    """Raise `InputError` for what cannot be, before anything is written."""
    check_free(out)
    asked = next(
        (
            name
            for name, given in (
                ("--faults", faults),
                ("--unified-memory", options.unified_memory),
                ("--vram-left-mib", options.vram_left_mib),
            )
            if given
        ),
        None,
    )
    if asked is None:
        return
    if not file.uses_cuda:
        raise InputError(
            f"{asked}: {file.path.name} has no CUDA back end; name a CUDA build with --lib"
        )
    if options.n_gpu_layers == 0:
        raise InputError(f"{asked}: the model is not on the GPU; add --n-gpu-layers 99")
    if faults is None:
        return
    check_free(faults)
    if faults.resolve() == out.resolve():
        raise InputError(f"--faults {faults}: also the name of --out; give each a name of its own")


@contextmanager
def managed_memory(wanted: bool) -> Iterator[None]:
    """llama.cpp allocates managed memory inside this block."""
    if not wanted or UNIFIED_MEMORY in os.environ:
        yield
        return
    os.environ[UNIFIED_MEMORY] = "1"
    try:
        yield
    finally:
        del os.environ[UNIFIED_MEMORY]


@contextmanager
def recorded_faults(
    path: Path | None, out: Path, command: str, result: CaptureResult
) -> Iterator[Any]:
    """A `FaultRecording` to ``path`` around the whole run, or None without one. Nothing is left of it
    where the run fails before its first step."""
    if path is None:
        yield None
        return
    from traces.capture.cupti import FaultRecording

    recording = FaultRecording(path, meta={"command": command, "routing": out.name})
    with recording:
        try:
            yield recording
        except InputError:
            recording.unwanted = result.steps == 0
            raise
    result.notes += recording.notes
    if recording.clock.drift_ns is not None and abs(recording.clock.drift_ns) > _MUCH_DRIFT_NS:
        drift = recording.clock.drift_ns / 1e6
        result.notes.append(f"the steps' clock moved by {drift:.1f} ms against CUPTI's")
    if not recording.rows:
        result.notes.append(
            "no page fault or migration was seen, so no fault trace is written: did the model fit "
            "and stay?"
        )
    result.faults = {
        "out": path if recording.rows else None,
        "rows": recording.rows,
        "dropped": recording.dropped,
    }
