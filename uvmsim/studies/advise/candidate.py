"""One way to run a model under llama.cpp: where weights lie, how large a micro-batch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GPU, NCMOE, TENSORS, CACHE = "gpu", "ncmoe", "tensors", "cache"
UNIFIED, LAYERS, CPU = "unified", "layers", "cpu"

KINDS = {
    GPU: "everything on the GPU",
    NCMOE: "experts of some layers on the CPU",
    TENSORS: "the same, by projection",
    CACHE: "expert cache",
    UNIFIED: "unified memory",
    LAYERS: "whole layers on the CPU",
    CPU: "everything on the CPU",
}
"""Kinds of configuration, in words."""

PROJECTIONS = (("down",), ("gate",), ("gate", "up"), ("gate", "down"))
"""Projections of one more layer's experts that lie on the CPU. Gate and up have one shape."""


@dataclass(frozen=True)
class Candidate:
    """A configuration. Blocks count from the first, as llama.cpp's options do."""

    kind: str
    ctx: int
    ubatch: int
    kv_type: str = "f16"
    cpu_blocks: int = 0
    """Blocks wholly on the CPU (``-ngl``). One more than there are: the head too."""
    cpu_experts: int = 0
    """Blocks whose experts are with the CPU (``-ncmoe``)."""
    projections: tuple[str, ...] = ()
    """Of the next block's experts: those with the CPU (``-ot``)."""
    cache_mib: int = 0
    slots: int = 0
    """Experts that the cache holds."""
    mapped: bool = False
    """The file is mapped (llama.cpp's default), so what lies with the CPU is not page-locked."""

    @property
    def placement(self) -> tuple[Any, ...]:
        """Equal for configurations that run alike: what the context's size does not bear on."""
        return (
            self.kind, self.ubatch, self.cpu_blocks, self.cpu_experts, self.projections,
            self.slots, self.mapped,
        )  # fmt: skip

    def flags(self, n_layers: int) -> list[str]:
        """llama.cpp's options (b11549, common/arg.cpp) but for model, context and KV type."""
        words: list[str] = []
        if self.kind in (LAYERS, CPU):
            words += ["-ngl", str(max(n_layers + 1 - self.cpu_blocks, 0))]
        else:
            words += ["-ngl", "all"]
        if self.cpu_experts and self.cpu_experts >= n_layers:
            words += ["-cmoe"]
        elif self.cpu_experts:
            words += ["-ncmoe", str(self.cpu_experts)]
        if self.projections:
            which = "|".join(self.projections)
            words += ["-ot", rf"blk\.{self.cpu_experts}\.ffn_({which})_exps=CPU"]
        if self.cache_mib:
            words += ["--moe-cache-mib", str(self.cache_mib)]
        words += ["-ub", str(self.ubatch)]
        if not self.mapped and self.kind not in (GPU, UNIFIED):
            words += ["-lm", "none"]
        return words

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
