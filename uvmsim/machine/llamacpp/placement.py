"""Which tensor goes where: `src/llama-model.cpp` (``load_tensors``) and `llama-model-loader.cpp`
(``create_tensor``) of llama.cpp b11549.

The embedding table stays in host memory; blocks are offloaded from the last one down, the output as one
more behind them; overrides by regular expression come last and win. A tied embedding table is loaded a
second time as the LM head. With a GPU, weights in host memory are page-locked or, mapped, plain pages
of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.cuda_rules import ALIGNMENT, HOST_ALIGNMENT, row_padding
from uvmsim.machine.llamacpp.ggml import GPU, HOST, PLAIN
from uvmsim.machine.llamacpp.model_file import FileTensor, LlamaModel

_BLOCK = re.compile(r"blk\.(\d+)\.")
_EXPERT = re.compile(r"_(ch)?exps\.|\.ffn_(gate|up|down)\.\d+\.")
_INPUT = re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd)\b")


@dataclass(frozen=True)
class Placed:
    """A tensor and where it lies; a tied embedding table comes twice, on both sides."""

    tensor: FileTensor
    device: str
    """``"gpu"`` or ``"host"``"""
    block: int
    """-1 for embedding and output."""
    expert: bool
    rule: str
    """Why: ``embedding``, ``output``, ``-ngl``, or the pattern that moved it."""

    @property
    def n_bytes(self) -> int:
        return self.tensor.n_bytes

    @property
    def stored(self) -> int:
        """Bytes in its buffer, padding and alignment included."""
        if self.device == GPU:
            size, align = self.n_bytes, ALIGNMENT
            if self.tensor.type not in PLAIN:
                size += row_padding(self.tensor.type, self.tensor.shape[0])
        else:
            size, align = self.n_bytes, HOST_ALIGNMENT
        return -(-size // align) * align


def layer_device(model: LlamaModel, config: LlamaConfig, block: int) -> str:
    """Where a block (or, one past the last, the output) lies without overrides."""
    if not config.gpu:
        return HOST
    total = model.n_layers_all + 1
    wanted = total if config.n_gpu_layers is None else config.n_gpu_layers
    first = max(total - wanted, 0)
    return GPU if first <= block < first + min(wanted, total) else HOST


def fully_offloaded(model: LlamaModel, config: LlamaConfig) -> bool:
    """Every block and the output on the GPU (``-ngl`` above the number of blocks)."""
    n = config.n_gpu_layers
    return config.gpu and (n is None or n > model.n_layers_all)


def place(model: LlamaModel, config: LlamaConfig) -> list[Placed]:
    """Every tensor that llama.cpp loads, in file order, with where it goes and why."""
    rules = config.rules() if config.gpu else []
    out: list[Placed] = []
    for t in model.tensors:
        m = _BLOCK.match(t.name)
        block = int(m[1]) if m else -1
        if block >= model.n_layers:
            continue  # predicts further tokens; not loaded
        if block >= 0:
            device, rule = layer_device(model, config, block), "-ngl"
        elif t.name.startswith("rope_freqs"):
            device, rule = layer_device(model, config, 0), "-ngl"
        elif _INPUT.match(t.name):
            device, rule = HOST, "embedding"
        else:
            device, rule = layer_device(model, config, model.n_layers_all), "output"
        expert = block >= 0 and bool(_EXPERT.search(t.name))
        moved = _override(rules, t.name)
        out.append(
            Placed(t, *(moved or (device, rule))[:1], block, expert, (moved or (0, rule))[1])
        )
        if t.name == "token_embd.weight" and model.tied:
            twin = layer_device(model, config, model.n_layers_all)
            twin, why = _override(rules, t.name) or (twin, "output (tied)")
            if twin != out[-1].device:
                out.append(Placed(t, twin, -1, False, why))
        last = layer_device(model, config, model.n_layers - 1)
        if t.name.startswith("rope_freqs") and device != last:
            out.append(Placed(t, last, -1, False, "-ngl"))  # one on each side that has blocks
    return out


def _override(rules: list[tuple[re.Pattern[str], str]], name: str) -> tuple[str, str] | None:
    for pattern, device in rules:
        if pattern.search(name):
            return (GPU if device == "CUDA0" else HOST), pattern.pattern
    return None


@dataclass(frozen=True)
class ExpertBytes:
    """Routed experts of one block, bytes on each side."""

    block: int
    gpu: int
    host: int


def experts_by_block(placed: list[Placed]) -> list[ExpertBytes]:
    """For every block with routed experts, how many of their bytes lie where."""
    sums: dict[int, dict[str, int]] = {}
    for p in placed:
        if p.expert:
            sums.setdefault(p.block, {GPU: 0, HOST: 0})[p.device] += p.n_bytes
    return [ExpertBytes(b, s[GPU], s[HOST]) for b, s in sorted(sums.items())]


def mapped_range(placed: list[Placed]) -> int:
    """What llama.cpp reports as ``CPU_Mapped``: in every file, from the first byte it keeps in host
    memory to the last, whatever lies between."""
    ends: dict[int, tuple[int, int]] = {}
    for p in placed:
        if p.device == HOST:
            t = p.tensor
            low, high = ends.get(t.file, (t.offset, 0))
            ends[t.file] = (min(low, t.offset), max(high, t.offset + t.n_bytes))
    return sum(high - low for low, high in ends.values())
