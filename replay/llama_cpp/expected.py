"""What the constants are about, before anything is measured.

Single kernels of the calibration's models, as CUPTI recorded them on an H100 (llama.cpp b11549 with
flash attention): a kernel's end to the next one's, over its bytes, operations, outputs and depth. Few
runs leave small parts undetermined, and non-negative least squares then gives all of them to one
constant and nothing to the others; a weak pull towards these values keeps the parts apart. A card is
taken to keep the same share of its memory and multipliers.
"""

from __future__ import annotations

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llama_terms import COMPUTE, CPU, MEMORY, TERMS, stem_of

WEIGHT = 0.07
"""Of a constant off by its own size, beside a run's relative error."""
_NS: dict[str, float] = {
    "step": 120e3, "batch": 200e3, "kernel": 1.6e3, "row_depth": 0.2, "output": 0.64,
    "row_tile": 3.5e3, "row_tiles": 0.4, "argsort": 3.5e3, "batch_kernel": 3e3, "launch": 2e3,
    "sort": 25.0, "depth": 0.5, "sorted_call": 35e3, "mask": 3.6, "mask_window": 8.0,
    "fixup": 10e3, "flash_call": 15e3,
}  # fmt: skip
"""Nanoseconds a unit."""
_SHARES: dict[str, float] = {
    "row": 1.3, "row_experts": 1.3, "row_experts.Q4_K": 2.0, "row_experts.Q6_K": 1.8,
    "row_experts.MXFP4": 3.2, "row_experts.F16": 1.0, "attend": 3.0, "activations": 8.0,
    "dense": 1.2, "dense_bytes": 1.0, "expert_bytes": 1.0, "experts": 3.0, "experts.Q8_0": 2.4,
    "experts.Q6_K": 3.5, "experts.MXFP4": 2.7, "experts.F16": 17.0, "tiles": 1.8e5, "sorted": 5.0,
    "flash": 8.0, "tile_output": 1200.0,
}  # fmt: skip
"""Times the least that the machine's memory, multipliers or CPU allow for one byte or operation."""


def expected(machine: Hardware) -> dict[str, float]:
    """Nanoseconds a unit by term (or stem of typed ones), on a machine."""
    least = {
        MEMORY: 1e9 / machine.memory_bytes_per_s, COMPUTE: 1e9 / machine.compute_flops,
        CPU: 1e9 / machine.cpu_bytes_per_s,
    }  # fmt: skip
    return _NS | {k: x * least[TERMS[stem_of(k)].with_] for k, x in _SHARES.items()}
