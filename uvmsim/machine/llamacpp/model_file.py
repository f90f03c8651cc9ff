"""A model as llama.cpp sees it: every tensor with its shape, and the numbers its graph is built with.

From a GGUF file (all parts of a split one), dense models too; or from a preset's shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from traces.errors import InputError
from uvmsim.machine.llamacpp.ggml import BLOCKS
from uvmsim.machine.model_spec import ModelSpec, tensors_of


@dataclass(frozen=True)
class FileTensor:
    """One stored tensor; ``shape`` innermost dimension first, ``file`` and ``offset``: where it is."""

    name: str
    type: str
    shape: tuple[int, ...]
    file: int = 0
    offset: int = 0

    @property
    def n_bytes(self) -> int:
        elements, size = BLOCKS[self.type]
        return prod(self.shape) // elements * size


@dataclass(frozen=True)
class LlamaModel:
    """Tensors and hyperparameters; sizes in elements. ``n_head_kv``: one number a block."""

    name: str
    architecture: str
    tensors: tuple[FileTensor, ...]
    n_layers: int
    """Blocks that run."""
    n_layers_all: int
    """With blocks that only predict further tokens, which are counted by ``-ngl`` and not loaded."""
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_head: int
    n_head_kv: tuple[int, ...]
    head_k: int
    head_v: int
    head_k_mla: int = 0
    head_v_mla: int = 0
    kv_lora_rank: int = 0
    n_rot: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    expert_groups: int = 0
    expert_groups_used: int = 0
    gating: str = "softmax"
    weights_norm: bool = False
    weights_scale: float = 0.0
    dense_lead: int = 0
    window: int = 0
    windowed: tuple[bool, ...] = ()
    """Per block, whether it attends to the last ``window`` positions only."""
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def by_name(self) -> Mapping[str, FileTensor]:
        return {t.name: t for t in self.tensors}

    @property
    def mla(self) -> bool:
        """Latent attention with absorbed matrices: one compressed row a token, no V cache."""
        return bool(self.head_k_mla)

    @property
    def tied(self) -> bool:
        """No LM head of its own: the embedding table is loaded a second time as one."""
        return "output.weight" not in self.by_name

    @classmethod
    def load(cls, spec: str | Path) -> LlamaModel:
        """A ``.gguf`` file (the first part of a split one), a preset or a ``.toml`` description."""
        from uvmsim.machine.descriptions import find, read

        path = find(str(spec), "models", "model", (".toml", ".gguf"))
        if path.suffix.lower() == ".gguf":
            return from_gguf(path)
        return from_spec(read(path, ModelSpec))


_GATING = {0: "softmax", 1: "softmax", 2: "sigmoid", 3: "softmax_weight", 4: "sqrt_softplus"}


def from_gguf(path: Path) -> LlamaModel:
    """Read the header; weights are not touched. Raises `InputError` as `traces.models.gguf` does."""
    from traces.models.gguf import read_parts

    parts = read_parts(path)
    meta = parts[0].metadata
    tensors = []
    for i, part in enumerate(parts):
        align, offset = int(part.metadata.get("general.alignment", 32)), 0
        for t in part.tensors:
            tensors.append(FileTensor(t.name, t.type, t.shape, i, offset))
            offset += -(-t.n_bytes // align) * align
    arch = meta.get("general.architecture")
    if arch is None:
        raise InputError(f"{path}: the GGUF metadata lack general.architecture; convert it again")

    def key(name: str, default: Any = None) -> Any:
        value = meta.get(f"{arch}.{name}", default)
        if value is None:
            raise InputError(f"{path}: the GGUF metadata lack {arch}.{name}; convert it again")
        return value

    everything = int(key("block_count"))
    n_layers = everything - int(key("nextn_predict_layers", 0))
    n_embd, heads = int(key("embedding_length")), key("attention.head_count")
    n_head = int(max(heads) if isinstance(heads, list) else heads)
    kv = key("attention.head_count_kv", heads)
    n_head_kv = tuple(int(h) for h in (kv if isinstance(kv, list) else [kv] * everything))
    default = n_embd // n_head
    head_k = int(key("attention.key_length", default))
    window = int(key("attention.sliding_window", 0))
    table = next((t for t in tensors if t.name == "token_embd.weight"), None)
    if table is None:
        raise InputError(f"{path}: has no token_embd.weight; not a language model llama.cpp runs")
    gating = int(key("expert_gating_func", 0))
    model = LlamaModel(
        name=str(meta.get("general.name") or path.stem),
        architecture=str(arch),
        tensors=tuple(tensors),
        n_layers=n_layers,
        n_layers_all=everything,
        n_embd=n_embd,
        n_vocab=table.shape[1],
        n_ctx_train=int(key("context_length", 0)),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_k=head_k,
        head_v=int(key("attention.value_length", default)),
        head_k_mla=int(key("attention.key_length_mla", 0)),
        head_v_mla=int(key("attention.value_length_mla", 0)),
        kv_lora_rank=int(key("attention.kv_lora_rank", 0)),
        n_rot=int(key("rope.dimension_count", head_k)),
        n_expert=int(key("expert_count", 0)),
        n_expert_used=_largest(key("expert_used_count", 0)),
        expert_groups=int(key("expert_group_count", 0)),
        expert_groups_used=int(key("expert_group_used_count", 0)),
        gating=_GATING.get(gating, "softmax"),
        weights_norm=bool(key("expert_weights_norm", False)),
        weights_scale=float(key("expert_weights_scale", 0.0)),
        dense_lead=int(key("leading_dense_block_count", 0)),
        window=window,
        windowed=_windowed(str(arch), n_layers, everything, window, meta),
        source=f"GGUF file {path.name}",
    )
    return _by_architecture(model, "expert_gating_func" if gating else "")


def _largest(value: Any) -> int:
    return int(max(value) if isinstance(value, list) else value)


_PATTERNS = {"gpt-oss": 2, "gemma2": 2, "gemma3": 6, "cohere2": 4, "exaone4": 4, "afmoe": 4}
"""Blocks to one that sees everything, by architecture (``load_swa_pattern`` in `src/models`)."""


def _windowed(
    arch: str, n_layers: int, everything: int, window: int, meta: Mapping[str, Any]
) -> tuple[bool, ...]:
    pattern = meta.get(f"{arch}.attention.sliding_window_pattern", _PATTERNS.get(arch, 0))
    if not window or (isinstance(pattern, int) and pattern == 0):
        return (False,) * everything
    if isinstance(pattern, list):
        return tuple(bool(x) for x in (pattern + [False] * everything)[:everything])
    return tuple(i < n_layers and i % pattern < pattern - 1 for i in range(everything))


def _by_architecture(model: LlamaModel, gating: str) -> LlamaModel:
    """What llama.cpp's code for an architecture fixes, whatever the file says."""
    arch = model.architecture
    fixed: dict[str, dict[str, Any]] = {
        "gpt-oss": {"gating": "softmax_weight", "weights_norm": False},
        "llama": {"gating": "softmax", "weights_norm": True},
        "qwen3moe": {"gating": "softmax", "weights_norm": True},
        "qwen2moe": {"gating": "softmax", "weights_norm": False},
        "olmoe": {"gating": "softmax", "weights_norm": False},
        "minimax-m2": {"weights_norm": True},
    }
    if arch in ("glm4moe", "deepseek2") and not gating:
        lite = model.n_layers in (47, 48) and model.n_vocab == 154880  # GLM-4.7-Flash
        return replace(model, gating="sigmoid" if arch == "glm4moe" or lite else "softmax")
    return replace(model, **fixed.get(arch, {}))


