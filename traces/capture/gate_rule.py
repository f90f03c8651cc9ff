"""A layer's router as arithmetic: from a residual stream to the scores that experts are ranked by.

A router normalises the residual stream (by the norm before the experts), multiplies it with the
gate's matrix, and may do more before it takes the top k: add a bias (gpt-oss), squash (softmax,
sigmoid), add a selection bias (DeepSeek-V3, GLM-4.5), rule out groups of experts (DeepSeek). What
follows the last step that can change the order of experts is left off: so the scores of a plain
softmax router are its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Step = Callable[[np.ndarray], np.ndarray]
"""[rows, n_experts] -> the same."""


@dataclass(frozen=True)
class Norm:
    """``rms``: no mean is taken off. ``after``: multiplications by weights, additions of biases."""

    rms: bool
    eps: float
    after: tuple[tuple[str, np.ndarray], ...] = ()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 [rows, d]."""
        if not self.rms:
            x = x - x.mean(axis=1, keepdims=True)
        y = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True, dtype=np.float32) + self.eps)
        for what, value in self.after:
            y = y * value if what == "MUL" else y + value
        return np.asarray(y, np.float32)


@dataclass(frozen=True)
class GateRule:
    """``weight``: float32 [n_experts, d]; ``steps``: what happens to the logits, in order."""

    norm: Norm
    weight: np.ndarray
    steps: tuple[Step, ...]

    def scores(self, residual: np.ndarray) -> np.ndarray:
        """float32 [rows, n_experts]: what this router would rank experts by."""
        scores = self.norm(residual) @ self.weight.T
        for step in self.steps:
            scores = step(scores)
        return scores


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)), x.dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), x.dtype)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, np.zeros_like(x))


def within_groups(groups: int, used: int) -> Step:
    """-inf for experts outside the ``used`` groups whose two best scores have the largest sums."""

    def ruled_out(x: np.ndarray) -> np.ndarray:
        by_group = x.reshape(len(x), groups, -1)
        best = np.sort(by_group, axis=2)[:, :, -2:].sum(axis=2)
        kept = np.argsort(-best, axis=1, kind="stable")[:, :used]
        out = np.full_like(by_group, -np.inf)
        row = np.arange(len(x))[:, None]
        out[row, kept] = by_group[row, kept]
        return out.reshape(x.shape)

    return ruled_out


def best(scores: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``width`` best experts of each row, best first: ids int16, scores float16.

    Ranked before the scores are rounded; equal scores by id.
    """
    n_experts = scores.shape[1]
    if width < n_experts:
        ids = np.sort(np.argpartition(scores, n_experts - width, axis=1)[:, n_experts - width :])
    else:
        ids = np.broadcast_to(np.arange(n_experts), scores.shape)
    of = np.take_along_axis(scores, ids, axis=1)
    order = np.argsort(-of, axis=1, kind="stable")
    ids, of = (np.take_along_axis(a, order, axis=1) for a in (ids, of))
    return ids.astype(np.int16), of.astype(np.float16)


def without_order_keeping(steps: Sequence[tuple[bool, Step]]) -> tuple[Step, ...]:
    """The steps up to the last that can change the order; each is (keeps the order, step)."""
    last = max((i for i, (keeps, _) in enumerate(steps) if not keeps), default=-1)
    return tuple(step for _, step in steps[: last + 1])
