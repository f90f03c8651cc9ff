"""Whole graphs by architecture: `src/models/*.cpp` of llama.cpp b11549.

Most decoders are one pattern whose parts show in the file: which norms, biases and experts a block has.
Latent attention (DeepSeek) has its own. `KNOWN` are the architectures whose graph was compared with
llama.cpp's; others get the pattern, and the plan says so.
"""

from __future__ import annotations

from uvmsim.machine.llamacpp import ggml
from uvmsim.machine.llamacpp.blocks import Builder
from uvmsim.machine.llamacpp.ggml import Graph, Tensor, like, mul_mat, reshape

KNOWN = frozenset((
    "llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "olmoe", "gpt-oss", "deepseek2", "glm4moe",
    "minimax-m2", "dots1",
))  # fmt: skip
OTHER_STATE = frozenset((
    "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "jamba", "falcon-h1", "plamo2",
    "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "qwen3next", "kimi-linear",
    "bailingmoe3", "kimi-k3", "glm5-next", "qwen35", "qwen35moe", "qwen4exp", "deepseek4", "minimax-01",
    "minimax-m3", "glm-dsa", "deepseek32", "hy_v4", "dots3note", "gemma3n", "gemma4", "t5", "bert",
))  # fmt: skip
"""Architectures that keep more than a KV cache, or share it between blocks (``create_memory``,
``llm_arch_is_recurrent`` and ``llm_arch_is_hybrid``); not modelled."""


def build(b: Builder) -> Graph:
    """The graph of one micro-batch."""
    m = b.model
    last = m.n_layers - 1
    x = b.embedding()
    positions = ggml.input_tensor("I32", b.set.n_tokens, name="inp_pos")
    wanted = ggml.input_tensor("I32", b.set.n_outputs, name="inp_out_ids")
    for block in range(m.n_layers):
        y = b.norm(x, b.need(block, "attn_norm.weight"), block)
        attend = _latent if m.mla else _grouped_query
        y = attend(b, block, y, positions)
        if block == last:
            y, x = ggml.get_rows(y, wanted), ggml.get_rows(x, wanted)
        entered = like("ADD", y, x)
        y = b.norm(entered, _second_norm(b, block), block)
        x = like("ADD", _feed_forward(b, block, y), entered)
    x = b.norm(x, b.top("output_norm.weight"), -1)
    x.output = True
    head = b.top("output.weight") or b.top("token_embd.weight#2") or b.top("token_embd.weight")
    assert head is not None
    logits = mul_mat(head, x)
    logits.output = True
    b.graph.expand(logits)
    return b.graph


def _second_norm(b: Builder, block: int) -> Tensor | None:
    return b.get(block, "ffn_norm.weight") or b.get(block, "post_attention_norm.weight")


def _grouped_query(b: Builder, block: int, x: Tensor, positions: Tensor) -> Tensor:
    m, n = b.model, b.set.n_tokens
    q_norm, k_norm = b.get(block, "attn_q_norm.weight"), b.get(block, "attn_k_norm.weight")
    over_heads = q_norm is not None and q_norm.ne[0] != m.head_k
    q, k, v = b.qkv(block, x, shaped=not over_heads)
    if over_heads:
        q, k = b.norm(q, q_norm, block), b.norm(k, k_norm, block)
        q = reshape(q, m.head_k, m.n_head, n)
        k = reshape(k, m.head_k, m.n_head_kv[block], n)
        v = reshape(v, m.head_v, m.n_head_kv[block], n)
    else:
        q = b.norm(q, q_norm, block) if q_norm is not None else q
        k = b.norm(k, k_norm, block) if k_norm is not None else k
    q, k = b.rope(q, positions), b.rope(k, positions)
    return b.attention(block, q, k, v, b.get(block, "attn_sinks.weight"))


def _latent(b: Builder, block: int, x: Tensor, positions: Tensor) -> Tensor:
    m, n = b.model, b.set.n_tokens
    rank, rope = m.kv_lora_rank, m.n_rot
    nope = m.head_k_mla - rope
    first = b.get(block, "attn_q_a.weight")
    if first is None:
        q = mul_mat(b.need(block, "attn_q.weight"), x)
    else:
        q = b.norm(mul_mat(first, x), b.get(block, "attn_q_a_norm.weight"), block)
        q = mul_mat(b.need(block, "attn_q_b.weight"), q)
    q = reshape(q, m.head_k_mla, m.n_head, n)
    both = mul_mat(b.need(block, "attn_kv_a_mqa.weight"), x)
    row = 4 * (rank + rope)
    latent = ggml.view(both, (rank, n), (row,))
    k_rope = b.rope(ggml.view(both, (rope, 1, n), (row, row), 4 * rank), positions)
    latent = b.norm(latent, b.get(block, "attn_kv_a_norm.weight"), block)
    q_nope = ggml.view(q, (nope, m.n_head, n), q.nb[1:3])
    q_rope = b.rope(ggml.view(q, (rope, m.n_head, n), q.nb[1:3], 4 * nope), positions)
    absorbed = mul_mat(b.need(block, "attn_k_b.weight"), ggml.permute(q_nope, 0, 2, 1, 3))
    absorbed = ggml.permute(absorbed, 0, 2, 1, 3)
    queries = ggml.concat(absorbed, q_rope, 0)
    latent = reshape(latent, rank, 1, n)
    keys = ggml.concat(latent, k_rope, 0)
    return b.latent_attention(block, queries, keys, rank)


def _feed_forward(b: Builder, block: int, x: Tensor) -> Tensor:
    if b.get(block, "ffn_gate_inp.weight") is None:
        return b.ffn(block, x)
    kind = "SWIGLU_OAI" if b.model.architecture == "gpt-oss" else "SWIGLU"
    y = b.experts(block, x, kind)
    if b.get(block, "ffn_up_shexp.weight") is None:
        return y
    gate = b.get(block, "ffn_gate_inp_shexp.weight")
    if gate is None:
        return like("ADD", y, b.ffn(block, x, "_shexp"))
    entered = mul_mat(gate, x)
    share = like("DIV", like("UNARY", entered, param="SILU"), entered)
    return like("ADD", y, like("MUL", b.ffn(block, x, "_shexp"), share))
