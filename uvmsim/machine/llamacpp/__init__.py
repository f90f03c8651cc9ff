"""llama.cpp's memory, predicted: `memory(LlamaModel.load("model.gguf"), LlamaConfig(...))`."""

from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.fits import RESERVE, Fit, fits, reserve_for
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.placement import ExpertBytes, Placed, experts_by_block, place
from uvmsim.machine.llamacpp.plan import MemoryPlan, memory

__all__ = [
    "RESERVE",
    "ExpertBytes",
    "Fit",
    "LlamaConfig",
    "LlamaModel",
    "MemoryPlan",
    "Placed",
    "experts_by_block",
    "fits",
    "memory",
    "place",
    "reserve_for",
]
