"""A model described by its shape: the TOML schema, and the tensors that follow from it.

A file gives the numbers of a model card's ``config.json`` and a storage type for each class of
tensor; every byte count is computed from the tensors' shapes, as llama.cpp stores them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# Weights a block and bytes a block; ggml's block layouts (ggml-common.h), FP8 without its scales.
TYPES: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "FP8": (1, 1),
    "Q8_0": (32, 34), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q4_0": (32, 18), "Q4_1": (32, 20),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17), "NVFP4": (64, 36),
}  # fmt: skip


def _known_type(name: str) -> str:
    if name.upper() not in TYPES:
        raise ValueError(f"unknown tensor type {name!r}; one of {' '.join(TYPES)}")
    return name.upper()


Type = Annotated[str, AfterValidator(_known_type)]
Count = Annotated[int, Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Shape(_Table):
    """Sizes of the whole model, by config.json's names: num_hidden_layers, hidden_size, ..."""

    source: str
    n_layers: Count
    n_embd: Count
    n_vocab: Count
    tied_embeddings: bool = False
    """The LM head is the token embedding (tie_word_embeddings): one table, stored once."""


class Experts(_Table):
    """The routed experts and what stands beside them in the feed-forward part."""

    source: str
    n_experts: Count
    top_k: Count
    n_ff_expert: Count
    n_dense_layers: int = Field(default=0, ge=0)
    """Leading blocks with an ordinary feed-forward of ``n_ff_dense`` (first_k_dense_replace)."""
    n_ff_dense: Count | None = None
    n_shared: int = Field(default=0, ge=0)
    """Shared experts, which every token uses; they count as dense bytes."""
    n_ff_shared: Count | None = None
    """Width of all shared experts together; ``n_shared * n_ff_expert`` where not given."""
    expert_bias: bool = False
    router_bias: bool = False
    score_bias: bool = False
    """A correction added to the router's scores for the choice only (e_score_correction_bias)."""

    @model_validator(mode="after")
    def _consistent(self) -> Experts:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k {self.top_k} is more than n_experts {self.n_experts}")
        if self.n_dense_layers and self.n_ff_dense is None:
            raise ValueError("n_dense_layers needs n_ff_dense (config.json's intermediate_size)")
        return self


class Attention(_Table):
    """Grouped-query attention, or DeepSeek's multi-head latent attention (``kind = "mla"``)."""

    source: str
    kind: Literal["gqa", "mla"] = "gqa"
    n_heads: Count
    n_kv_heads: Count | None = None
    head_dim: Count | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    """Norms on queries and keys: one of head_dim shared by heads, or one over all heads."""
    q_lora_rank: Count | None = None
    kv_lora_rank: Count | None = None
    qk_nope_head_dim: Count | None = None
    qk_rope_head_dim: Count | None = None
    v_head_dim: Count | None = None

    @model_validator(mode="after")
    def _complete(self) -> Attention:
        mla = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        for key in mla if self.kind == "mla" else ("n_kv_heads", "head_dim"):
            if getattr(self, key) is None:
                raise ValueError(f"kind {self.kind!r} needs {key}")
        return self

    def kv_elements(self) -> int:
        """Elements of one token in one block's KV cache (MLA: the compressed latent)."""
        if self.kind == "mla":
            return (self.kv_lora_rank or 0) + (self.qk_rope_head_dim or 0)
        return 2 * (self.n_kv_heads or 0) * (self.head_dim or 0)


class Types(_Table):
    """How each class of tensor is stored. ``gate``, ``up``, ``down`` default to ``experts``."""

    source: str
    experts: Type
    gate: Type | None = None
    up: Type | None = None
    down: Type | None = None
    attention: Type
    shared: Type | None = None
    dense: Type | None = None
    router: Type = "F32"
    norms: Type = "F32"
    output: Type
    embedding: Type


class Routing(_Table):
    """How unevenly llama-bench's random tokens use the experts (`uvmsim.studies.llamabench`)."""

    source: str
    prefill_sigma: Annotated[float, Field(ge=0)]
    """Standard deviation of an expert's log popularity in a prefill; 0 is uniform."""
    decode_sigma: Annotated[float, Field(ge=0)]


class ModelSpec(_Table):
    """A model's TOML file."""

    name: str
    summary: str
    architecture: str
    """llama.cpp's name of it (``general.architecture`` of its GGUF files)."""
    params: int | None = None
    """The published parameter count, for checking; not used in any computation."""
    params_source: str | None = None
    shape: Shape
    experts: Experts
    attention: Attention
    types: Types
    routing: Routing | None = None

    @model_validator(mode="after")
    def _layers(self) -> ModelSpec:
        if self.experts.n_dense_layers >= self.shape.n_layers:
            raise ValueError("experts.n_dense_layers leaves no MoE layer")
        for tensor in tensors_of(self):
            tensor.check()
        return self


