"""What `calibrate --engine llama.cpp` runs: synthetic models, each constant large in some of them.

Other widths, heads and numbers of experts than any preset has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from replay.llama_cpp.request import Context, Test
from replay.llama_cpp.synthetic import Shape

RESIDENT, MAPPED, PINNED, CACHE, MANAGED, REMOTE = (
    "resident", "mapped", "pinned", "cache", "managed", "remote"
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One process: how the model is loaded, and a context for each ``mode``."""

    contexts: tuple[tuple[str, Context], ...]
    offload: bool = False
    """Experts in host memory (``-ncmoe``)."""
    no_mmap: bool = False
    unified: bool = False


_SMALL = Shape(n_embd=1024, n_ff_expert=512)
GPU_SHAPES: dict[str, Shape] = {
    "f16-short": replace(_SMALL, n_layers=2, n_experts=16),
    "f16-large": Shape(n_layers=4, n_embd=2048, n_heads=16, n_kv_heads=4, head_dim=128,
                       n_experts=24, top_k=6, n_ff_expert=1024, n_vocab=16384),
    "q4k-large": Shape(n_layers=5, n_embd=2560, n_heads=32, n_kv_heads=8, head_dim=128,
                       n_experts=64, top_k=8, n_ff_expert=1280, n_vocab=16384, experts="Q4_K",
                       dense="Q8_0"),
    "mxfp4-large": Shape("gpt-oss", n_layers=4, n_embd=2560, n_heads=48, n_kv_heads=8,
                         head_dim=64, n_experts=32, top_k=4, n_ff_expert=2560, n_vocab=16384,
                         experts="MXFP4", dense="Q8_0"),
    "q8-large": Shape(n_layers=3, n_embd=2560, n_heads=20, n_kv_heads=4, head_dim=128, n_experts=8,
                      top_k=2, n_ff_expert=5120, n_vocab=32768, experts="Q8_0", dense="Q8_0"),
    "q6k-deep": Shape(n_layers=8, n_embd=1536, n_heads=24, n_kv_heads=4, head_dim=64, n_experts=32,
                      top_k=4, n_ff_expert=1024, n_vocab=8192, experts="Q6_K", dense="Q4_K"),
    "f16-deep": replace(_SMALL, n_layers=14, n_experts=16),
    "q4k-deep": replace(_SMALL, n_layers=16, experts="Q4_K", dense="Q8_0"),
    "mxfp4-deep": Shape("gpt-oss", n_layers=12, n_embd=1024, n_ff_expert=1024, experts="MXFP4",
                        dense="Q8_0"),
    "q8-deep": Shape(n_layers=8, n_embd=1024, n_heads=8, head_dim=128, n_experts=16, top_k=2,
                     n_ff_expert=2048, experts="Q8_0", dense="F16"),
    "f16-wide": Shape(n_layers=3, n_embd=1024, n_experts=96, top_k=4, n_ff_expert=896),
    "q4k-wide": Shape(n_layers=3, n_embd=1792, n_heads=28, n_kv_heads=4, head_dim=64, n_experts=112,
                      top_k=6, n_ff_expert=1024, experts="Q4_K", dense="Q8_0"),
    "q4k-short": replace(_SMALL, n_layers=2, experts="Q4_K", dense="Q8_0"),
    "mxfp4-short": Shape("gpt-oss", n_layers=2, n_embd=1024, n_ff_expert=1024, experts="MXFP4",
                         dense="Q8_0"),
}  # fmt: skip
"""``short`` and ``deep`` tell what a micro-batch costs once from what a block costs, ``large`` what
bytes and operations cost from what kernels do, ``wide`` (few tokens an expert) bytes from operations.
In the order of what is missed least where time runs out."""

_NARROW = Shape(n_embd=512, n_heads=8, n_kv_heads=4, n_ff_expert=512)
CPU_SHAPES: dict[str, Shape] = {
    "f16-deep": replace(_NARROW, n_layers=12, n_experts=8),
    "f16-large": Shape(n_layers=3, n_embd=1024, n_experts=16, n_ff_expert=1024),
    "q4k-deep": replace(_NARROW, n_layers=14, n_experts=16, experts="Q4_K", dense="Q8_0"),
    "q4k-large": Shape(n_layers=3, n_embd=1536, n_heads=12, head_dim=128, n_experts=24, top_k=6,
                       n_ff_expert=1024, experts="Q4_K", dense="Q8_0"),
    "mxfp4-deep": replace(_NARROW, architecture="gpt-oss", n_layers=10, n_experts=16,
                          experts="MXFP4", dense="Q8_0"),
    "mxfp4-large": Shape("gpt-oss", n_layers=3, n_embd=1536, n_heads=24, n_experts=24,
                         n_ff_expert=1536, experts="MXFP4", dense="Q8_0"),
    "q8-deep": replace(_NARROW, n_layers=10, n_experts=8, experts="Q8_0", dense="Q8_0"),
    "q8-large": Shape(n_layers=3, n_embd=1024, n_heads=8, head_dim=128, n_experts=8, top_k=2,
                      n_ff_expert=2048, n_vocab=24576, experts="Q8_0", dense="F16"),
    "q6k-deep": replace(_NARROW, n_layers=8, n_experts=8, experts="Q6_K", dense="Q4_K"),
    "q6k-large": Shape(n_layers=3, n_embd=1024, n_experts=16, n_ff_expert=1024, n_vocab=24576,
                       experts="Q6_K", dense="Q4_K"),
}  # fmt: skip
"""Deep against large, as on a GPU; most are larger than a CPU's caches."""

