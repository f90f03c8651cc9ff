"""Names and shapes of the model's weights in a GGUF file of architecture qwen3moe, both ways."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from model import Config, TinyMoE

_WHOLE = {
    "embedding": "token_embd.weight",
    "output_norm": "output_norm.weight",
    "output": "output.weight",
}
_PER_LAYER = {
    "attention_norm": "attn_norm.weight",
    "query_norm": "attn_q_norm.weight",
    "key_norm": "attn_k_norm.weight",
    "attention_output": "attn_output.weight",
    "expert_norm": "ffn_norm.weight",
    "router": "ffn_gate_inp.weight",
    "down": "ffn_down_exps.weight",
}


def to_gguf(config: Config, state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Float32 tensors by GGUF name; the fused matrices are taken apart."""
    arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
    tensors = {theirs: arrays[ours] for ours, theirs in _WHOLE.items()}
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"blk.{layer}."
        for mine, yours in _PER_LAYER.items():
            tensors[theirs + yours] = arrays[ours + mine]
        ends = np.cumsum([config.heads, config.kv_heads]) * config.head_width
        parts = np.split(arrays[ours + "qkv"], ends)
        for letter, part in zip("qkv", parts, strict=True):
            tensors[f"{theirs}attn_{letter}.weight"] = part
        gate, up = np.split(arrays[ours + "gate_up"], 2, axis=1)
        tensors[theirs + "ffn_gate_exps.weight"] = np.ascontiguousarray(gate)
        tensors[theirs + "ffn_up_exps.weight"] = np.ascontiguousarray(up)
    return tensors


def from_gguf(path: Path, config: Config) -> TinyMoE:
    """The PyTorch model with the (dequantised) weights of a GGUF file."""
    tensors = {
        tensor.name: torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        )
        for tensor in gguf.GGUFReader(path).tensors
    }
    state = {ours: tensors[theirs] for ours, theirs in _WHOLE.items()}
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"blk.{layer}."
        for mine, yours in _PER_LAYER.items():
            state[ours + mine] = tensors[theirs + yours]
        state[ours + "qkv"] = torch.cat([tensors[f"{theirs}attn_{x}.weight"] for x in "qkv"])
        state[ours + "gate_up"] = torch.cat(
            [tensors[f"{theirs}ffn_{x}_exps.weight"] for x in ("gate", "up")], 1
        )
    model = TinyMoE(config)
    model.load_state_dict(state)
    return model
