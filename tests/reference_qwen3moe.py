"""Forward pass of a float32 qwen3moe GGUF in plain NumPy: a reference for captured routing."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def forward(
    path: Path, tokens: list[int], residuals: list[tuple[np.ndarray, np.ndarray]] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per layer: expert ids [n, k], strongest first, and weights [n, k].

    To ``residuals`` is added, per layer, the residual stream [n, d] that its attention reads and the
    one that its experts read.
    """
    reader = gguf.GGUFReader(path)
    t = {x.name: np.array(x.data, np.float64) for x in reader.tensors}

    def value(key: str) -> float:
        return reader.fields[f"qwen3moe.{key}"].contents()

    n_heads, n_kv = int(value("attention.head_count")), int(value("attention.head_count_kv"))
    width, k = int(value("attention.key_length")), int(value("expert_used_count"))
    eps, base = value("attention.layer_norm_rms_epsilon"), value("rope.freq_base")
    n = len(tokens)

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def rotate(x: np.ndarray) -> np.ndarray:  # [n, heads, width], halves rotated against each other
        half = width // 2
        angle = np.arange(n)[:, None] * base ** (-2.0 * np.arange(half) / width)
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * c - b * s, a * s + b * c], -1)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    x = t["token_embd.weight"][tokens]
    out = []
    for i in range(int(value("block_count"))):
        w = {name.split(".", 2)[2][: -len(".weight")]: v for name, v in t.items()
             if name.startswith(f"blk.{i}.")}  # fmt: skip
        before = x
        h = norm(x, w["attn_norm"])
        q = rotate(norm((h @ w["attn_q"].T).reshape(n, n_heads, width), w["attn_q_norm"]))
        keys = rotate(norm((h @ w["attn_k"].T).reshape(n, n_kv, width), w["attn_k_norm"]))
        values = (h @ w["attn_v"].T).reshape(n, n_kv, width)
        keys, values = (np.repeat(a, n_heads // n_kv, axis=1) for a in (keys, values))
        scores = np.einsum("thd,shd->hts", q, keys) / np.sqrt(width)
        scores = softmax(np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf))
        mixed = np.einsum("hts,shd->thd", scores, values).reshape(n, -1)
        x = x + mixed @ w["attn_output"].T
        if residuals is not None:
            residuals.append((before, x))
        h = norm(x, w["ffn_norm"])
        probs = softmax(h @ w["ffn_gate_inp"].T)
        ids = np.argsort(-probs, axis=-1, kind="stable")[:, :k]
        weights = np.take_along_axis(probs, ids, -1)
        weights /= weights.sum(-1, keepdims=True)
        y = np.zeros_like(x)
        for row in range(n):
            for e, weight in zip(ids[row], weights[row], strict=True):
                gate = w["ffn_gate_exps"][e] @ h[row]
                up = w["ffn_up_exps"][e] @ h[row]
                y[row] += weight * (w["ffn_down_exps"][e] @ (gate / (1 + np.exp(-gate)) * up))
        x = x + y
        out.append((ids, weights))
    return out
