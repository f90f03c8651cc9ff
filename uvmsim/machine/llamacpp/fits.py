"""Whether a plan fits a machine, and what is set aside for what llama.cpp does not count."""

from __future__ import annotations

from dataclasses import dataclass

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.plan import MemoryPlan

RESERVE = 1 << 30
"""Left free on the device, bytes, for micro-batches of up to 512 tokens: what llama.cpp's own ``--fit``
leaves (``fit_params_target``, `common/common.h`). It has to hold the CUDA context and kernels, cuBLAS's
workspace, the pools that grow with the first batches, and whatever else uses the card (a desktop).
Measured on an H100: 526 MiB before a model, 170 to 215 MiB more after a prompt of 512 tokens."""
POOL_PER_TOKEN = 1 << 19
"""Added for every token of a micro-batch above 512, bytes: a bound, not a prediction. Measured: 442 to
706 MiB after a prompt of 2,048 tokens, at most 0.32 MiB a token more than at 512."""


def reserve_for(config: LlamaConfig) -> int:
    """What to set aside for a configuration, bytes."""
    return RESERVE + POOL_PER_TOKEN * max(config.ubatch - 512, 0)


@dataclass(frozen=True)
class Fit:
    """A plan against a machine; bytes. ``spare`` is negative where it does not fit."""

    fits: bool
    vram_bytes: int
    reserve: int
    spare: int
    host_spare: int | None
    """None where the machine's memory is not known."""


def fits(plan: MemoryPlan, hardware: Hardware, reserve: int | None = None) -> Fit:
    """Whether llama.cpp's buffers and the reserve fit ``hardware.vram_bytes``, and the rest the host.

    ``reserve``: bytes set aside on the device; `reserve_for` by default.

    Under unified memory device buffers may be larger than VRAM; then they only have to fit VRAM and
    host memory together, and only the latter decides where it is known.
    """
    if reserve is None:
        reserve = reserve_for(plan.config)
    spare = hardware.vram_bytes - reserve - plan.vram_bytes
    host_spare = None if hardware.host_bytes is None else hardware.host_bytes - plan.host_bytes
    over = max(-spare, 0) if plan.config.unified_memory else 0
    if host_spare is not None:
        host_spare -= over
    on_device = spare >= 0 or plan.config.unified_memory
    on_host = host_spare is None or host_spare >= 0
    return Fit(on_device and on_host, plan.vram_bytes, reserve, spare, host_spare)
