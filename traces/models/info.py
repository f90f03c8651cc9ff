"""What a trace says of the model that made it: shape and bytes.

The same description is read from a GGUF file (`traces.models.gguf`), stored in a trace's metadata,
and turned into the simulator's `uvmsim.machine.model.Model`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class ModelInfo:
    """Shape and bytes of a Mixture-of-Experts model.

    Byte counts are of the weights as stored (quantised). Unknown byte counts are ``None``: a
    routing dump without a model file knows the shape only.
    """

    name: str
    """Name of the model, e.g. ``gpt-oss-20b``."""
    n_layers: int
    """Transformer blocks, dense ones included."""
    moe_layers: tuple[int, ...]
    """Block indices that hold routed experts, ascending (DeepSeek's first block is dense)."""
    n_experts: int
    """Routed experts a MoE layer."""
    top_k: int
    """Routed experts a token uses in a MoE layer."""
    architecture: str = "unknown"
    """llama.cpp's name of the architecture, e.g. ``gpt-oss``, ``qwen3moe``."""
    quantisation: str | None = None
    """Type of the expert matrices, e.g. ``MXFP4``, ``Q8_0``."""
    expert_bytes: tuple[int, ...] | None = None
    """Bytes of one routed expert (gate, up, down and their biases), one entry a MoE layer."""
    dense_bytes: tuple[int, ...] | None = None
    """Bytes of a block without its routed experts (attention, norms, router, shared experts)."""
    output_bytes: int | None = None
    """Final norm and LM head: read once a step."""
    embedding_bytes: int | None = None
    """Token embedding table (0 where tied to the LM head)."""
    n_embd: int | None = None
    n_ff_expert: int | None = None
    n_vocab: int | None = None
    kv_bytes_per_token: int | None = None
    """KV cache bytes of one token, all blocks together, f16."""
    source: str = ""
    """Where the numbers come from, in words."""
    tensors: dict[str, list[Any]] = field(default_factory=dict)
    """From a GGUF file: tensor name -> [type, bytes], in file order. Empty where unknown."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> ModelInfo:
        """Inverse of `to_json`; keys it does not know are ignored (a newer writer)."""
        known = {f.name for f in fields(cls)}
        kw = {k: v for k, v in d.items() if k in known}
        for k in ("moe_layers", "expert_bytes", "dense_bytes"):
            if kw.get(k) is not None:
                kw[k] = tuple(kw[k])
        return cls(**kw)
