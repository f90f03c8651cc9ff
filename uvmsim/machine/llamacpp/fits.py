"""Whether a plan fits a machine, and what is set aside for what llama.cpp does not count."""

from __future__ import annotations

from dataclasses import dataclass

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp.plan import MemoryPlan

RESERVE = 1 << 30
"""Left free on the device by default, bytes: what llama.cpp's own ``--fit`` leaves
(``fit_params_target``, `common/common.h`). It has to hold the CUDA context and kernels, cuBLAS's
workspace, the pools that grow with the first batches, and whatever else uses the card (a desktop)."""


@dataclass(frozen=True)
class Fit:
    """A plan against a machine; bytes. ``spare`` is negative where it does not fit."""

    fits: bool
    vram_bytes: int
    reserve: int
    spare: int
    host_spare: int | None
    """None where the machine's memory is not known."""


def fits(plan: MemoryPlan, hardware: Hardware, reserve: int = RESERVE) -> Fit:
    """Whether llama.cpp's buffers and the reserve fit ``hardware.vram_bytes``, and the rest the host.

    Under unified memory device buffers may be larger than VRAM; then they only have to fit VRAM and
    host memory together, and only the latter decides where it is known.
    """
    spare = hardware.vram_bytes - reserve - plan.vram_bytes
    host_spare = None if hardware.host_bytes is None else hardware.host_bytes - plan.host_bytes
    over = max(-spare, 0) if plan.config.unified_memory else 0
    if host_spare is not None:
        host_spare -= over
    on_device = spare >= 0 or plan.config.unified_memory
    on_host = host_spare is None or host_spare >= 0
    return Fit(on_device and on_host, plan.vram_bytes, reserve, spare, host_spare)