@dataclass(frozen=True)
class Tensor:
    """One stored tensor. ``shape`` is in ggml's order: the contiguous dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def params(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        weights, size = TYPES[self.type]
        return self.params // weights * size

    def check(self) -> None:
        """ValueError where a row is not whole blocks: the type cannot hold this tensor."""
        weights, _ = TYPES[self.type]
        if self.shape[0] % weights:
            raise ValueError(
                f"types: {self.type} stores rows in blocks of {weights}, but a row of "
                f"{self.name} has {self.shape[0]} weights; choose another type "
                "(llama.cpp falls back to Q5_0 or Q8_0)"
            )


def role_of(name: str) -> tuple[str, int]:
    """``("expert" | "dense", block)`` of a GGUF tensor name; ``-1`` with embedding and output."""
    m = re.match(r"blk\.(\d+)\.", name)
    if m:
        # Files of early 2024 hold one tensor an expert: blk.0.ffn_gate.3.weight.
        routed = re.search(r"_exps\.|ffn_(gate|up|down)\.\d+\.", name)
        return ("expert" if routed else "dense"), int(m.group(1))
    return ("embedding" if name.startswith("token_embd") else "output"), -1


def tensors_of(spec: ModelSpec) -> Iterator[Tensor]:
    """Every stored tensor by its GGUF name, in the order llama.cpp creates gpt-oss's."""
    s, t = spec.shape, spec.types
    yield Tensor("token_embd.weight", t.embedding, (s.n_embd, s.n_vocab))
    yield Tensor("output_norm.weight", t.norms, (s.n_embd,))
    if not s.tied_embeddings:
        yield Tensor("output.weight", t.output, (s.n_embd, s.n_vocab))
    second = "post_attention_norm" if spec.architecture in ("gpt-oss", "glm4moe") else "ffn_norm"
    for i in range(s.n_layers):
        parts = [("attn_norm.weight", t.norms, (s.n_embd,))]
        parts += [(f"{second}.weight", t.norms, (s.n_embd,))]
        weights, biases = _attention(spec.attention, t, s.n_embd)
        ffn_weights, ffn_biases = _ffn(spec.experts, t, s.n_embd, i)
        for name, type_, shape in parts + weights + ffn_weights + biases + ffn_biases:
            yield Tensor(f"blk.{i}.{name}", type_, shape)


_Parts = list[tuple[str, str, tuple[int, ...]]]


def _attention(a: Attention, t: Types, n_embd: int) -> tuple[_Parts, _Parts]:
    if a.kind == "mla":
        return _mla(a, t, n_embd), []
    heads, kv_heads, dim = a.n_heads, a.n_kv_heads or 0, a.head_dim or 0
    q, kv = heads * dim, kv_heads * dim
    w: _Parts = [
        ("attn_q.weight", t.attention, (n_embd, q)),
        ("attn_k.weight", t.attention, (n_embd, kv)),
        ("attn_v.weight", t.attention, (n_embd, kv)),
        ("attn_output.weight", t.attention, (q, n_embd)),
    ]
    if a.qk_norm != "none":
        full = a.qk_norm == "full"
        w.append(("attn_q_norm.weight", t.norms, (q if full else dim,)))
        w.append(("attn_k_norm.weight", t.norms, (kv if full else dim,)))
    if a.sinks:
        w.append(("attn_sinks.weight", "F32", (heads,)))
    b: _Parts = []
    if a.qkv_bias:
        b += [(f"attn_{x}.bias", "F32", (n,)) for x, n in (("q", q), ("k", kv), ("v", kv))]
    if a.out_bias:
        b.append(("attn_output.bias", "F32", (n_embd,)))
    return w, b


def _mla(a: Attention, t: Types, n_embd: int) -> _Parts:
    rank, rope = a.kv_lora_rank or 0, a.qk_rope_head_dim or 0
    nope, v = a.qk_nope_head_dim or 0, a.v_head_dim or 0
    q = a.n_heads * (nope + rope)
    if a.q_lora_rank is None:
        w: _Parts = [("attn_q.weight", t.attention, (n_embd, q))]
    else:
        w = [
            ("attn_q_a.weight", t.attention, (n_embd, a.q_lora_rank)),
            ("attn_q_a_norm.weight", t.norms, (a.q_lora_rank,)),
            ("attn_q_b.weight", t.attention, (a.q_lora_rank, q)),
        ]
    return [
        *w,
        ("attn_kv_a_mqa.weight", t.attention, (n_embd, rank + rope)),
        ("attn_kv_a_norm.weight", t.norms, (rank,)),
        ("attn_kv_b.weight", t.attention, (rank, a.n_heads * (nope + v))),
        ("attn_output.weight", t.attention, (a.n_heads * v, n_embd)),
    ]


def _ffn(e: Experts, t: Types, n_embd: int, block: int) -> tuple[_Parts, _Parts]:
    if block < e.n_dense_layers:
        return _mlp("", t.dense or t.attention, n_embd, e.n_ff_dense or 0), []
    n, ff = e.n_experts, e.n_ff_expert
    w: _Parts = [
        ("ffn_gate_inp.weight", t.router, (n_embd, n)),
        ("ffn_gate_exps.weight", t.gate or t.experts, (n_embd, ff, n)),
        ("ffn_down_exps.weight", t.down or t.experts, (ff, n_embd, n)),
        ("ffn_up_exps.weight", t.up or t.experts, (n_embd, ff, n)),
    ]
    if e.n_shared:
        width = e.n_ff_shared or e.n_shared * ff
        w += _mlp("_shexp", t.shared or t.attention, n_embd, width)
    b: _Parts = []
    if e.router_bias:
        b.append(("ffn_gate_inp.bias", "F32", (n,)))
    if e.score_bias:
        b.append(("exp_probs_b.bias", "F32", (n,)))
    if e.expert_bias:
        widths = (("gate", ff), ("down", n_embd), ("up", ff))
        b += [(f"ffn_{x}_exps.bias", "F32", (width, n)) for x, width in widths]
    return w, b


def _mlp(suffix: str, type_: str, n_embd: int, width: int) -> _Parts:
    return [
        (f"ffn_gate{suffix}.weight", type_, (n_embd, width)),
        (f"ffn_down{suffix}.weight", type_, (width, n_embd)),
        (f"ffn_up{suffix}.weight", type_, (n_embd, width)),
    ]
