"""What runs beside a capture of llama.cpp: managed memory, and a recording of its page faults."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traces.capture import cuda_driver
from traces.capture.find_library import LibraryFile
from traces.capture.options import CaptureOptions, CaptureResult
from traces.capture.tracers import recording_by
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
                ("--cold", options.cold),
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
    if options.cold and not (options.unified_memory or faults):
        raise InputError("--cold: the model is not in managed memory; add --unified-memory")
    if faults is None:
        return
    check_free(faults)
    if faults.resolve() == out.resolve():
        raise InputError(f"--faults {faults}: also the name of --out; give each a name of its own")


def send_away(beside: Any, result: CaptureResult) -> None:
    """All managed memory of this process to the host (`CaptureOptions.cold`)."""
    from traces.capture.residency import HOST, managed_ranges, map_on_host, on_gpu_bytes, prefetch

    ranges = managed_ranges()
    if not ranges:
        raise InputError("--cold: this process has no managed memory to send to the host")
    start = time.monotonic_ns()
    for address, nbytes in ranges:
        if code := prefetch(address, nbytes, HOST):
            raise InputError(f"--cold: the driver refuses to send memory away (CUDA error {code})")
    cuda_driver.synchronize()
    taken = (time.monotonic_ns() - start) / 1e6
    total = sum(n for _, n in ranges)
    result.notes.append(f"{total / 1e9:.2f} GB were sent to the host in {taken:.0f} ms")
    if beside is None:
        return
    if on_gpu_bytes(
        ranges
    ):  # this driver maps nothing that it brings: then the page table says nothing
        for address, nbytes in ranges:
            map_on_host(address, nbytes)
    beside.look()


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
    path: Path | None, out: Path, command: str, result: CaptureResult, tracer: str = "cupti"
) -> Iterator[Any]:
    """A recording by ``tracer`` (see `traces.capture.tracers`) to ``path`` around the whole run, or
    None without one. Nothing is left of it where the run fails before its first step."""
    if path is None:
        yield None
        return
    recording = recording_by(tracer, path, {"command": command, "routing": out.name})
    with recording:
        try:
            yield recording
        except InputError:
            recording.unwanted = result.steps == 0
            raise
    result.notes += recording.notes
    if recording.clock.drift_ns is not None and abs(recording.clock.drift_ns) > _MUCH_DRIFT_NS:
        drift = recording.clock.drift_ns / 1e6
        result.notes.append(f"the steps' clock moved by {drift:.1f} ms against the recording's")
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
