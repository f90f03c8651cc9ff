"""From router probabilities to the weights the chosen experts are mixed with.

llama.cpp's `build_moe_ffn` has one recipe with switches: take the chosen experts' probabilities;
softmax them (gpt-oss, where the "probabilities" are biased logits); or divide them by their sum
(Qwen3-MoE, Mixtral, DeepSeek-V3, GLM-4.5); multiply them by a constant (``expert_weights_scale``).
Which switches are on is hard-coded for some architectures and read from the metadata for others.
The graph shows it for all of them: the tensor that a switch makes is named after it. So nothing is
kept here by architecture, and a model that llama.cpp learns tomorrow comes out right too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

_SMALLEST_SUM = 6.103515625e-5
"""Sums are clamped to the smallest normal float16 before the division."""


@dataclass(frozen=True)
class WeightRule:
    """The switches that are on in one MoE layer, in the order in which they are applied."""

    softmax: bool = False
    normalise: bool = False
    scale: float = 1.0

    def with_stage(self, stage: str, parameter: float) -> WeightRule:
        """This rule with the switch that makes the graph's tensor ``ffn_moe_<stage>``.

        ``parameter`` is the first parameter of that tensor's operation.
        """
        if stage == "weights_softmax":
            return replace(self, softmax=True)
        if stage == "weights_norm":
            return replace(self, normalise=True)
        if stage == "weights_scaled":
            return replace(self, scale=parameter)
        return self

    def weights(self, probs: np.ndarray, experts: np.ndarray) -> np.ndarray:
        """float32 [..., k] from ``probs`` [..., n_experts] and the chosen ``experts`` [..., k]."""
        w = np.take_along_axis(probs, experts, axis=-1).astype(np.float32)
        if self.softmax:
            w = np.exp(w - w.max(axis=-1, keepdims=True))
            w /= w.sum(axis=-1, keepdims=True)
        if self.normalise:
            w /= np.maximum(w.sum(axis=-1, keepdims=True), np.float32(_SMALLEST_SUM))
        return w * np.float32(self.scale) if self.scale != 1.0 else w
