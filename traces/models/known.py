"""Shapes of published Mixture-of-Experts models, to complete dumps that do not state theirs."""

from __future__ import annotations

import re
from typing import NamedTuple


class Shape(NamedTuple):
    """Transformer blocks, leading dense blocks, routed experts a layer, experts a token."""

    n_layers: int
    n_dense: int
    n_experts: int
    top_k: int

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(range(self.n_dense, self.n_layers))


# Source of each line: the model's config.json on its publisher's page.
KNOWN = {
    "gpt-oss-20b": Shape(24, 0, 32, 4),
    "gpt-oss-120b": Shape(36, 0, 128, 4),
    "Mixtral-8x7B": Shape(32, 0, 8, 2),
    "Mixtral-8x22B": Shape(56, 0, 8, 2),
    "Qwen1.5-MoE-A2.7B": Shape(24, 0, 60, 4),
    "Qwen2-57B-A14B": Shape(28, 0, 64, 8),
    "Qwen3-30B-A3B": Shape(48, 0, 128, 8),
    "Qwen3-235B-A22B": Shape(94, 0, 128, 8),
    "Qwen3-Next-80B-A3B": Shape(48, 0, 512, 10),
    "OLMoE-1B-7B": Shape(16, 0, 64, 8),
    "DeepSeek-V2-Lite": Shape(27, 1, 64, 6),
    "DeepSeek-V3": Shape(61, 3, 256, 8),
    "GLM-4.5-Air": Shape(46, 1, 128, 8),
    "Kimi-Linear-48B-A3B": Shape(27, 1, 256, 8),
    "MiniMax-M2": Shape(62, 0, 256, 8),
    "Phi-3.5-MoE": Shape(32, 0, 16, 2),
}
COMMON_EXPERT_COUNTS = (8, 16, 32, 60, 64, 128, 160, 256, 384, 512)


def find(text: str) -> str | None:
    """The known model whose name a text (a model name, a file path) contains, or None.

    Letter case and separators do not count; of several, the longest name wins.
    """
    plain = _plain(text)
    hits = [name for name in KNOWN if _plain(name) in plain]
    return max(hits, key=len) if hits else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", text.lower())
