"""A compact qwen3moe in PyTorch, fast enough to train on two CPU cores.

Only `Experts` is unusual: tokens are sorted by expert, every expert's rows are padded to a multiple
of `ROW_BLOCK` (few distinct shapes, so that the matrix kernels are compiled once), and the backward
pass is written by hand so that it needs gathers only, no scattered additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROW_BLOCK = 64
MASK_MATERIALISED_UP_TO = 512


@dataclass(frozen=True)
class Config:
    """Shape of the model."""

    vocabulary: int = 2048
    width: int = 160
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 32
    experts: int = 32
    experts_used: int = 4
    expert_width: int = 64
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-6
    context: int = 4096


@dataclass
class Routing:
    """What the routers of one forward pass decided, one entry a layer."""

    ids: list[Tensor]
    logits: list[Tensor]

    def balance_loss(self) -> Tensor:
        """Switch loss: experts * sum(share of assignments * mean probability), mean over layers."""
        losses = []
        for ids, logits in zip(self.ids, self.logits, strict=True):
            experts = logits.shape[-1]
            share = torch.bincount(ids.flatten(), minlength=experts) / ids.numel()
            losses.append(experts * (share * logits.softmax(-1).mean(0)).sum())
        return torch.stack(losses).mean()

    def z_loss(self) -> Tensor:
        """Mean squared log-sum-exp of the router logits: keeps them small."""
        return torch.stack([z.logsumexp(-1).square().mean() for z in self.logits]).mean()


class Experts(torch.autograd.Function):
    """Weighted sum of the chosen experts' SwiGLU outputs: x [T, d], weights and ids [T, k]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        tokens, used = ids.shape
        flat = ids.flatten()
        counts = torch.bincount(flat, minlength=len(gate_up))
        padded = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
        order = torch.argsort(flat, stable=True)
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
        slot = torch.arange(len(flat)) + shift[flat[order]]
        rows = int(padded.sum())
        assignment = torch.full((rows,), len(flat))
        assignment[slot] = order
        where = torch.empty_like(order)
        where[order] = slot
        sizes = padded.tolist()
        token = torch.where(assignment == len(flat), tokens, assignment // used)
        sorted_x = torch.cat([x, x.new_zeros(1, x.shape[1])])[token]
        hidden = x.new_empty(rows, gate_up.shape[1])
        for rows_x, rows_h, matrix in zip(
            sorted_x.split(sizes), hidden.split(sizes), gate_up, strict=True
        ):
            torch.mm(rows_x, matrix.t(), out=rows_h)
        active = _swiglu(hidden)
        output = x.new_empty(rows, x.shape[1])
        for rows_a, rows_y, matrix in zip(
            active.split(sizes), output.split(sizes), down, strict=True
        ):
            torch.mm(rows_a, matrix.t(), out=rows_y)
        chosen = output[where].view(tokens, used, -1)
        ctx.save_for_backward(sorted_x, hidden, active, chosen, weights, gate_up, down)
        ctx.layout = assignment, where, sizes
        return torch.bmm(weights.to(x.dtype).unsqueeze(1), chosen).squeeze(1).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sorted_x, hidden, active, chosen, weights, gate_up, down = ctx.saved_tensors
        assignment, where, sizes = ctx.layout
        tokens, used, width = chosen.shape
        kind = sorted_x.dtype
        grad = grad.to(kind)
        grad_weights = torch.bmm(chosen, grad.unsqueeze(-1)).squeeze(-1).float()
        spread = grad.new_zeros(tokens * used + 1, width)
        torch.mul(
            grad.unsqueeze(1),
            weights.to(kind).unsqueeze(-1),
            out=spread[:-1].view(tokens, used, width),
        )
        grad_output = spread[assignment]
        grad_active = torch.empty_like(active)
        grad_down = torch.empty_like(down)
        for rows_g, rows_a, grad_a, matrix, grad_m in zip(
            grad_output.split(sizes),
            active.split(sizes),
            grad_active.split(sizes),
            down,
            grad_down,
            strict=True,
        ):
            torch.mm(rows_g, matrix, out=grad_a)
            torch.mm(rows_g.t(), rows_a, out=grad_m)
        grad_hidden = _swiglu_gradient(hidden, grad_active)
        grad_sorted = torch.empty_like(sorted_x)
        grad_gate_up = torch.empty_like(gate_up)
        for rows_g, rows_x, grad_x, matrix, grad_m in zip(
            grad_hidden.split(sizes),
            sorted_x.split(sizes),
            grad_sorted.split(sizes),
            gate_up,
            grad_gate_up,
            strict=True,
        ):
            torch.mm(rows_g, matrix, out=grad_x)
            torch.mm(rows_g.t(), rows_x, out=grad_m)
        grad_x_all = grad_sorted[where].view(tokens, used, width).sum(1)
        return grad_x_all, grad_weights, None, grad_gate_up, grad_down


class Block(nn.Module):
    """One layer: attention with normalised queries and keys, then the mixture of experts."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        depth_scale = (2 * c.layers) ** -0.5
        self.attention_norm = nn.Parameter(torch.ones(c.width))
        self.query_norm = nn.Parameter(torch.ones(c.head_width))
        self.key_norm = nn.Parameter(torch.ones(c.head_width))
        self.expert_norm = nn.Parameter(torch.ones(c.width))
        self.qkv = _matrix((c.heads + 2 * c.kv_heads) * c.head_width, c.width)
        self.attention_output = _matrix(c.width, c.heads * c.head_width, scale=depth_scale)
        self.router = _matrix(c.experts, c.width)
        self.gate_up = _matrix(c.experts, 2 * c.expert_width, c.width)
        self.down = _matrix(c.experts, c.width, c.expert_width, scale=depth_scale)

    def forward(self, x: Tensor, rope: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output, and the chosen experts and router logits of every token."""
        x = x + self._attend(self._norm(x, self.attention_norm), rope, kind)
        mixed, ids, logits = self._mix(self._norm(x, self.expert_norm), kind)
        return x + mixed, ids, logits

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_epsilon)

    def _attend(self, x: Tensor, rope: Tensor, kind: torch.dtype) -> Tensor:
        c = self.config
        batch, length, _ = x.shape
        qkv = F.linear(x.to(kind), self.qkv.to(kind)).view(batch, length, -1, c.head_width)
        query, key, value = qkv.split([c.heads, c.kv_heads, c.kv_heads], 2)
        query = _rotate(self._norm(query.float(), self.query_norm), rope).to(kind)
        key = _rotate(self._norm(key.float(), self.key_norm), rope).to(kind)
        repeat = c.heads // c.kv_heads
        query, key, value = (
            t.transpose(1, 2)
            for t in (query, key.repeat_interleave(repeat, 2), value.repeat_interleave(repeat, 2))
        )
        if length <= MASK_MATERIALISED_UP_TO:  # faster than the fused kernel on short rows
            mask = torch.full((length, length), -torch.inf, dtype=kind).triu(1)
            scores = (query * c.head_width**-0.5) @ key.transpose(-1, -2) + mask
            mixed = scores.softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        return F.linear(mixed, self.attention_output.to(kind)).float()

    def _mix(self, x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        flat = x.reshape(-1, x.shape[-1])
        logits = F.linear(flat, self.router)
        weights, ids = logits.softmax(-1).topk(self.config.experts_used, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        mixed = Experts.apply(
            flat.to(kind), weights, ids, self.gate_up.to(kind), self.down.to(kind)
        )
        return mixed.view_as(x), ids, logits


class TinyMoE(nn.Module):
    """The language model: token ids [B, S] in, logits [B, S, V] and the routing out."""

    def __init__(self, config: Config, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        self.embedding = nn.Parameter(torch.randn(config.vocabulary, config.width) * 0.05)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = nn.Parameter(torch.ones(config.width))
        self.output = _matrix(config.vocabulary, config.width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Routing]:
        c = self.config
        half = c.head_width // 2
        frequency = c.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = (torch.arange(tokens.shape[1])[:, None] * frequency)[:, None]
        rope = torch.stack([angle.cos(), angle.sin()]).float()
        routing = Routing([], [])
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x, ids, logits = block(x, rope, self.kind)
            routing.ids.append(ids)
            routing.logits.append(logits)
        x = F.rms_norm(x, self.output_norm.shape, self.output_norm, c.norm_epsilon)
        return F.linear(x.to(self.kind), self.output.to(self.kind)).float(), routing


def _swiglu(hidden: Tensor) -> Tensor:
    gate, up = hidden.chunk(2, -1)
    return F.silu(gate) * up


def _swiglu_gradient(hidden: Tensor, grad: Tensor) -> Tensor:
    gate, up = hidden.chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return torch.cat([grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu], -1)


def _matrix(*shape: int, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * scale * shape[-1] ** -0.5)


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding, first half of the head paired with the second; x is [B, S, H, D]."""
    cosine, sine = rope
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
