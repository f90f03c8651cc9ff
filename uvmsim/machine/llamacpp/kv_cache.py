"""The KV cache by block: `src/llama-kv-cache.cpp` and `llama-kv-cache-iswa.cpp` of llama.cpp b11549.

A block keeps K and V of every position of every sequence; one that attends to a sliding window keeps
the window and a micro-batch, padded to 256; latent attention keeps one compressed row and no V.
Without flash attention V lies transposed, in rows as long as the widest block's.
"""

from __future__ import annotations

from dataclasses import dataclass

from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.cuda_rules import ALIGNMENT, HOST_ALIGNMENT, row_padding
from uvmsim.machine.llamacpp.ggml import GPU, HOST, PLAIN, Tensor
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.placement import layer_device


@dataclass(frozen=True)
class LayerCache:
    """Cache of one block. ``cells``: positions it keeps of one sequence."""

    block: int
    device: str
    cells: int
    k: Tensor
    v: Tensor | None

    @property
    def stored(self) -> int:
        """Bytes in its buffer, padding and alignment included."""
        return sum(_stored(t, self.device) for t in (self.k, self.v) if t is not None)


def _stored(t: Tensor, device: str) -> int:
    size, align = t.n_bytes, HOST_ALIGNMENT
    if device == GPU:
        align = ALIGNMENT
        if t.type not in PLAIN:
            size += row_padding(t.type, t.ne[0])
    return -(-size // align) * align


def cells_of(model: LlamaModel, config: LlamaConfig, block: int) -> int:
    """Positions a block keeps of one sequence (of all, where the cache is unified)."""
    if not model.windowed[block] or config.swa_full:
        return config.context
    sequences = config.n_seq_max if config.kv_unified else 1
    wanted = min(config.context, model.window * sequences + config.ubatch)
    return -(-wanted // 256) * 256


def layer_caches(model: LlamaModel, config: LlamaConfig) -> list[LayerCache]:
    """Every block's cache, in order."""
    widest = max(model.head_v * h for h in model.n_head_kv)
    out = []
    for block in range(model.n_layers):
        heads = model.n_head_kv[block]
        if heads == 0:
            continue
        device = layer_device(model, config, block) if config.kv_offload else HOST
        cells = cells_of(model, config, block)
        k = Tensor(config.k, (model.head_k * heads, cells, config.n_streams, 1))
        v = None
        if not model.mla:
            width = widest if config.flash_attention == "off" else model.head_v * heads
            v = Tensor(config.v, (width, cells, config.n_streams, 1))
        for t in (k, v):
            if t is not None:
                t.place = device
        out.append(LayerCache(block, device, cells, k, v))
    return out


def rotations(model: LlamaModel, config: LlamaConfig) -> tuple[int, int]:
    """Sides of the Hadamard matrices that quantised K and V are rotated with; 0: none."""

    def side(kind: str, head: int, *, doubled: bool) -> int:
        if kind in PLAIN or head == 0 or head % 64:
            return 0
        n = 64
        while doubled and head % (2 * n) == 0:
            n *= 2
        return n

    v = 0 if model.mla else side(config.v, model.head_v, doubled=False)
    return side(config.k, model.head_k, doubled=True), v
