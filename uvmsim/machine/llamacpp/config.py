"""What a user of llama.cpp chooses that decides where bytes go: its flags, by their names there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from traces.errors import InputError
from uvmsim.machine.llamacpp.cuda_rules import NO_FLASH
from uvmsim.machine.llamacpp.ggml import BLOCKS

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The tensors ``-ncmoe`` and ``-cmoe`` keep in host memory (`common/common.h`)."""
FLASH = ("auto", "on", "off")
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")


@dataclass(frozen=True)
class LlamaConfig:
    """A llama.cpp command line as far as memory goes; the defaults are llama.cpp's own.

    Raises `InputError` for what llama.cpp refuses too.
    """

    n_gpu_layers: int | None = None
    """``-ngl``: last blocks on the GPU, the output counts as one more; None: all."""
    n_cpu_moe: int = 0
    """``-ncmoe``: experts of the first blocks stay in host memory."""
    overrides: tuple[tuple[str, str], ...] = ()
    """``-ot``: (regular expression, ``"CPU"`` or ``"CUDA0"``); the first that matches decides."""
    n_ctx: int = 4096
    """``-c``: positions over all sequences."""
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    """``-np``"""
    kv_unified: bool = False
    type_k: str = "f16"
    """``-ctk``"""
    type_v: str = "f16"
    flash_attention: str = "auto"
    """``-fa``"""
    kv_offload: bool = True
    """False is ``-nkvo``."""
    op_offload: bool = True
    """False is ``--no-op-offload``: prefill on weights in host memory stays on the CPU."""
    swa_full: bool = False
    moe_cache_mib: int = 0
    """``--moe-cache-mib``"""
    mmap: bool = True
    """False is ``--no-mmap``: weights in host memory are read and page-locked, not mapped."""
    n_outputs_max: int = 0
    """Tokens a micro-batch that get logits; 0: all (llama-bench). llama-server: one a sequence."""
    unified_memory: bool = False
    """``GGML_CUDA_ENABLE_UNIFIED_MEMORY=1``: device buffers are managed memory and may exceed VRAM."""
    compute_capability: int = 900
    """Of the card, times 100; from 8.9 on small batches of attention have another kernel."""
    flash_kernels: bool = True
    """False: a CUDA build made with ``-DGGML_CUDA_FA=OFF``. Flash attention then runs on the CPU where
    it is forced, and ``auto`` turns it off."""
    gpu: bool = True
    """False: a build without CUDA (``n_gpu_layers`` then means nothing)."""

    @property
    def link(self) -> str:
        """Which term's constant (`uvmsim.machine.llama_terms`) a byte copied from host memory takes."""
        return "pageable" if self.mmap else "pinned"

    def __post_init__(self) -> None:
        for name, at_least in (
            ("n_ctx", 1), ("n_batch", 1), ("n_ubatch", 1), ("n_seq_max", 1), ("n_cpu_moe", 0),
            ("moe_cache_mib", 0), ("n_outputs_max", 0),
        ):  # fmt: skip
            if getattr(self, name) < at_least:
                raise InputError(f"{name} {getattr(self, name)} cannot be; at least {at_least}")
        if self.n_gpu_layers is not None and self.n_gpu_layers < 0:
            raise InputError(f"n_gpu_layers {self.n_gpu_layers} cannot be; leave it out for all")
        if self.flash_attention not in FLASH:
            raise InputError(f"flash attention {self.flash_attention!r}: one of {', '.join(FLASH)}")
        for name in ("type_k", "type_v"):
            kind = getattr(self, name)
            if kind.lower() not in CACHE_TYPES:
                raise InputError(f"{name} {kind!r}: one of {', '.join(CACHE_TYPES)}")
        for pattern, device in self.overrides:
            if device not in ("CPU", "CUDA0"):
                raise InputError(f"-ot {pattern}={device}: the device is CPU or CUDA0")
            try:
                re.compile(pattern)
            except re.error as e:
                raise InputError(f"-ot {pattern}={device}: no regular expression ({e})") from None

    # ---- what llama.cpp makes of the numbers (`src/llama-context.cpp`) ----------------------------

    @property
    def context(self) -> int:
        """Positions of one sequence: padded to 256, shared out among the sequences."""
        n = _pad(self.n_ctx)
        return n if self.kv_unified else _pad(n // self.n_seq_max)

    @property
    def n_streams(self) -> int:
        return 1 if self.kv_unified else self.n_seq_max

    @property
    def batch(self) -> int:
        return min(self.n_ctx, self.n_batch)

    @property
    def ubatch(self) -> int:
        return min(self.batch, self.n_ubatch)

    @property
    def outputs(self) -> int:
        """Rows of logits that a whole micro-batch asks for."""
        return min(self.tokens, self.n_outputs_max or self.batch)

    @property
    def tokens(self) -> int:
        """Tokens of the graph that memory is reserved for."""
        total = self.context * self.n_streams
        return min(total, self.ubatch)

    @property
    def cc(self) -> int:
        """The compute capability that decides about kernels."""
        return self.compute_capability if self.flash_kernels else NO_FLASH

    @property
    def k(self) -> str:
        return self.type_k.upper()

    @property
    def v(self) -> str:
        return self.type_v.upper()

    def rules(self) -> list[tuple[re.Pattern[str], str]]:
        """Patterns and devices in the order llama.cpp asks them: ``-ncmoe``, then ``-ot``."""
        experts = [(rf"blk\.{i}{EXPERTS}", "CPU") for i in range(self.n_cpu_moe)]
        return [(re.compile(p), d) for p, d in (*experts, *self.overrides)]


def _pad(n: int) -> int:
    return max(-(-n // 256) * 256, 256)


assert all(kind.upper() in BLOCKS for kind in CACHE_TYPES)
