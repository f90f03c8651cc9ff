"""The memory a configuration takes: device and host bytes by kind.

The one place that knows. Weights and KV cache are counted; the compute buffer and what the driver takes
are allowances, rounded up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.machine.model_spec import role_of
from uvmsim.studies.advise.candidate import CACHE, GPU, TENSORS, UNIFIED, Candidate

MIB, GIB = 2**20, 2**30
DRIVER_BYTES = 400 * MIB
"""Allowance: a CUDA context, its kernels and cuBLAS's workspace."""
SYSTEM_BYTES = 2 * GIB
"""Allowance: host memory that the operating system and the program itself use."""
ACTIVATIONS = 24
"""Allowance: float32 rows of n_embd a token in the compute buffer beside its logits."""
ALIGN = 128
"""Of a bank of the cache (ggml-cuda's buffer alignment)."""


@dataclass(frozen=True)
class Needs:
    """Bytes by kind: ``weights``, ``kv``, ``compute``, ``cache``, ``driver``; host: ``system`` too."""

    vram: dict[str, int]
    ram: dict[str, int]

    @property
    def vram_bytes(self) -> int:
        return sum(self.vram.values())

    @property
    def ram_bytes(self) -> int:
        return sum(self.ram.values())

    def lacks(self, hw: Hardware) -> tuple[int, int]:
        """Device and host bytes that the machine has too few of; host memory unknown is enough."""
        ram = 0 if hw.host_bytes is None else self.ram_bytes - hw.host_bytes
        return max(self.vram_bytes - hw.vram_bytes, 0), max(ram, 0)

    def fits(self, hw: Hardware) -> bool:
        return self.lacks(hw) == (0, 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "vram_bytes": self.vram_bytes, "ram_bytes": self.ram_bytes,
            "vram": self.vram, "ram": self.ram,
        }  # fmt: skip


def needed(model: Model, c: Candidate, hw: Hardware) -> Needs:
    """What ``c`` takes. ``model.kv_bytes_per_token`` is of the KV type asked for."""
    on_cpu = min(c.cpu_blocks, model.n_layers)
    head_on_cpu = c.cpu_blocks > model.n_layers
    away = expert_bytes_away(model, c)
    dense_away = sum(model.dense_bytes[:on_cpu]) + (model.output_bytes if head_on_cpu else 0)
    gpu = model.resident_bytes - dense_away + model.moe_bytes - away
    kv = c.ctx * model.kv_bytes_per_token
    kv_away = kv * on_cpu // model.n_layers
    table = model.embedding_bytes or model.output_bytes  # tied: llama.cpp keeps it on both sides
    cache = cache_bytes(model, c.slots) if c.kind == CACHE else 0
    compute = compute_bytes(model, c, offloads=bool(away or dense_away))
    vram = {"weights": gpu, "kv": kv - kv_away, "compute": compute, "cache": cache}
    vram["driver"] = DRIVER_BYTES
    ram = {"weights": away + dense_away + table, "kv": kv_away, "system": SYSTEM_BYTES}
    if c.kind == UNIFIED:  # what does not fit is paged out to the host
        out = max(sum(vram.values()) - hw.vram_bytes, 0)
        vram["weights"] -= min(out, vram["weights"])
        ram["weights"] += out
    return Needs(vram, ram)


def expert_bytes_away(model: Model, c: Candidate) -> int:
    """Routed experts that lie with the CPU."""
    blocks = max(c.cpu_blocks, c.cpu_experts)
    away = sum(
        n for n, block in zip(model.expert_bytes, model.moe_layers, strict=True) if block < blocks
    )
    if c.kind == TENSORS:
        away += int(
            layer_bytes(model, c.cpu_experts) * share_of(model, c.cpu_experts, c.projections)
        )
    return away * model.n_experts


def layer_bytes(model: Model, block: int) -> int:
    """Of one expert of a block; 0 where it has none."""
    return dict(zip(model.moe_layers, model.expert_bytes, strict=True)).get(block, 0)


class Stored(NamedTuple):
    """What a list of tensors says, read once."""

    largest: int
    """Bytes of the largest tensor; 0 where none is listed."""
    largest_expert: int
    """The same of tensors of experts, a whole layer's."""
    experts: dict[int, dict[str, int]]
    """Block -> name behind ``blk.N.`` -> bytes of all its experts."""


@functools.lru_cache(maxsize=64)
def stored(tensors: tuple[tuple[str, str, int], ...]) -> Stored:
    experts: dict[int, dict[str, int]] = {}
    for name, _, nbytes in tensors:
        role, block = role_of(name)
        if role == "expert":
            experts.setdefault(block, {})[name.split(".", 2)[2]] = nbytes
    most = max((n for parts in experts.values() for n in parts.values()), default=0)
    return Stored(max((n for _, _, n in tensors), default=0), most, experts)


def share_of(model: Model, block: int, projections: tuple[str, ...]) -> float:
    """Share of a block's expert bytes in some projections; a third each where tensors are unknown."""
    parts = stored(model.tensors).experts.get(block)
    if not parts:
        return len(projections) / 3
    found = sum(
        n for k, n in parts.items() if k.startswith(tuple(f"ffn_{p}_exps" for p in projections))
    )
    return found / sum(parts.values())


def fused(model: Model) -> bool:
    """Whether gate and up are one matrix."""
    parts = stored(model.tensors).experts.values()
    return any(k.startswith("ffn_gate_up") for p in parts for k in p)


def compute_bytes(model: Model, c: Candidate, offloads: bool) -> int:
    """Logits and activations of a micro-batch, and a copy of the largest tensor that a prefill brings
    to the GPU (ggml-backend.cpp starts a split at each, so that one lies there at a time)."""
    rows = (model.n_vocab or 0) + ACTIVATIONS * (model.n_embd or 4096)
    buffer = c.ubatch * rows * 4
    if not offloads or c.kind == GPU:
        return buffer
    found = stored(model.tensors)
    largest = found.largest if c.cpu_blocks else found.largest_expert
    whole = max(model.expert_bytes, default=0) * model.n_experts
    return buffer + (largest or whole // 3 + 1)


def cache_bytes(model: Model, slots: int) -> int:
    """Banks of the expert cache: one a tensor of an expert, with a slot to spare
    (llama-moe-cache.cpp, ``alloc_size``)."""
    return sum(-(-n * (slots + 1) // ALIGN) * ALIGN for n in bank_parts(model))


def cache_slots(model: Model, mib: int, blocks: int) -> int:
    """Slots that ``mib`` MiB hold, at most all experts of the first ``blocks`` blocks; 0 below what a
    token uses in a layer."""
    most = model.n_experts * sum(block < blocks for block in model.moe_layers)
    slots = min(mib * MIB // sum(bank_parts(model)) - 1, most)
    while slots > 0 and cache_bytes(model, slots) > mib * MIB:
        slots -= 1
    return slots if slots >= model.top_k else 0


def bank_parts(model: Model) -> list[int]:
    """Bytes of each matrix of the largest expert; thirds where tensors are unknown. Biases are not
    cached."""
    largest = max(range(len(model.expert_bytes)), key=model.expert_bytes.__getitem__)
    parts = stored(model.tensors).experts.get(model.moe_layers[largest], {})
    found = [n // model.n_experts for k, n in parts.items() if k.endswith("_exps.weight")]
    whole = max(model.expert_bytes)
    return found or [whole // 3, whole // 3, whole - 2 * (whole // 3)]