QUICK_SHAPES: dict[str, Shape] = {
    "f16": Shape(n_layers=2, n_embd=256, n_heads=4, n_experts=8, n_ff_expert=256, n_vocab=512),
    "q8": Shape(n_layers=4, n_embd=512, n_heads=8, n_experts=8, n_ff_expert=256, n_vocab=512,
                experts="Q8_0", dense="Q8_0"),
    "q4k": Shape(n_layers=2, n_embd=512, n_heads=8, n_experts=8, n_ff_expert=512, n_vocab=512,
                 experts="Q4_K", dense="F16"),
    "mxfp4": Shape("gpt-oss", n_layers=3, n_embd=256, n_heads=4, n_experts=8, n_ff_expert=512,
                   n_vocab=1024, experts="MXFP4", dense="Q8_0"),
}  # fmt: skip


def _pp(*sizes: int, reps: int = 6) -> tuple[Test, ...]:
    return tuple(Test("pp", n, reps=reps) for n in sizes)


def gpu_runs(name: str) -> list[Run]:
    """The runs of one model on a GPU."""
    resident = (
        (RESIDENT, Context((*_pp(24, 96, 384), Test("tg", 48, reps=3),
                            Test("tg", 32, depth=3072, reps=2)))),
        (RESIDENT, Context(_pp(384, reps=3), n_ubatch=96)),
        (RESIDENT, Context(_pp(1536, reps=3), n_ubatch=1536)),
    )  # fmt: skip
    mapped = (MAPPED, Context((*_pp(16, 96, 384), Test("tg", 24, reps=4))))
    pinned = (PINNED, Context(_pp(96, 384)))
    cache = tuple(
        (CACHE, Context((Test("tg", 48, reps=2),), moe_cache_mib=-share)) for share in (15, 50)
    )
    runs = [Run(resident)]
    if not name.endswith("short"):
        runs.append(Run((mapped,), offload=True))
    if name.endswith("large") or name in ("mxfp4-deep", "q4k-deep"):
        runs += [
            Run((pinned, *cache), offload=True, no_mmap=True),
            Run((
                (MANAGED, Context((Test("tg", 48, reps=2),))),
                (REMOTE, Context((Test("tg", 24, reps=2), *_pp(384, reps=3)), on_host=True)),
            ), unified=True),
        ]  # fmt: skip
    return runs


def cpu_runs(quick: bool) -> list[Run]:
    """The runs of one model without a GPU."""
    if quick:
        one = Context((*_pp(4, 24, 64, reps=3), Test("tg", 12, reps=3)))
        return [Run(((RESIDENT, one),))]
    return [Run((
        (RESIDENT, Context((*_pp(4, 24, 96, 320, reps=4), Test("tg", 24, reps=4),
                            Test("tg", 16, depth=1024, reps=3)))),
        (RESIDENT, Context(_pp(320, reps=3), n_ubatch=96)),
    ))]  # fmt: skip


def model_runs(gpu: bool) -> list[Run]:
    """A few runs of the user's own model, which sharpen the constants for it."""
    if not gpu:
        return [Run(((RESIDENT, Context((*_pp(96, 320), Test("tg", 24, reps=3)))),))]
    return [
        Run(((RESIDENT, Context((*_pp(128, 512), Test("tg", 32, reps=3)))),)),
        Run(((MAPPED, Context((*_pp(512), Test("tg", 24, reps=3)))),), offload=True),
        Run(((PINNED, Context(_pp(512))),), offload=True, no_mmap=True),
    ]


def cache_mib(shape: Shape, share: int) -> int:
    """MiB of an expert cache that holds ``share`` % of a model's experts."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[shape.experts]]
    expert = 3 * shape.n_embd * shape.n_ff_expert // block * size
    if shape.architecture == "gpt-oss":
        expert += 4 * (2 * shape.n_ff_expert + shape.n_embd)
    slots = max(shape.n_layers * shape.n_experts * share // 100, shape.top_k + 1)
    return -(-expert * (slots + 1) // (1 << 20)) + 1
