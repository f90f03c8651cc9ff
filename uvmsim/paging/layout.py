"""Where a model's tensors lie in its managed buffer, as llama.cpp places them.

ggml puts all weights of the GPU into one buffer in the order in which the tensors were created, each
aligned to 128 bytes; rows of a quantised matrix whose length is no multiple of 512 weights are padded
by what is missing (ggml-cuda.cu, ggml_backend_cuda_buffer_type_get_alloc_size; ggml-alloc.c). The
token embedding stays with the CPU. A GGUF file gives its own order, which for some architectures
differs from the order of creation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from traces.faults import BLOCK, PAGE
from uvmsim.machine.model import Model
from uvmsim.machine.model_spec import TYPES, role_of

__all__ = ["BLOCK", "PAGE", "Layout", "Placed", "layout"]

ALIGN = 128
PAD_WEIGHTS = 512
MMQ_ITER_K = 256
"""Weights of a row that a prefill kernel loads at a time (ggml-cuda/mmq.cuh)."""
FLOATS = ("F16", "BF16", "F32")
ROW_GUESS = 1536
"""Bytes of a matrix row where the model's width is unknown."""


@dataclass(frozen=True)
class Placed:
    """A tensor at a byte offset from the start of its buffer."""

    name: str
    block: int
    """Transformer block, -1 for the output layer."""
    offset: int
    nbytes: int
    row_bytes: int
    """Bytes of one row: what one thread block of a decode kernel reads."""
    strips: int = 1
    """Times that a prefill kernel comes back to a row, 1 to 127."""
    experts: int = 1
    """Matrices in it: the model's experts for an expert bank, else 1."""
    is_float: bool = False
    """F16, BF16 or F32: not quantised."""


@dataclass(frozen=True)
class Layout:
    """All weights of the GPU buffer, in order of address."""

    tensors: tuple[Placed, ...]
    nbytes: int

    def of_block(self, block: int) -> list[Placed]:
        """Tensors of a transformer block (-1: the output layer), by address."""
        return [t for t in self.tensors if t.block == block]

    def boundaries(self, n_layers: int) -> np.ndarray:
        """int64 [n_layers + 1]: first 2 MiB chunk of each block's tensors, and the end."""
        first = [min(t.offset for t in self.of_block(b)) // BLOCK for b in range(n_layers)]
        return np.array([*first, -(-self.nbytes // BLOCK)], np.int64)


def layout(model: Model) -> Layout:
    """The GPU buffer of ``model``; banks of experts in place of tensors where those are unknown."""
    placed, at = [], 0
    for name, kind, nbytes in _tensors(model):
        role, block = role_of(name)
        if role == "embedding" and not _is_head(model):
            continue
        bank = role == "expert" and "_exps." in name
        row_weights = _row_weights(model, name, kind, nbytes)
        weights, size = TYPES.get(kind.upper(), (1, 1))
        row = max(row_weights // weights * size, 1)
        at = -(-at // ALIGN) * ALIGN
        experts = model.n_experts if bank else 1
        own = min(row, nbytes // experts)
        strips = min(max(-(-(own // size * weights) // MMQ_ITER_K), 1), 127)
        is_float = kind.upper() in FLOATS
        placed.append(Placed(name, block, at, nbytes, own, strips, experts, is_float))
        missing = -row_weights % PAD_WEIGHTS
        at += nbytes + (missing // weights * size if weights > 1 else 0)
    return Layout(tuple(placed), at)


def _is_head(model: Model) -> bool:
    """The embedding table is the output matrix too, and then lies on the GPU."""
    return model.embedding_bytes == 0


def _tensors(model: Model) -> list[tuple[str, str, int]]:
    if model.tensors:
        return list(model.tensors)
    # A model known by its sizes alone: blocks in order, in each what is dense, then the experts.
    out = [("output.weight", "raw", model.output_bytes)] if model.output_bytes else []
    moe = {block: i for i, block in enumerate(model.moe_layers)}
    for block in range(model.n_layers):
        if model.dense_bytes[block]:
            out.append((f"blk.{block}.dense.weight", "raw", model.dense_bytes[block]))
        if block in moe:
            third = model.expert_bytes[moe[block]] // 3
            last = model.expert_bytes[moe[block]] - 2 * third
            for part, size in (("gate", third), ("down", third), ("up", last)):
                name = f"blk.{block}.ffn_{part}_exps.weight"
                out.append((name, "raw", size * model.n_experts))
    return out


def _row_weights(model: Model, name: str, kind: str, nbytes: int) -> int:
    """Length of a row in weights (bytes for a raw tensor)."""
    if kind == "raw":
        return ROW_GUESS
    weights, size = TYPES.get(kind.upper(), (1, 1))
    if name.endswith(".bias") or "norm" in name or "sinks" in name:
        return nbytes * weights // size
    embd = model.n_embd or 0
    if re.search(r"ffn_down(_exps|_shexp)?\.weight", name):
        per = model.n_experts if "_exps" in name else 1
        return nbytes // per * weights // size // embd if embd else ROW_GUESS
    if name.endswith("attn_output.weight") and embd:
        return nbytes * weights // size // embd
    return embd or ROW_GUESS
