"""GGUF models of any size that take no disk: the header is real, the weights are a hole of zeros.

    python sparse_gguf.py FOLDER [NAME ...]

llama.cpp loads them like any other; for questions of bytes and buffers they are as good.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

LEADING = ("deepseek2", "glm4moe", "dots1")
"""Architectures with a dense first block, a shared expert and a sigmoid router."""


@dataclass(frozen=True)
class Shape:
    """A model. Types: experts, everything else of two dimensions, embedding and head."""

    arch: str
    layers: int = 4
    d: int = 512
    heads: int = 8
    kv_heads: int = 2
    head: int = 64
    experts: int = 16
    used: int = 4
    ff: int = 256
    vocab: int = 4096
    ctx: int = 131072
    window: int = 128
    dense_ff: int = 0
    """Width of dense blocks (all, where there are no experts; the first, where the architecture
    leads with them)."""
    expert_type: str = "F16"
    other_type: str = "F16"
    vocab_type: str = "F16"
    tied: bool = False

    @property
    def name(self) -> str:
        return "llama" if self.arch == "mixtral" else self.arch


SHAPES = {
    "mixtral-q4": Shape("mixtral", 8, 2048, 32, 8, 64, 8, 2, 3584, 32000, expert_type="Q4_0",
                        other_type="Q8_0", vocab_type="Q8_0"),
    "qwen3moe-q8": Shape("qwen3moe", 12, 2048, 32, 4, 128, 64, 8, 768, 151936, expert_type="Q8_0",
                         other_type="Q8_0", vocab_type="Q8_0"),
    "qwen2moe-f16": Shape("qwen2moe", 8, 1024, 16, 16, 64, 32, 4, 704, 60000),
    "olmoe-f16": Shape("olmoe", 8, 1024, 16, 16, 64, 64, 8, 512, 50304),
    "gpt-oss-mxfp4": Shape("gpt-oss", 6, 2880, 64, 8, 64, 32, 4, 2880, 201088,
                           expert_type="MXFP4", other_type="BF16", vocab_type="BF16"),
    "deepseek2-q4": Shape("deepseek2", 8, 2048, 16, 1, 128, 64, 6, 1408, 102400, dense_ff=10944,
                          expert_type="Q4_0", other_type="Q8_0", vocab_type="Q8_0"),
    "glm4moe-q8": Shape("glm4moe", 8, 2048, 32, 4, 128, 32, 8, 1408, 151552, dense_ff=8192,
                        expert_type="Q8_0", other_type="Q8_0", vocab_type="Q8_0"),
    "llama-dense-q8": Shape("llama", 8, 2048, 32, 8, 64, 0, 0, 0, 128256, dense_ff=8192,
                            expert_type="Q8_0", other_type="Q8_0", vocab_type="Q8_0", tied=True),
    "minimax-m2-q8": Shape("minimax-m2", 6, 3072, 48, 8, 128, 32, 8, 1536, 200064,
                           expert_type="Q8_0", other_type="Q8_0", vocab_type="Q8_0"),
    "dots1-q4": Shape("dots1", 6, 2048, 32, 32, 128, 32, 6, 1408, 152064, dense_ff=10944,
                      expert_type="Q4_0", other_type="Q8_0", vocab_type="Q8_0"),
    "qwen2-dense-q8": Shape("qwen2", 6, 2048, 16, 2, 128, 0, 0, 0, 151936, dense_ff=11008,
                            expert_type="Q8_0", other_type="Q8_0", vocab_type="Q8_0", tied=True),
    "qwen3-dense-f16": Shape("qwen3", 6, 1024, 16, 8, 128, 0, 0, 0, 151936, dense_ff=3072, tied=True),
}  # fmt: skip
"""Models of 0.3 to 3 GiB in the families llama.cpp's users run, at real widths."""