def from_spec(spec: ModelSpec) -> LlamaModel:
    """A preset's shape, as a converter of today would store it (latent attention absorbed)."""
    s, e, a = spec.shape, spec.experts, spec.attention
    tensors: list[FileTensor] = []
    offset = 0
    for t in tensors_of(spec):
        for name, kind, shape in _absorbed(spec, t.name, t.type, t.shape):
            tensors.append(FileTensor(name, kind, shape, 0, offset))
            offset += -(-tensors[-1].n_bytes // 32) * 32
    mla, arch = a.kind == "mla", spec.architecture
    rank, rope = a.kv_lora_rank or 0, a.qk_rope_head_dim or 0
    window = 128 if arch == "gpt-oss" else 0
    model = LlamaModel(
        name=spec.name,
        architecture=arch,
        tensors=tuple(tensors),
        n_layers=s.n_layers,
        n_layers_all=s.n_layers,
        n_embd=s.n_embd,
        n_vocab=s.n_vocab,
        n_ctx_train=0,
        n_head=a.n_heads,
        n_head_kv=(1 if mla else a.n_kv_heads or a.n_heads,) * s.n_layers,
        head_k=rank + rope if mla else a.head_dim or 0,
        head_v=rank if mla else a.head_dim or 0,
        head_k_mla=(a.qk_nope_head_dim or 0) + rope if mla else 0,
        head_v_mla=a.v_head_dim or 0 if mla else 0,
        kv_lora_rank=rank,
        n_rot=rope if mla else a.head_dim or 0,
        n_expert=e.n_experts,
        n_expert_used=e.top_k,
        gating="sigmoid" if e.score_bias else "softmax",
        weights_norm=e.score_bias,
        weights_scale=2.5 if e.score_bias else 0.0,
        dense_lead=e.n_dense_layers,
        window=window,
        windowed=_windowed(arch, s.n_layers, s.n_layers, window, {}),
        source=f"preset {spec.name}: its shape",
        notes=("a preset knows one type a class of tensor; a file mixes them",),
    )
    return _by_architecture(model, "known")


def _absorbed(
    spec: ModelSpec, name: str, kind: str, shape: tuple[int, ...]
) -> list[tuple[str, str, tuple[int, ...]]]:
    if not name.endswith("attn_kv_b.weight"):
        return [(name, kind, shape)]
    a = spec.attention
    rank, nope, v = a.kv_lora_rank or 0, a.qk_nope_head_dim or 0, a.v_head_dim or 0
    stem = name.removesuffix("attn_kv_b.weight")
    parts = (("attn_k_b", (nope, rank, a.n_heads)), ("attn_v_b", (rank, v, a.n_heads)))
    return [
        (f"{stem}{part}.weight", kind if dims[0] % BLOCKS[kind][0] == 0 else "Q8_0", dims)
        for part, dims in parts
    ]
