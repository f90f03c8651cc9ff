"""Describe a Mixture-of-Experts model from its GGUF file: shape, and bytes of every part."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.models.gguf_header import GgufHeader, TensorEntry, read_header
from traces.models.info import ModelInfo

# `_exps` tensors hold all experts of a block; files of early 2024 hold one tensor an expert.
_BLOCK = re.compile(r"blk\.(\d+)\.(.*)")
_ROUTED = re.compile(r"ffn_(gate|up|down|gate_up)_exps\.|ffn_(gate|up|down)\.\d+\.")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_MAX_LISTED = 2000


def describe(path: str | Path, *, need_experts: bool = True) -> ModelInfo:
    """The model in a GGUF file (of a split model: in all its parts; give the first).

    Routed experts are the ``ffn_{gate,up,down,gate_up}_exps`` tensors with their biases and scales;
    everything else of a block, shared experts included, is its dense part. Blocks that only predict
    further tokens (``nextn_predict_layers``) do not run and are left out. Above 2,000 tensors the
    per-tensor list is left out; the sums per block stay.

    Raises `InputError` where a file is missing, broken, or holds no Mixture-of-Experts model;
    without ``need_experts`` one that has none is described too, its ``moe_layers`` empty.
    """
    parts = read_parts(Path(path))
    meta = parts[0].metadata
    tensors = [t for part in parts for t in part.tensors]
    where = str(path)
    arch = str(_need(meta, "general.architecture", where))

    def key(name: str, default: Any = None) -> Any:
        return meta.get(f"{arch}.{name}", default)

    n_experts = int(key("expert_count", 0))
    n_layers = int(_need(meta, f"{arch}.block_count", where)) - int(key("nextn_predict_layers", 0))
    routed, dense = [0] * n_layers, [0] * n_layers
    types: Counter[str] = Counter()
    dense_types: Counter[str] = Counter()
    output = embedding = 0
    for t in tensors:
        block = _BLOCK.match(t.name)
        if block is None:
            if t.name.startswith("token_embd"):
                embedding += t.n_bytes
            else:
                output += t.n_bytes
        elif int(block[1]) < n_layers:
            if _ROUTED.match(block[2]):
                routed[int(block[1])] += t.n_bytes
                types[t.type] += t.n_bytes
            else:
                dense[int(block[1])] += t.n_bytes
                dense_types[t.type] += t.n_bytes
    moe_layers = tuple(il for il, n in enumerate(routed) if n)
    if not moe_layers or n_experts < 2:
        if need_experts:
            raise InputError(
                f"{where}: not a Mixture-of-Experts model (architecture {arch!r}, no routed "
                "experts); use a MoE model such as gpt-oss, Qwen3-MoE, OLMoE, Mixtral or DeepSeek"
            )
        moe_layers, n_experts, types = (), 0, dense_types
    shapes = {t.name: t.shape for t in tensors}
    if not any(name.startswith("output.weight") for name in shapes):
        output, embedding = output + embedding, 0  # the LM head is the embedding table
    n_embd = int(_need(meta, f"{arch}.embedding_length", where))
    vocab = shapes.get("token_embd.weight")
    return ModelInfo(
        name=str(meta.get("general.name") or Path(path).stem),
        n_layers=n_layers,
        moe_layers=moe_layers,
        n_experts=n_experts,
        top_k=int(_need(meta, f"{arch}.expert_used_count", where)) if moe_layers else 0,
        architecture=arch,
        quantisation=types.most_common(1)[0][0] if types else None,
        expert_bytes=tuple(routed[il] // n_experts for il in moe_layers),
        dense_bytes=tuple(dense),
        output_bytes=output,
        embedding_bytes=embedding,
        n_embd=n_embd,
        n_ff_expert=_n_ff_expert(tensors, key),
        n_vocab=vocab[1] if vocab else None,
        kv_bytes_per_token=_kv_bytes(key, n_layers, n_embd),
        source=f"GGUF file {Path(path).name}",
        tensors={t.name: [t.type, t.n_bytes] for t in tensors}
        if len(tensors) <= _MAX_LISTED
        else {},
    )


def _need(meta: dict[str, Any], key: str, where: str) -> Any:
    if key not in meta:
        raise InputError(f"{where}: the GGUF metadata lack {key}; convert the model again")
    return meta[key]


def read_parts(path: Path) -> list[GgufHeader]:
    """The heads of a model's files: one, or all parts of a split model, of which ``path`` is the
    first.

    Raises `InputError` as `read_header` does, and where ``path`` is another part than the first.
    """
    first = read_header(path)
    n = int(first.metadata.get("split.count", 1))
    if n <= 1:
        return [first]
    match = _SPLIT.search(path.name)
    if match is None or int(match[1]) != 1:
        raise InputError(
            f"{path}: one of {n} parts of a model; give the first, named "
            f"...-00001-of-{n:05d}.gguf, with the others beside it"
        )
    stem = path.name[: match.start()]
    rest = [path.with_name(f"{stem}-{i:05d}-of-{n:05d}.gguf") for i in range(2, n + 1)]
    return [first, *(read_header(p) for p in rest)]


def _n_ff_expert(tensors: list[TensorEntry], key: Any) -> int | None:
    for t in tensors:
        if re.match(r"blk\.\d+\.ffn_down(_exps|\.0)\.weight$", t.name):
            return t.shape[0]
    value = key("expert_feed_forward_length")
    return int(value) if isinstance(value, int) else None


def _kv_bytes(key: Any, n_layers: int, n_embd: int) -> int | None:
    """Bytes a token adds to the KV cache, in f16, all blocks together."""
    heads = key("attention.head_count")
    kv_heads = key("attention.head_count_kv", heads)
    if kv_heads is None or isinstance(heads, list):
        return None
    k_len = int(key("attention.key_length", n_embd // int(heads)))
    v_len = int(key("attention.value_length", n_embd // int(heads)))
    # Latent attention keeps one compressed row a token, and V is a view of it.
    if key("attention.key_length_mla") is not None:
        v_len = 0
    per_layer = kv_heads[:n_layers] if isinstance(kv_heads, list) else [kv_heads] * n_layers
    return 2 * (k_len + v_len) * sum(int(h) for h in per_layer)
