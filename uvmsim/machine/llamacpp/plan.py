"""Where every byte of a llama.cpp run goes: `memory` predicts what build b11549 reports, by buffer.

Nothing is fitted: weights, cache and banks follow from the file; compute buffers come from llama.cpp's
graph, split and allocated as its scheduler does (`scheduler`, `allocator`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from traces.errors import InputError
from uvmsim.machine.llamacpp import families
from uvmsim.machine.llamacpp.blocks import Builder, Setting
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.cuda_rules import attention_kernel
from uvmsim.machine.llamacpp.ggml import BLOCKS, GPU, HOST, Graph, Tensor, dims
from uvmsim.machine.llamacpp.kv_cache import layer_caches
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.moe_cache import ExpertCache, expert_cache
from uvmsim.machine.llamacpp.placement import (
    ExpertBytes,
    Placed,
    experts_by_block,
    fully_offloaded,
    layer_device,
    mapped_range,
    place,
)
from uvmsim.machine.llamacpp.scheduler import Reserved, Scheduler


@dataclass(frozen=True)
class Bytes:
    """Bytes by kind on one side."""

    weights: int = 0
    kv_cache: int = 0
    compute: int = 0
    """Intermediate results of the largest graph; copies of weights for prefill are in it."""
    output: int = 0
    """Logits handed to the program; page-locked host memory."""
    moe_cache: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.compute + self.output + self.moe_cache


@dataclass(frozen=True)
class MemoryPlan:
    """What llama.cpp allocates for a model and a configuration."""

    model: LlamaModel
    config: LlamaConfig
    gpu: Bytes
    host: Bytes
    mapped_bytes: int
    """Of the host's weights, the range of the file that llama.cpp reports as mapped; 0 without mmap."""
    flash_attention: bool
    """What ``auto`` comes to."""
    placed: tuple[Placed, ...]
    experts: tuple[ExpertBytes, ...]
    cache: ExpertCache
    prompt: Reserved
    """The graph of a whole micro-batch: buffers, splits, what is copied for each."""
    notes: tuple[str, ...]

    @property
    def vram_bytes(self) -> int:
        """Everything llama.cpp allocates on the device; not what the driver takes beside it."""
        return self.gpu.total

    @property
    def host_bytes(self) -> int:
        """Everything in host memory; mapped weights count as if all their pages were in memory."""
        return self.host.total

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: bytes by side and kind, experts by block, what moved, splits."""
        sides = {
            side: asdict(b) | {"total": b.total}
            for side, b in (("gpu", self.gpu), ("host", self.host))
        }
        return {
            "model": self.model.name,
            "config": asdict(self.config),
            "vram_bytes": self.vram_bytes,
            "host_bytes": self.host_bytes,
            **sides,
            "mapped_bytes": self.mapped_bytes,
            "flash_attention": self.flash_attention,
            "experts": [asdict(e) for e in self.experts],
            "moe_cache": [asdict(g) for g in self.cache.groups],
            "splits": len(self.prompt.splits),
            "nodes": self.prompt.n_nodes,
            "tensors": [
                {"name": p.tensor.name, "type": p.tensor.type, "bytes": p.n_bytes,
                 "device": p.device, "rule": p.rule}
                for p in self.placed
            ],
            "notes": list(self.notes),
        }  # fmt: skip


@lru_cache(maxsize=256)
def _plan(model: LlamaModel, config: LlamaConfig) -> MemoryPlan:
    _check(model, config)
    placed = place(model, config)
    caches = layer_caches(model, config)
    cache = expert_cache(model, config, placed)
    flash = uses_flash(model, config)
    prompt = reserve(model, config, placed, cache, config.tokens, config.outputs, flash)
    # Generation can be the larger graph of one side: its attention stays on the CPU where a prompt's
    # is done on the GPU. Buffers only grow, so each side keeps the larger.
    n = config.n_seq_max
    one = reserve(model, config, placed, cache, n, n, flash)
    on_gpu = max(prompt.gpu_bytes, one.gpu_bytes)
    on_host = max(prompt.host_bytes, one.host_bytes)

    def weights(side: str) -> int:
        return sum(p.stored for p in placed if p.device == side)

    def kept(side: str) -> int:
        return sum(c.stored for c in caches if c.device == side)

    gpu = Bytes(weights(GPU), kept(GPU), on_gpu, 0, cache.device_bytes)
    output = 4 * model.n_vocab * config.n_seq_max
    in_host = sum(p.n_bytes for p in placed if p.device == HOST) if config.mmap else weights(HOST)
    host = Bytes(in_host, kept(HOST), on_host, output, cache.host_bytes)
    return MemoryPlan(
        model=model,
        config=config,
        gpu=gpu,
        host=host,
        mapped_bytes=mapped_range(placed) if config.mmap else 0,
        flash_attention=flash,
        placed=tuple(placed),
        experts=tuple(experts_by_block(placed)),
        cache=cache,
        prompt=prompt,
        notes=tuple(_notes(model, config)),
    )


def memory(model: LlamaModel, config: LlamaConfig | None = None) -> MemoryPlan:
    """The memory plan of a model (`LlamaModel.load`) under a configuration (llama.cpp's defaults).

    Takes 0.03 to 0.25 s for models of 16 to 46 blocks; remembered for equal arguments.

    Raises `InputError` for configurations that llama.cpp refuses, and for architectures whose state is
    not a KV cache.
    """
    return _plan(model, config or LlamaConfig())


def _check(model: LlamaModel, config: LlamaConfig) -> None:
    arch = model.architecture
    if arch in families.OTHER_STATE:
        raise InputError(
            f"{model.name}: {arch} keeps another state than a KV cache (recurrent, indexed or shared), "
            "which is not modelled; llama.cpp's own llama-fit-params tells its memory"
        )
    if config.flash_attention == "off" and config.v not in ("F32", "F16", "BF16"):
        raise InputError(f"a {config.type_v} V cache needs flash attention; leave -fa at auto")
    for name, kind, head in (("K", config.k, model.head_k), ("V", config.v, model.head_v)):
        block = BLOCKS[kind][0]
        if head % block and not (name == "V" and model.mla):
            raise InputError(
                f"a {kind.lower()} {name} cache stores blocks of {block}, but a head of {model.name} "
                f"has {head} elements; choose f16"
            )
    if model.mla and config.k != config.v:
        raise InputError(f"{model.name} keeps K and V in one cache: give both the same type")
    if config.n_seq_max > 256:
        raise InputError(f"n_seq_max {config.n_seq_max}: llama.cpp allows 256")


def _notes(model: LlamaModel, config: LlamaConfig) -> list[str]:
    out = list(model.notes)
    if model.architecture not in families.KNOWN:
        out.append(
            f"the graph of {model.architecture} was not compared with llama.cpp's: "
            "compute buffers are those of the usual decoder, and every block keeps its whole context "
            "unless the file says otherwise"
        )
    if config.unified_memory:
        out.append("unified memory: device buffers are managed, and may exceed VRAM")
    return out


# ---- graphs ---------------------------------------------------------------------------------------


def reserve(
    model: LlamaModel,
    config: LlamaConfig,
    placed: list[Placed],
    cache: ExpertCache,
    n_tokens: int,
    n_outputs: int,
    flash: bool,
) -> Reserved:
    """Compute buffers of a micro-batch of ``n_tokens`` with the cache full (``graph_reserve``)."""
    n_tokens = -(-n_tokens // config.n_seq_max) * config.n_seq_max
    graph = graph_of(model, config, placed, cache, n_tokens, n_outputs, flash)
    scheduler = Scheduler(graph, config.cc, gpu=config.gpu, op_offload=config.op_offload)
    return scheduler.reserve()


def graph_of(
    model: LlamaModel,
    config: LlamaConfig,
    placed: list[Placed],
    cache: ExpertCache,
    n_tokens: int,
    n_outputs: int,
    flash: bool,
) -> Graph:
    """llama.cpp's graph of a micro-batch, weights placed, nodes not yet."""
    pinned = n_tokens < 32 or fully_offloaded(model, config)

    def forced(block: int) -> int | None:
        if not pinned or not config.gpu:
            return None
        return 0 if layer_device(model, config, block) == GPU else 1

    setting = Setting(n_tokens, n_outputs, config.n_streams, flash, forced, cache.slots)
    caches = {c.block: c for c in layer_caches(model, config)}
    builder = Builder(model, config, setting, _weights(placed), caches)
    try:
        return families.build(builder)
    except KeyError as e:
        raise InputError(
            f"{model.name}: a {model.architecture} without {e.args[0]} is not a decoder this build "
            "of llama.cpp shapes in a way that is modelled"
        ) from None


def _weights(placed: list[Placed]) -> Callable[[str], Tensor | None]:
    tensors: dict[str, Tensor] = {}
    for p in placed:
        t = Tensor(p.tensor.type, dims(*p.tensor.shape), name=p.tensor.name)
        t.place, t.weight = p.device, True
        twin = p.tensor.name in tensors
        tensors[f"{p.tensor.name}#2" if twin else p.tensor.name] = t
    return tensors.get


def uses_flash(model: LlamaModel, config: LlamaConfig) -> bool:
    """``auto``: on, unless the device of a block has no kernel for its shape."""
    if config.flash_attention != "auto":
        return config.flash_attention == "on"
    if not config.gpu or not config.kv_offload:
        return True
    for c in layer_caches(model, config):
        node = _probe(model, config, c.k, c.v, c.cells)
        if c.device == GPU and attention_kernel(node, config.cc) is None:
            return False
    return True


def _probe(
    model: LlamaModel, config: LlamaConfig, k: Tensor, v: Tensor | None, cells: int
) -> Tensor:
    """The attention node of one token a sequence, as llama.cpp asks the device about it."""
    streams = config.n_streams
    heads = k.ne[0] // model.head_k
    q = Tensor("F32", (model.head_k, config.n_seq_max // streams, model.n_head, streams))
    keys = Tensor(config.k, (model.head_k, cells, heads, streams))
    values = Tensor(config.v if v else config.k, (model.head_v, cells, heads, streams))
    mask = Tensor("F16", (cells, config.n_seq_max // streams, 1, streams))
    return Tensor("F32", (1, 1, 1, 1), "FLASH_ATTN_EXT", (q, keys, values, mask))
