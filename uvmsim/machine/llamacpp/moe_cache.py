"""The expert cache's banks: `src/llama-moe-cache.cpp` of llama.cpp b11549.

Blocks on the GPU that keep all their experts in host memory share the budget; blocks whose expert
tensors look alike (types and shapes) are a group with one bank a tensor and one slot more than is used,
because matrix kernels may read past the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

from traces.errors import InputError
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.cuda_rules import ALIGNMENT, HOST_ALIGNMENT, row_padding
from uvmsim.machine.llamacpp.ggml import GPU, HOST, PLAIN
from uvmsim.machine.llamacpp.model_file import FileTensor, LlamaModel
from uvmsim.machine.llamacpp.placement import Placed, layer_device

_PARTS = ("ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class CacheGroup:
    """Blocks that share banks. ``slots``: experts that fit, over all its blocks; 0: too few."""

    blocks: tuple[int, ...]
    slots: int
    bank_bytes: int
    host_expert_bytes: int


@dataclass(frozen=True)
class ExpertCache:
    """What the cache takes; empty where no block has all its experts in host memory."""

    groups: tuple[CacheGroup, ...] = ()
    host_bytes: int = 0
    """Slot maps."""

    @property
    def device_bytes(self) -> int:
        return sum(g.bank_bytes for g in self.groups)

    def slots(self, block: int) -> int:
        return next((g.slots for g in self.groups if block in g.blocks), 0)


def expert_cache(model: LlamaModel, config: LlamaConfig, placed: list[Placed]) -> ExpertCache:
    """Slots and bytes for ``--moe-cache-mib``.

    Raises `InputError` where llama.cpp refuses to start: no GPU, no experts, or a budget below the
    experts of one token.
    """
    budget = config.moe_cache_mib << 20
    if not budget:
        return ExpertCache()
    if not config.gpu:
        raise InputError("--moe-cache-mib: needs a GPU")
    if not model.n_expert_used:
        raise InputError(f"--moe-cache-mib: {model.name} has no experts")
    groups: dict[tuple[tuple[str, tuple[int, ...]], ...], list[tuple[int, list[FileTensor]]]] = {}
    for block, tensors in _host_blocks(model, config, placed):
        groups.setdefault(tuple((t.type, t.shape) for t in tensors), []).append((block, tensors))
    if not groups:
        return ExpertCache()
    sizes = [sum(t.n_bytes for _, ts in blocks for t in ts) for blocks in groups.values()]
    made = []
    for blocks, nbytes in zip(groups.values(), sizes, strict=True):
        ref = blocks[0][1]
        share = int(budget * nbytes / sum(sizes))
        slots = _slots(ref, share, len(blocks) * ref[0].shape[2])
        slots = slots if slots >= model.n_expert_used else 0
        bank = sum(_bank(t, slots) for t in ref) if slots else 0
        made.append(CacheGroup(tuple(b for b, _ in blocks), slots, bank, nbytes))
    if not any(g.slots for g in made):
        raise InputError(
            f"--moe-cache-mib {config.moe_cache_mib}: too small for the experts of one token"
        )
    table = -(-4 * model.n_expert // HOST_ALIGNMENT) * HOST_ALIGNMENT
    return ExpertCache(tuple(made), table * sum(len(g.blocks) for g in made if g.slots))


def _host_blocks(
    model: LlamaModel, config: LlamaConfig, placed: list[Placed]
) -> list[tuple[int, list[FileTensor]]]:
    """Blocks on the GPU with all their experts in host memory, parts in llama.cpp's order."""
    found: dict[int, dict[str, Placed]] = {}
    for p in placed:
        parts = p.tensor.name.split(".")
        if len(parts) == 4 and parts[2] in _PARTS and parts[3] == "weight":
            found.setdefault(p.block, {})[parts[2]] = p
    out = []
    for block, parts_of in sorted(found.items()):
        on_gpu = layer_device(model, config, block) == GPU
        if on_gpu and all(p.device == HOST for p in parts_of.values()):
            out.append((block, [parts_of[x].tensor for x in _PARTS if x in parts_of]))
    return out


def _one(t: FileTensor) -> int:
    return t.n_bytes // t.shape[2]


def _padded_bank(t: FileTensor, slots: int) -> int:
    return -(-_one(t) * (slots + 1) // ALIGNMENT) * ALIGNMENT


def _slots(ref: list[FileTensor], budget: int, most: int) -> int:
    """The most slots whose banks (with one more) are within the budget."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if sum(_padded_bank(t, middle) for t in ref) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _bank(t: FileTensor, slots: int) -> int:
    """Bytes as allocated: the budget does not count the padding of the last row."""
    size = _one(t) * (slots + 1)
    if t.type not in PLAIN:
        size += row_padding(t.type, t.shape[0])
    return -(-size // ALIGNMENT) * ALIGNMENT
