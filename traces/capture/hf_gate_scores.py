"""Guesses of the experts to come, from Hugging Face models: their own modules, run too early.

Which router is run on what is said by `traces.files.schema.PREDICTORS`. The modules do their own
arithmetic, in the model's own types: the norm before the experts, then the router. What a router
ranks experts by is its first result, the logits; for routers with a selection bias
(``e_score_correction_bias``: DeepSeek-V3, GLM-4.5) their sigmoid with that bias, in the chosen groups.
Whether that is how a layer chooses is checked on its own input in every pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from traces.capture.gate_rule import best, sigmoid, within_groups

_TIE = 1e-5
"""Of scores between 0 and 1; logits come out of the same module, bit by bit."""


class HfGateScores:
    """Hooks on decoder layers, their norms and routers; `drain` hands over a pass's guesses."""

    def __init__(
        self,
        torch: Any,
        blocks: Mapping[int, Any],
        routers: Mapping[int, Any],
        asked: Collection[str],
    ) -> None:
        """``blocks``, ``routers``: decoder layer and router by the number of each MoE layer;
        ``asked``: which of `PREDICTORS`."""
        self._torch, self._routers = torch, routers
        self._ahead = [name for name in ("next1", "next2") if name in asked]
        self._pre = "pre" in asked
        self._norms: dict[int, Any] = {}
        self._refused: dict[int, str] = {}
        self._width, self._first = 0, min(blocks)
        self._begin()
        self._handles = []
        for layer, block in blocks.items():
            self._handles.append(
                block.register_forward_pre_hook(self._on_block(layer), with_kwargs=True)
            )
            for name, child in block.named_children():
                if "norm" in name.lower() or "norm" in type(child).__name__.lower():
                    self._handles.append(child.register_forward_hook(self._on_norm))
            self._handles.append(routers[layer].register_forward_hook(self._on_router(layer)))

    @property
    def notes(self) -> list[str]:
        """What could not be recorded, one line a reason."""
        why: dict[str, list[int]] = {}
        for layer, reason in self._refused.items():
            why.setdefault(reason, []).append(layer)
        return [f"guesses are missing, layer {', '.join(map(str, n))}: {r}" for r, n in why.items()]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def drain(self) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
        """Ids and scores [n, 2k] by (predictor, layer of the row), of the pass that ended."""
        made = self._made
        self._begin()
        return made

    def _begin(self) -> None:
        """A pass begins: nothing of the one before is left, whether or not it was asked for."""
        self._made: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        self._before: deque[tuple[int, Any]] = deque(maxlen=2)
        self._normed: list[tuple[Any, Any, Any]] = []
        self._attention: Any = None

    def _on_block(self, layer: int) -> Any:
        def keep(module: Any, given: Any, named: Any) -> None:
            if layer == self._first:
                self._begin()
            # The residual stream may be added to in place later.
            x = given[0] if given else named["hidden_states"]
            self._attention, self._normed = x.detach().clone() if self._pre else None, []

        return keep

    def _on_norm(self, module: Any, given: Any, returned: Any) -> None:
        if given:
            self._normed.append((module, given[0].detach(), returned))

    def _on_router(self, layer: int) -> Any:
        def guess(module: Any, given: Any, returned: Any) -> None:
            logits, ids = returned[0], returned[2]
            self._width = min(2 * ids.shape[-1], logits.shape[-1])
            residual = self._residual(given[0])
            if layer not in self._refused and self._understood(layer, residual, ids):
                for name, (earlier, x) in zip(self._ahead, reversed(self._before), strict=False):
                    if x is not None:
                        self._made[name, earlier] = best(self._scores(layer, x), self._width)
                if self._pre:
                    scores = self._scores(layer, self._attention)
                    self._made["pre", layer] = best(scores, self._width)
            x = residual[1].clone() if residual and self._ahead else None
            self._before.append((layer, x))

        return guess

    def _residual(self, routed: Any) -> tuple[Any, Any] | None:
        """(norm, what it normalised) whose result the router was given, possibly reshaped."""
        for module, x, y in reversed(self._normed):
            if y.data_ptr() == routed.data_ptr() and y.numel() == routed.numel():
                return module, x
        return None

    def _understood(self, layer: int, residual: tuple[Any, Any] | None, ids: Any) -> bool:
        """Whether the scores of the layer's own input have the experts that it chose on top."""
        if residual is None:
            self._refused[layer] = "its router's input is not a norm of the residual stream"
            return False
        self._norms[layer] = residual[0]
        scores = self._scores(layer, residual[1])
        chosen = ids.detach().reshape(len(scores), -1).cpu().numpy()
        least = np.take_along_axis(scores, chosen, axis=1).min(axis=1)
        kth = np.sort(scores, axis=1)[:, -chosen.shape[1]]
        # Of experts with equal scores (all, for a padding token) any may be chosen.
        if (least < kth - _TIE).any():
            self._refused[layer] = "its router chooses by something else than its scores"
            return False
        return True

    def _scores(self, layer: int, x: Any) -> np.ndarray:
        """float32 [n, n_experts]: what the layer's router ranks experts by, for a residual stream."""
        router = self._routers[layer]
        with self._torch.inference_mode():
            # `forward`, since calls would run the hooks. Some routers want rows, some take any shape.
            normed = self._norms[layer].forward(x)
            logits = router.forward(normed.reshape(-1, normed.shape[-1]))[0]
        scores = np.asarray(logits.float().reshape(-1, logits.shape[-1]).cpu().numpy())
        bias = getattr(router, "e_score_correction_bias", None)
        if bias is None:
            return scores
        scores = sigmoid(scores) + bias.detach().float().cpu().numpy()
        groups, used = (int(getattr(router, n, 0) or 0) for n in ("num_group", "topk_group"))
        return within_groups(groups, used)(scores) if groups > used > 0 else scores
