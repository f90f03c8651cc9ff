"""The calibration's part that pages: rows of known touches, and of the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replay.calibrate.probe import MiB, NotHere
from replay.calibrate.stats import Row, repeat, row
from replay.paging.device import PagingDevice
from replay.paging.microbench import Progress, measure
from traces.errors import InputError

ARENA, QUICK_ARENA = 256 * MiB, 128 * MiB
PIECES = (2 * MiB, 16 * MiB)
PAGING, OUT, DEVICE = "paging", "paging_out", "paging_device"
"""Tables of a calibration."""


def open_device(backend: str, quick: bool) -> PagingDevice:
    """The GPU. Raises `NotHere` where nothing pages, or nobody tells what the driver does."""
    if backend != "cuda":
        raise NotHere("page faults need a GPU")
    from replay.paging.cuda import CudaPaging

    try:
        return CudaPaging(QUICK_ARENA if quick else ARENA)
    except InputError as err:
        raise NotHere(str(err)) from None


def paging_tables(
    device: PagingDevice, quick: bool, progress: Progress | None = None,
    kept: Callable[[list[Row]], None] | None = None,
) -> dict[str, list[Row]]:  # fmt: skip
    """All tables; the device is closed afterwards."""
    try:
        hosts = ("huge", "ordered") if quick else ("huge", "ordered", "scattered")
        rows = measure(
            device, hosts=hosts, repetitions=3 if quick else 7, seconds=40 if quick else 110,
            progress=progress, kept=kept,
        )  # fmt: skip
        return {PAGING: rows, OUT: out_rows(device), DEVICE: [device.about()]}
    finally:
        device.close()


def out_rows(device: PagingDevice) -> list[Row]:
    """Rows with ``piece`` (bytes of one prefetch call) and ``written`` (by the GPU since they came)."""
    rows: list[Row] = []
    device.renew("huge")
    total = device.pages * 4096
    for piece in PIECES:
        for written in (False, True):

            def once(piece: int = piece, written: bool = written) -> float:
                return device.move_out(piece, total, written)

            once()
            about: dict[str, Any] = {"what": "to the host", "piece": piece, "written": written}
            rows.append({**about, **row(repeat(once, 7), total)})
    return rows