def write_sparse(path: Path, shape: Shape, part: tuple[int, int] = (0, 1)) -> Path:
    """Write the file; it is as long as the model and takes a few MB of disk. Returns ``path``.

    ``part``: (i, n) writes the i-th of n parts of a split model.
    """
    i, n_parts = part
    w = gguf.GGUFWriter(str(path), shape.name)
    _metadata(w, shape)
    everything = tensors(shape)
    if n_parts > 1:
        w.add_uint16("split.no", i)
        w.add_uint16("split.count", n_parts)
        w.add_int32("split.tensors.count", len(everything))
    each = -(-len(everything) // n_parts)
    at = 0
    for name, dims, kind in everything[i * each : (i + 1) * each]:
        quant = GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[quant]
        n = int(np.prod(dims))
        nbytes = n // block * size
        stored = [*dims[1:][::-1], dims[0] // block * size] if block > 1 else list(dims[::-1])
        dtype = (
            np.uint8 if block > 1 else {"F32": np.float32, "F16": np.float16}.get(kind, np.uint16)
        )
        w.add_tensor_info(name, stored, np.dtype(dtype), nbytes, raw_dtype=quant)
        at += -(-nbytes // 32) * 32
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    w.close()
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.truncate(-(-size // 32) * 32 + at)
    return path


def _metadata(w: Any, s: Shape) -> None:
    dense_lead = s.arch in LEADING
    latent = s.arch == "deepseek2"
    w.add_name(f"sparse-{s.arch}")
    w.add_context_length(s.ctx)
    w.add_embedding_length(s.d)
    w.add_block_count(s.layers)
    w.add_feed_forward_length(s.dense_ff or s.ff)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-6)
    if s.experts:
        w.add_expert_count(s.experts)
        w.add_expert_used_count(s.used)
    if s.arch in ("qwen3moe", "qwen2moe", "gpt-oss", "minimax-m2", *LEADING):
        w.add_expert_feed_forward_length(s.ff)
    if s.arch == "qwen2moe":
        w.add_expert_shared_feed_forward_length(s.ff)
    if s.arch == "gpt-oss":
        w.add_sliding_window(s.window)
    if s.arch == "minimax-m2":
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if dense_lead:
        w.add_leading_dense_block_count(1)
        w.add_expert_shared_count(1)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_norm(True)
        w.add_expert_weights_scale(2.5)
    if latent:
        w.add_q_lora_rank(1536)
        w.add_kv_lora_rank(512)
        w.add_key_length(576)
        w.add_value_length(512)
        w.add_key_length_mla(192)
        w.add_value_length_mla(128)
        w.add_rope_dimension_count(64)
    else:
        w.add_key_length(s.head)
        w.add_value_length(s.head)
        w.add_rope_dimension_count(s.head)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([f"t{i}" for i in range(s.vocab)])
    w.add_token_types([gguf.TokenType.NORMAL] * s.vocab)
    w.add_token_merges(["a b"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.add_vocab_size(s.vocab)


def tensors(s: Shape) -> list[tuple[str, tuple[int, ...], str]]:
    """``(name, dimensions, type)``, innermost dimension first."""
    out: list[tuple[str, tuple[int, ...], str]] = []

    def add(name: str, *dims: int, kind: str | None = None) -> None:
        out.append((name, dims, kind or (s.other_type if len(dims) > 1 else "F32")))

    add("token_embd.weight", s.d, s.vocab, kind=s.vocab_type)
    add("output_norm.weight", s.d)
    if not s.tied:
        add("output.weight", s.d, s.vocab, kind=s.vocab_type)
    for i in range(s.layers):
        _block(s, i, add)
    return out


def _block(s: Shape, i: int, add: Any) -> None:
    p, d = f"blk.{i}.", s.d
    q, kv = s.heads * s.head, s.kv_heads * s.head
    add(p + "attn_norm.weight", d)
    if s.arch == "deepseek2":
        add(p + "attn_q_a.weight", d, 1536)
        add(p + "attn_q_a_norm.weight", 1536)
        add(p + "attn_q_b.weight", 1536, s.heads * 192)
        add(p + "attn_kv_a_mqa.weight", d, 576)
        add(p + "attn_kv_a_norm.weight", 512)
        add(p + "attn_k_b.weight", 128, 512, s.heads)
        add(p + "attn_v_b.weight", 512, 128, s.heads)
        q = s.heads * 128
    else:
        for tensor, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            add(f"{p}{tensor}.weight", d, rows)
            if s.arch in ("qwen2", "qwen2moe", "glm4moe", "gpt-oss"):
                add(f"{p}{tensor}.bias", rows)
    add(p + "attn_output.weight", q, d)
    if s.arch in ("qwen3moe", "olmoe", "qwen3", "minimax-m2", "dots1"):
        whole = s.arch in ("olmoe", "minimax-m2")
        add(p + "attn_q_norm.weight", q if whole else s.head)
        add(p + "attn_k_norm.weight", kv if whole else s.head)
    if s.arch in ("gpt-oss", "glm4moe"):
        add(p + "post_attention_norm.weight", d)
    else:
        add(p + "ffn_norm.weight", d)
    if s.arch == "gpt-oss":
        add(p + "attn_sinks.weight", s.heads)
        add(p + "attn_output.bias", d)
    if not s.experts or (i == 0 and s.arch in LEADING):
        add(p + "ffn_gate.weight", d, s.dense_ff)
        add(p + "ffn_up.weight", d, s.dense_ff)
        add(p + "ffn_down.weight", s.dense_ff, d)
        return
    add(p + "ffn_gate_inp.weight", d, s.experts, kind="F32")
    for tensor, shape in (("gate", (d, s.ff)), ("up", (d, s.ff)), ("down", (s.ff, d))):
        add(f"{p}ffn_{tensor}_exps.weight", *shape, s.experts, kind=s.expert_type)
        if s.arch == "gpt-oss":
            add(f"{p}ffn_{tensor}_exps.bias", shape[1], s.experts, kind="F32")
        if s.arch in ("qwen2moe", *LEADING):
            add(f"{p}ffn_{tensor}_shexp.weight", *shape)
    if s.arch == "gpt-oss":
        add(p + "ffn_gate_inp.bias", s.experts)
    if s.arch == "qwen2moe":
        add(p + "ffn_gate_inp_shexp.weight", d)
    if s.arch in ("minimax-m2", *LEADING):
        add(p + "exp_probs_b.bias", s.experts)


def small(shape: Shape) -> Shape:
    """The same family in some tens of MiB: three or four layers, a quarter of the widths inside."""
    return replace(
        shape,
        layers=max(3, shape.layers * 2 // 5),
        experts=min(shape.experts, 16),
        ff=shape.ff // 4 // 64 * 64,
        dense_ff=shape.dense_ff // 4 // 64 * 64,
        vocab=min(shape.vocab, 4000),
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or SHAPES:
        print(write_sparse(folder / f"{name}.gguf", SHAPES[name]))
