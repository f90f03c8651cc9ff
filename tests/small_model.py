"""A model of a few hundred MiB with paging constants of its own, for tests of the paging driver."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from uvmsim.machine.hardware import Hardware, UvmCosts
from uvmsim.machine.model import Model

TOML = """
name = "small"
summary = "a test's"
architecture = "gpt-oss"

[shape]
source = "a test"
n_layers = 3
n_embd = 512
n_vocab = 4000

[experts]
source = "a test"
n_experts = 32
top_k = 4
n_ff_expert = 1056
expert_bias = true
router_bias = true

[attention]
source = "a test"
n_heads = 8
n_kv_heads = 2
head_dim = 64
qkv_bias = true
out_bias = true
sinks = true

[types]
source = "a test"
experts = "F16"
attention = "F16"
output = "F16"
embedding = "F16"
"""

COSTS = UvmCosts(
    sm_count=20, ctas_per_sm=4, batch_ns=9000, entry_ns=300, first_touch_ns=800, evict_ns=900,
    copy_ns=600, h2d_bytes_per_s=20_000_000_000, d2h_bytes_per_s=18_000_000_000, duplex=True,
)  # fmt: skip


def small_model(folder: Path) -> Model:
    """About 300 MiB of experts in three layers."""
    return Model.load(str(small_model_file(folder)))


def small_model_file(folder: Path) -> Path:
    path = folder / "small.toml"
    path.write_text(TOML)
    return path


def small_hardware(chunks: int, **uvm: int) -> Hardware:
    """``chunks`` of 2 MiB, and no preset's paging constants."""
    return dataclasses.replace(
        Hardware.load("h100"), vram_bytes=chunks << 21, uvm=dataclasses.replace(COSTS, **uvm)
    )


def pages_of(first: np.ndarray, last: np.ndarray) -> set[int]:
    """All pages of runs [first, last)."""
    runs = zip(first.tolist(), last.tolist(), strict=True)
    return {p for a, b in runs for p in range(a, b)}
