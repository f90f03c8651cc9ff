"""One way to run a model under llama.cpp: its flags, and what kind of a way that is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp import LlamaConfig, LlamaModel

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

LARGE_CACHE_MIB = 1 << 15
"""A budget of an expert cache that is never too small for one token."""
PROJECTIONS = (("down",), ("gate",), ("gate", "up"), ("gate", "down"))
FUSED_PROJECTIONS = (("down",), ("gate_up",))
"""Projections of one more layer's experts that lie on the CPU; gate and up have one shape, and are one
matrix in some models."""


@dataclass(frozen=True)
class Candidate:
    """A configuration. Blocks count from the first, as llama.cpp's options do."""

    kind: str
    config: LlamaConfig
    """llama.cpp's flags: everything that bears on memory and speed."""
    cpu_blocks: int = 0
    """Blocks wholly on the CPU (``-ngl``). One more than there are: the head too."""
    projections: tuple[str, ...] = ()
    """Of the block behind those of ``-ncmoe``: experts' matrices with the CPU (``-ot``)."""
    slots: tuple[int, ...] = ()
    """Experts that the cache holds, by group of blocks that share a bank."""

    @property
    def ctx(self) -> int:
        return self.config.n_ctx

    @property
    def ubatch(self) -> int:
        return self.config.n_ubatch

    @property
    def kv_type(self) -> str:
        return self.config.type_k

    @property
    def cpu_experts(self) -> int:
        """Blocks whose experts are with the CPU (``-ncmoe``)."""
        return self.config.n_cpu_moe

    @property
    def cache_mib(self) -> int:
        return self.config.moe_cache_mib

    @property
    def mapped(self) -> bool:
        """The file is mapped (llama.cpp's default), so what lies with the CPU is not page-locked."""
        return self.config.mmap

    @property
    def placement(self) -> tuple[Any, ...]:
        """Equal for configurations that run alike: what the context's size does not bear on."""
        return (
            self.kind, self.ubatch, self.cpu_blocks, self.cpu_experts, self.projections,
            self.slots, self.mapped,
        )  # fmt: skip

    # ---- others like it --------------------------------------------------------------------------

    def with_(self, kind: str, **flags: Any) -> Candidate:
        """Another kind with some flags changed."""
        return replace(self, kind=kind, config=replace(self.config, **flags))

    def loaded(self, mapped: bool) -> Candidate:
        """The same, with the file mapped or read."""
        return self.with_(self.kind, mmap=mapped)

    def experts_away(self, n: int) -> Candidate:
        """Experts of the first ``n`` blocks on the CPU."""
        made = self.with_(NCMOE, n_cpu_moe=n, moe_cache_mib=0, overrides=())
        return replace(made, slots=(), projections=())

    def part_away(self, n: int, projections: tuple[str, ...]) -> Candidate:
        """`experts_away`, and some matrices of the next block's."""
        which = "|".join(projections)
        made = self.with_(
            TENSORS, n_cpu_moe=n, overrides=((rf"blk\.{n}\.ffn_({which})_exps", "CPU"),)
        )
        return replace(made, projections=projections)

    def blocks_away(self, model: LlamaModel, n: int, experts: int) -> Candidate:
        """The first ``n`` blocks on the CPU, and the experts of ``experts``."""
        total = model.n_layers_all + 1
        made = self.with_(LAYERS, n_gpu_layers=max(total - n, 0), n_cpu_moe=experts)
        return replace(made, cpu_blocks=n)

    def all_away(self, model: LlamaModel) -> Candidate:
        """Everything on the CPU."""
        made = self.with_(CPU, n_gpu_layers=0)
        return replace(made, cpu_blocks=model.n_layers + 1)

    # ---- what it is called -----------------------------------------------------------------------

    def flags(self, n_layers: int) -> list[str]:
        """llama.cpp's options (b11549, common/arg.cpp) but for model, context and KV type."""
        c = self.config
        words: list[str] = []
        if c.gpu:
            words += ["-ngl", "all" if c.n_gpu_layers is None else str(c.n_gpu_layers)]
        if c.n_cpu_moe >= n_layers:
            words += ["-cmoe"]
        elif c.n_cpu_moe:
            words += ["-ncmoe", str(c.n_cpu_moe)]
        for pattern, device in c.overrides:
            words += ["-ot", f"{pattern}={device}"]
        if c.moe_cache_mib:
            words += ["--moe-cache-mib", str(c.moe_cache_mib)]
        words += ["-ub", str(c.n_ubatch)]
        if not c.mmap:
            words += ["-lm", "none"]
        return words

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "kind": self.kind, "ctx": self.ctx, "ubatch": self.ubatch, "kv_type": self.kv_type,
            "cpu_blocks": self.cpu_blocks, "cpu_experts": self.cpu_experts,
            "projections": list(self.projections), "cache_mib": self.cache_mib,
            "slots": sum(self.slots), "mapped": self.mapped,
        }  # fmt: skip


def plain(hw: Hardware, ctx: int, ubatch: int, kv_type: str) -> Candidate:
    """Everything on the GPU, llama.cpp's defaults otherwise; one sequence of llama-server. On an engine
    that computes on the CPU alone everything is there."""
    terms = hw.engine.terms
    config = LlamaConfig(
        n_ctx=ctx, n_batch=max(2048, ubatch), n_ubatch=ubatch, type_k=kv_type, type_v=kv_type,
        flash_attention="on" if kv_type not in ("f32", "f16", "bf16") else "auto",
        n_outputs_max=1, gpu=terms is None or terms.gpu,
        flash_kernels=terms is None or terms.flash_attention,
    )  # fmt: skip
    return Candidate(GPU, config)
