"""Write Mixture-of-Experts models of any shape and type with random weights, fast.

Text they produce is noise; sizes, types and kernels are real. Blocks of quantised types hold random
codes under one fixed scale, so that no weight is out of range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 32 << 20
"""Bytes of random blocks that are made; tensors repeat them."""


@dataclass(frozen=True)
class Shape:
    """A model's shape and types; ``architecture`` is ``qwen3moe`` or ``gpt-oss``."""

    architecture: str = "qwen3moe"
    n_layers: int = 4
    n_embd: int = 1024
    n_heads: int = 16
    n_kv_heads: int = 4
    head_dim: int = 64
    n_experts: int = 32
    top_k: int = 4
    n_ff_expert: int = 768
    n_vocab: int = 8192
    experts: str = "F16"
    """ggml type of the expert matrices."""
    dense: str = "F16"
    """ggml type of attention, embedding and head."""
    n_ctx: int = 32768
    seed: int = 0


def write_all(folder: str | Path, shapes: Mapping[str, Shape], processes: int) -> Iterator[Path]:
    """Write ``FOLDER/NAME.gguf`` for each shape, some side by side; the paths, in their order."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{name}.gguf" for name in shapes]
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(write, paths, shapes.values())


def write(path: str | Path, s: Shape) -> Path:
    """Write the model; returns ``path``. Raises `ValueError` where rows are no whole blocks."""
    w, tensors = _open(path, s)
    out = w.fout[0]
    rng = np.random.Generator(np.random.PCG64(s.seed))
    pools: dict[tuple[str, float], np.ndarray] = {}
    for name, shape, kind in tensors:
        t = _sizes(kind)
        left = int(np.prod(shape)) // t[0] * t[1]
        if len(shape) == 1:
            fill = np.zeros(shape, np.float32) if "sinks" in name or "bias" in name else np.ones(
                shape, np.float32
            )  # fmt: skip
            if name.endswith("ffn_gate_inp.bias"):
                fill = rng.standard_normal(shape, np.float32) * np.float32(0.3)
            out.write(fill.tobytes())
        else:
            key = (kind, round(1.0 / np.sqrt(shape[-1]), 4) * (2 if "gate_inp" in name else 1))
            if key not in pools:
                pools[key] = _blocks(kind, key[1], rng)
            pool = pools[key]
            at = int(rng.integers(0, len(pool))) // t[1] * t[1]
            while left:
                part = pool[at : at + left]
                out.write(part.data)
                left -= len(part)
                at = 0
        _pad(out, w.data_alignment)
    w.close()
    return Path(path)


def header(path: str | Path, s: Shape) -> Path:
    """The same file with a hole for its weights: takes no disk, loads as zeros. Returns ``path``."""
    w, tensors = _open(path, s)
    size = w.fout[0].tell()
    for _, shape, kind in tensors:
        block, nbytes = _sizes(kind)
        size += int(np.prod(shape)) // block * nbytes
        size += -size % w.data_alignment
    w.close()
    with Path(path).open("r+b") as f:
        f.truncate(size)
    return Path(path)


def _open(path: str | Path, s: Shape) -> tuple[Any, list[tuple[str, list[int], str]]]:
    """A writer whose file has everything but the weights, and what these are."""
    gguf: Any = import_module("gguf")
    w = gguf.GGUFWriter(str(path), s.architecture)
    _describe(w, s)
    tensors = list(_tensors(s))
    for name, shape, kind in tensors:
        t = gguf.GGMLQuantizationType[kind]
        block, size = _sizes(kind)
        if shape[-1] % block:
            raise ValueError(f"{name}: rows of {shape[-1]} are no multiple of {kind}'s {block}")
        nbytes = int(np.prod(shape)) // block * size
        bytes_shape = [*shape[:-1], shape[-1] // block * size]
        plain = kind in ("F32", "F16")
        w.add_tensor_info(
            name, shape if plain else bytes_shape,
            np.dtype(np.float32 if kind == "F32" else np.float16 if plain else np.uint8), nbytes,
            None if plain else t,
        )  # fmt: skip
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    _pad(w.fout[0], w.data_alignment)
    return w, tensors


def _sizes(kind: str) -> tuple[int, int]:
    """Weights in a block of a type, and its bytes."""
    gguf: Any = import_module("gguf")
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(block), int(size)


def _pad(out: Any, alignment: int) -> None:
    out.write(b"\0" * (-out.tell() % alignment))


def _blocks(kind: str, scale: float, rng: np.random.Generator) -> np.ndarray:
    """uint8: random blocks of a type whose weights have about the standard deviation ``scale``."""
    if kind == "F32":
        return (rng.standard_normal(CHUNK // 4, np.float32) * np.float32(scale)).view(np.uint8)
    if kind == "F16":
        x = rng.standard_normal(CHUNK // 2, np.float32) * np.float32(scale)
        return x.astype(np.float16).view(np.uint8)

    def half(x: float) -> np.ndarray:
        return np.array([x], np.float16).view(np.uint8)

    if kind == "Q8_0":
        n = CHUNK // 34
        b = rng.integers(0, 256, (n, 34), dtype=np.uint8)
        b[:, :2] = half(scale / 74)
    elif kind == "Q4_0":
        n = CHUNK // 18
        b = rng.integers(0, 256, (n, 18), dtype=np.uint8)
        b[:, :2] = half(scale / 4.6)
    elif kind == "MXFP4":
        n = CHUNK // 17
        b = rng.integers(0, 256, (n, 17), dtype=np.uint8)
        b[:, 0] = 127 + int(np.floor(np.log2(scale / 3)))  # e8m0
    elif kind == "Q4_K":
        n = CHUNK // 144
        b = rng.integers(0, 256, (n, 144), dtype=np.uint8)
        b[:, :2] = half(scale / 4.6 / 32)  # scales of 6 bits, mean 32
        b[:, 2:4] = half(scale / 4.6 / 32 * 7.5)
    elif kind == "Q6_K":
        n = CHUNK // 210
        b = rng.integers(0, 256, (n, 210), dtype=np.uint8)
        b[:, 208:] = half(scale / 18.5 / 74)
    else:
        raise ValueError(f"{kind}: no random blocks for this type")
    return b.reshape(-1)


def _tensors(s: Shape) -> Any:
    """``(name, shape outermost first, type)`` of each tensor, in file order."""
    q, kv = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
    oss = s.architecture == "gpt-oss"
    yield "token_embd.weight", [s.n_vocab, s.n_embd], s.dense
    yield "output_norm.weight", [s.n_embd], "F32"
    yield "output.weight", [s.n_vocab, s.n_embd], s.dense
    for i in range(s.n_layers):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", [s.n_embd], "F32"
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            yield f"{p}{name}.weight", [rows, s.n_embd], s.dense
            if oss:
                yield f"{p}{name}.bias", [rows], "F32"
        yield p + "attn_output.weight", [s.n_embd, q], s.dense
        if oss:
            yield p + "attn_output.bias", [s.n_embd], "F32"
            yield p + "attn_sinks.weight", [s.n_heads], "F32"
            yield p + "post_attention_norm.weight", [s.n_embd], "F32"
        else:
            yield p + "attn_q_norm.weight", [s.head_dim], "F32"
            yield p + "attn_k_norm.weight", [s.head_dim], "F32"
            yield p + "ffn_norm.weight", [s.n_embd], "F32"
        yield p + "ffn_gate_inp.weight", [s.n_experts, s.n_embd], "F32"
        if oss:
            yield p + "ffn_gate_inp.bias", [s.n_experts], "F32"
        for name, rows, cols in (
            ("gate", s.n_ff_expert, s.n_embd), ("up", s.n_ff_expert, s.n_embd),
            ("down", s.n_embd, s.n_ff_expert),
        ):  # fmt: skip
            yield f"{p}ffn_{name}_exps.weight", [s.n_experts, rows, cols], s.experts
            if oss:
                yield f"{p}ffn_{name}_exps.bias", [s.n_experts, rows], "F32"


def _describe(w: Any, s: Shape) -> None:
    w.add_name(
        f"synthetic {s.architecture} {s.experts} {s.n_layers}x{s.n_experts}, {s.n_embd} wide"
    )
    w.add_context_length(s.n_ctx)
    w.add_embedding_length(s.n_embd)
    w.add_block_count(s.n_layers)
    w.add_feed_forward_length(s.n_ff_expert)
    w.add_expert_feed_forward_length(s.n_ff_expert)
    w.add_head_count(s.n_heads)
    w.add_head_count_kv(s.n_kv_heads)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_expert_count(s.n_experts)
    w.add_expert_used_count(s.top_k)
    if s.architecture == "gpt-oss":
        w.add_sliding_window(128)
    w.add_tokenizer_model("none")
    w.add_vocab_size(s.n_vocab)
