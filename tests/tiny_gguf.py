"""Write small random Mixture-of-Experts models as GGUF files, in architectures llama.cpp loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHITECTURES = ("qwen3moe", "qwen2moe", "olmoe", "gpt-oss", "mixtral", "deepseek2", "glm4moe")
N_VOCAB = 258  # 256 bytes, start and end of text


def write_tiny(
    path: Path,
    arch: str = "qwen3moe",
    *,
    layers: int = 4,
    d: int = 64,
    heads: int = 4,
    experts: int = 16,
    used: int = 4,
    ff: int = 32,
    seed: int = 0,
    half: bool = False,
    tied: bool = False,
    uneven_norms: bool = False,
) -> Path:
    """Write a model with random weights and a tokenizer of single bytes; returns ``path``.

    ``mixtral`` is llama.cpp's ``llama`` with experts. ``phimoe``, whose norms have biases, is not among
    `ARCHITECTURES`. ``deepseek2`` has latent attention, a dense
    first block, a shared expert, a sigmoid router with selection bias and expert groups, normalised
    and scaled weights. ``half`` stores matrices as float16, ``tied`` leaves the LM head out,
    ``uneven_norms`` gives the norms of blocks weights between 0.5 and 1.5.
    """
    name = "llama" if arch == "mixtral" else arch
    w = gguf.GGUFWriter(str(path), name)
    rng = np.random.default_rng(seed)
    head, kv = d // heads, heads if arch in ("olmoe", "deepseek2") else heads // 2
    latent = arch == "deepseek2"
    dense_lead = 1 if arch in ("deepseek2", "glm4moe") else 0

    def random(*shape: int, s: float | None = None) -> np.ndarray:
        scale = s if s is not None else 1.0 / np.sqrt(shape[-1])
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    def add(tensor: str, x: np.ndarray, *, keep: bool = False) -> None:
        w.add_tensor(tensor, x.astype(np.float16) if half and x.ndim > 1 and not keep else x)

    def norm(n: int) -> np.ndarray:
        ones = np.ones(n, np.float32)
        return rng.uniform(0.5, 1.5, n).astype(np.float32) if uneven_norms else ones

    w.add_name(f"tiny-{arch}")
    w.add_context_length(4096)
    w.add_embedding_length(d)
    w.add_block_count(layers)
    w.add_feed_forward_length(2 * ff if dense_lead else ff)
    w.add_head_count(heads)
    w.add_head_count_kv(1 if latent else kv)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_expert_count(experts)
    w.add_expert_used_count(used)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    if arch in ("qwen3moe", "qwen2moe", "gpt-oss", "deepseek2", "glm4moe"):
        w.add_expert_feed_forward_length(ff)
    if arch == "qwen2moe":
        w.add_expert_shared_feed_forward_length(ff)
    if arch == "gpt-oss":
        w.add_sliding_window(128)
    if dense_lead:
        w.add_leading_dense_block_count(dense_lead)
        w.add_expert_shared_count(1)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_norm(True)
        w.add_expert_weights_scale(2.5)
    if latent:
        rope, rank = head // 2, d // 2
        w.add_q_lora_rank(rank)
        w.add_kv_lora_rank(rank)
        w.add_key_length(rank + rope)
        w.add_value_length(rank)
        w.add_key_length_mla(head + rope)
        w.add_value_length_mla(head)
        w.add_rope_dimension_count(rope)
        w.add_expert_group_count(4)
        w.add_expert_group_used_count(2)
    else:
        w.add_key_length(head)
        w.add_value_length(head)
        w.add_rope_dimension_count(head)
    _add_tokenizer(w)

    add("token_embd.weight", random(N_VOCAB, d, s=1.0))
    add("output_norm.weight", np.ones(d, np.float32))
    if arch == "phimoe":
        add("output_norm.bias", np.zeros(d, np.float32))
        add("output.bias", np.zeros(N_VOCAB, np.float32))
    if not tied:
        add("output.weight", random(N_VOCAB, d))
    for i in range(layers):
        p = f"blk.{i}."
        add(p + "attn_norm.weight", norm(d))
        if arch == "phimoe":
            add(p + "attn_norm.bias", random(d, s=0.5))
            add(p + "ffn_norm.bias", random(d, s=0.5))
        if latent:
            add(p + "attn_q_a.weight", random(rank, d))
            add(p + "attn_q_a_norm.weight", np.ones(rank, np.float32))
            add(p + "attn_q_b.weight", random(heads * (head + rope), rank))
            add(p + "attn_kv_a_mqa.weight", random(rank + rope, d))
            add(p + "attn_kv_a_norm.weight", np.ones(rank, np.float32))
            add(p + "attn_k_b.weight", random(heads, rank, head))
            add(p + "attn_v_b.weight", random(heads, head, rank))
        else:
            for tensor, rows in (("attn_q", heads), ("attn_k", kv), ("attn_v", kv)):
                add(f"{p}{tensor}.weight", random(rows * head, d))
                if arch in ("qwen2moe", "glm4moe", "gpt-oss", "phimoe"):
                    add(f"{p}{tensor}.bias", random(rows * head, s=0.02))
        add(p + "attn_output.weight", random(d, heads * head))
        if arch in ("qwen3moe", "olmoe"):
            width = head if arch == "qwen3moe" else d
            add(p + "attn_q_norm.weight", np.ones(width, np.float32))
            add(p + "attn_k_norm.weight", np.ones(width, np.float32))
        if arch in ("gpt-oss", "glm4moe"):
            add(p + "post_attention_norm.weight", norm(d))
        else:
            add(p + "ffn_norm.weight", norm(d))
        if arch == "gpt-oss":
            add(p + "attn_sinks.weight", np.zeros(heads, np.float32))
        if arch in ("gpt-oss", "phimoe"):
            add(p + "attn_output.bias", random(d, s=0.02))
        if i < dense_lead:
            for tensor, shape in (
                ("gate", (2 * ff, d)),
                ("up", (2 * ff, d)),
                ("down", (d, 2 * ff)),
            ):
                add(f"{p}ffn_{tensor}.weight", random(*shape))
            continue
        add(p + "ffn_gate_inp.weight", random(experts, d, s=2.0 / np.sqrt(d)), keep=True)
        for tensor, shape in (("gate", (ff, d)), ("up", (ff, d)), ("down", (d, ff))):
            add(f"{p}ffn_{tensor}_exps.weight", random(experts, *shape))
            if arch == "gpt-oss":
                add(f"{p}ffn_{tensor}_exps.bias", random(experts, shape[0], s=0.02), keep=True)
            if arch in ("qwen2moe", "deepseek2", "glm4moe"):
                add(f"{p}ffn_{tensor}_shexp.weight", random(*shape))
        if arch == "gpt-oss":
            add(p + "ffn_gate_inp.bias", random(experts, s=0.3))
        if arch == "qwen2moe":
            add(p + "ffn_gate_inp_shexp.weight", random(d))
        if dense_lead:
            add(p + "exp_probs_b.bias", random(experts, s=0.2))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def _add_tokenizer(w: Any) -> None:
    """Byte-level BPE with no merge that ever applies: one token a byte."""
    plain = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([*(letters[b] for b in range(256)), "<|bos|>", "<|eos|>"])
    w.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2)
    w.add_token_merges(["a b"])  # the key must exist; "ab" is no token, so it never applies
    w.add_bos_token_id(256)
    w.add_eos_token_id(257)
    w.add_add_bos_token(False)
    w.add_vocab_size(N_VOCAB)
