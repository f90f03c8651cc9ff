"""What one micro-batch of llama.cpp consists of, counted in the terms that its time is a sum of.

The graph is llama.cpp's own (`families`), split between GPU and CPU as its scheduler does; every node
is counted where it runs. Only what depends on the routing (which experts, how many tokens each) and on
the context is left open, as a factor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.ggml import HOST, VIEWS, Tensor
from uvmsim.machine.llamacpp.kernels import ROW_TOKENS, SCANNED_TOKENS, launched, tiled
from uvmsim.machine.llamacpp.kv_cache import cells_of
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.moe_cache import expert_cache
from uvmsim.machine.llamacpp.placement import place
from uvmsim.machine.llamacpp.plan import graph_of, uses_flash
from uvmsim.machine.llamacpp.scheduler import Scheduler

_OVER_CELLS = ("MUL_MAT", "SOFT_MAX", "CONT")
"""Operations of attention as wide as the cache; llama.cpp runs them over the positions in use."""
Counts = dict[str, float]
"""Term -> how many of its units."""
_BLOCK = re.compile(r"blk\.(\d+)\.")
SORTED_ROWS, SORTED_WIDE, SORTED_NARROW = 1024, 128, 512
"""Float experts of more rows than the first leave the tiled kernel above the second number of tokens,
others above the third (``ggml_cuda_should_use_mmf``)."""
MMQ_TILE, MMF_TILE = 128, 16
"""Most tokens of an expert that the tiled kernels take at a time."""
MULTIPROCESSORS = 132
"""An H100's; on a card with others, a product here and there needs one kernel more or less."""


@dataclass
class Block:
    """One block of the model in one micro-batch."""

    dense: Counts = field(default_factory=dict)
    """Everything outside the routed experts."""
    call: Counts = field(default_factory=dict)
    """The routed experts whatever is chosen; empty without any."""
    expert: Counts = field(default_factory=dict)
    """A distinct chosen expert."""
    pair: Counts = field(default_factory=dict)
    """A token of an expert, whole tiles."""
    attended: Counts = field(default_factory=dict)
    """A position in the context (for all tokens of the micro-batch together)."""
    tile: int = 1
    """Tokens of an expert that are computed at a time."""
    copied: int = 0
    """Bytes of one expert that are copied to the GPU before it is used."""
    matrices: int = 0
    """Tensors that those bytes are of."""
    banks: int = 0
    """Matrices of an expert that the GPU computes with, wherever they lie: copies that bring one into
    the expert cache."""
    windowed: bool = False


@dataclass(frozen=True)
class Work:
    """A micro-batch: what it costs once, and a block each."""

    n_tokens: int
    once: Counts
    """Embedding, head, and what a micro-batch takes beside its blocks."""
    blocks: tuple[Block, ...]
    kernels: int
    splits: int


def work(model: LlamaModel, config: LlamaConfig, n_tokens: int) -> Work:
    """The work of a micro-batch of ``n_tokens`` (one sequence, logits of the last token).

    Raises `InputError` for what `plan.memory` refuses.
    """
    return _work(model, config, n_tokens)


@lru_cache(maxsize=512)
def _work(model: LlamaModel, config: LlamaConfig, n: int) -> Work:
    placed = place(model, config)
    cache = expert_cache(model, config, placed)
    graph = graph_of(model, config, placed, cache, n, 1, uses_flash(model, config))
    scheduler = Scheduler(graph, config.cc, gpu=config.gpu, op_offload=config.op_offload)
    if config.gpu:
        scheduler.assign()
        splits = [(d == 0, a, b, inputs) for d, a, b, inputs in scheduler.split()]
    else:
        splits = [(False, 0, len(graph.nodes), [])]
    host = {p.tensor.name for p in placed if p.device == HOST}
    count = _Counter(model, config, n, host)
    previous = splits[0][0]
    for gpu, first, end, inputs in splits:
        nodes = scheduler.nodes[first:end]
        started = any(x.op not in VIEWS and x.op != "GET_ROWS" for x in scheduler.nodes[:first])
        if started and (gpu != previous or any(s.weight for s in inputs)):
            count.split(nodes, [s.name for s in inputs])
        previous = gpu
        count.nodes(nodes, gpu)
    return count.result(len(splits))


class _Counter:
    """Walks nodes in order and adds up."""

    def __init__(self, model: LlamaModel, config: LlamaConfig, n: int, host: set[str]) -> None:
        self.model, self.n, self.host = model, n, host
        self.link = config.link
        self.gpu = config.gpu
        self.row = n <= (ROW_TOKENS if config.gpu else 1)
        self.blocks = [
            Block(windowed=bool(model.windowed and model.windowed[i]))
            for i in range(model.n_layers)
        ]
        self.once: Counts = {("step" if self.row else "batch"): 1.0}
        if not config.gpu:
            self.once = {f"cpu.{k}": v for k, v in self.once.items()}
        if (
            not self.row and config.gpu
        ):  # each token's row is updated where the batch's own tokens are
            kinds = {bool(b.windowed) for b in self.blocks}
            if False in kinds:
                self.once["mask"] = float(n * n)
            if True in kinds:
                self.once["mask_window"] = float(n * (n + model.window))
        self.cells = [cells_of(model, config, i) for i in range(model.n_layers)]
        self.here = -1
        self.kernels = 0

    # ---- where a node belongs ------------------------------------------------------------------

    def _enter(self, node: Tensor) -> None:
        for src in node.src:
            m = _BLOCK.match(src.name) if src is not None and src.name else None
            if m:
                self.here = int(m[1])
            elif src is not None and src.name.startswith("output"):
                self.here = len(self.blocks)

    def _dense(self) -> Counts:
        return self.blocks[self.here].dense if 0 <= self.here < len(self.blocks) else self.once

    def split(self, nodes: list[Tensor], inputs: list[str]) -> None:
        """A change of device, or a wait for ids, before ``nodes``."""
        before = self.here
        for node in nodes:
            self._enter(node)
            if self.here != before or node.op not in VIEWS:
                break
        _add(self._dense(), "split" if self.row else "batch_split", 1)
        self.here = before

    def nodes(self, nodes: list[Tensor], gpu: bool) -> None:
        kernels = launched(nodes, self.n) if gpu else [int(x.op not in VIEWS) for x in nodes]
        for node, k in zip(nodes, kernels, strict=True):
            self._enter(node)
            if node.op not in VIEWS:
                self._one(node, k, gpu)
        self.kernels += sum(kernels) if gpu else 0

    # ---- what a node costs ---------------------------------------------------------------------

    def _one(self, node: Tensor, kernels: int, gpu: bool) -> None:
        side = "" if gpu else "cpu."
        row = self.n <= (ROW_TOKENS if gpu else 1)
        weight = node.src[0]
        expert = node.op == "MUL_MAT_ID"
        inside = 0 <= self.here < len(self.blocks)
        into = self.blocks[self.here].call if expert and inside else self._dense()
        name = "kernel" if gpu else "node"
        if self.gpu and not gpu and not inside:  # rows of the embedding table, in every step alike
            if node.op == "GET_ROWS":
                _add(self.once, "embed", node.n_elements)
            return
        _add(into, f"{side}{name if row else f'batch_{name}'}", kernels)
        if expert and weight is not None and inside:
            self._experts(node, weight, side, row)
        elif node.op == "MUL_MAT" and weight is not None and (weight.weight or self._lent(weight)):
            self._product(into, node, weight, side, row)
        elif node.op in ("FLASH_ATTN_EXT", "SOFT_MAX") and inside:
            self._attention(node, side, row)
        if gpu and row and node.op == "ARGSORT" and kernels:
            _add(into, "argsort", 1)
        if gpu and weight is not None and (expert or weight.weight or self._lent(weight)):
            self._shape(into, node, weight, kernels, row, expert and inside)
            if expert and not row:
                _add(into, "sort", self.n)
        if not row and kernels and node.op != "SET_ROWS":
            cells = self.cells[self.here] if inside else 0
            if cells and cells in node.ne and node.op in _OVER_CELLS:
                _add(self.blocks[self.here].attended, f"{side}activations", node.n_bytes / cells)
            else:
                _add(into, f"{side}activations", node.n_bytes)

    def _shape(
        self, into: Counts, node: Tensor, weight: Tensor, kernels: int, row: bool, expert: bool
    ) -> None:
        """What a product costs beside its bytes and operations. ``expert``: of a block."""
        if not row:
            _add(into, "depth", weight.ne[0])
            return
        if expert and kernels and tiled(node):
            _add(into, "row_tile", 1)
            _add(into, "row_tiles", weight.ne[2] * (weight.ne[1] / 32))
            return
        if kernels:
            _add(into, "row_depth", weight.ne[0])
        _add(self.blocks[self.here].expert if expert else into, "output", weight.ne[1])

    def _product(self, into: Counts, node: Tensor, weight: Tensor, side: str, row: bool) -> None:
        if row or side:
            _add(into, f"{side}row.{weight.type}", weight.n_bytes)
        if not row:
            columns = node.n_elements // node.ne[0]
            if side or not weight.quantised:
                _add(into, f"{side}dense.{weight.type}", 2.0 * weight.n_elements * columns)
                if not side:
                    _add(into, f"dense_bytes.{weight.type}", weight.n_bytes)
            else:  # the same kernel as the experts'
                tile = min(MMQ_TILE, -(-columns // 8) * 8)
                tiled = -(-columns // tile) * tile
                _add(into, f"experts.{weight.type}", 2.0 * weight.n_elements * tiled)
                _add(into, f"expert_bytes.{weight.type}", weight.n_bytes)
                _add(into, "tile_output", float(weight.ne[1] * tiled))
                _add(into, "fixup", int(_shared_tiles(weight, columns)))
        if not side and self._lent(weight):
            _add(into, self.link, weight.n_bytes)
            _add(into, "copy", 1)

    def _lent(self, weight: Tensor) -> bool:
        """Whether it is a copy of a weight that lies in host memory."""
        return weight.name in self.host

    def _experts(self, node: Tensor, weight: Tensor, side: str, row: bool) -> None:
        block, kind = self.blocks[self.here], weight.type
        each = weight.nb[2]
        elements = weight.ne[0] * weight.ne[1]
        if row or side:
            _add(block.expert, f"{side}row_experts.{kind}", each)
        if row:
            pass
        elif side:
            _add(block.pair, f"cpu.experts.{kind}", 2.0 * elements)
        elif _sorted(weight, self.n):
            _add(block.pair, "sorted", 2.0 * elements)
            _add(block.expert, "sorted_call", 1)
            _add(block.expert, f"expert_bytes.{kind}", each)
        else:
            _add(block.pair, f"experts.{kind}", 2.0 * elements)
            _add(block.expert, f"expert_bytes.{kind}", each)
            tile = MMQ_TILE if weight.quantised else MMF_TILE
            block.tile = min(tile, -(-self.n // 8) * 8)
            if weight.quantised:
                _add(block.pair, "tile_output", weight.ne[1])
                _add(block.call, "fixup", int(_shared_tiles(weight, self.n)))
            else:
                looked = weight.ne[2] * -(-self.n // MMF_TILE) * (weight.ne[1] / 32)
                _add(block.call, "tiles", looked)
        block.banks += not side
        if not side and weight.name in self.host:
            block.copied += each
            block.matrices += 1

    def _attention(self, node: Tensor, side: str, row: bool) -> None:
        block, m = self.blocks[self.here], self.model
        if node.op == "SOFT_MAX" and (len(node.src) < 2 or node.src[1] is None):
            return  # the router's
        if row:
            # A GPU reads K and V once for the heads that share them, a CPU once a head.
            heads = m.n_head if side else m.n_head_kv[self.here]
            _add(block.attended, f"{side}attend", 2.0 * heads * (m.head_k + m.head_v))
        elif node.op == "FLASH_ATTN_EXT" and not side:
            each = 2.0 * self.n * m.n_head * (m.head_k + m.head_v)
            _add(block.attended, "flash", each)
            _add(block.dense, "flash_call", 1)
            if self.n >= SCANNED_TOKENS and not block.windowed:  # what no token sees is passed over
                _add(block.dense, "flash", -each * self.n / 2)
        else:
            _add(block.attended, f"{side}scores", float(self.n * m.n_head))

    def result(self, splits: int) -> Work:
        return Work(self.n, self.once, tuple(self.blocks), self.kernels, splits)


def _sorted(weight: Tensor, n: int) -> bool:
    """Whether the product runs expert by expert, its tokens sorted on the host."""
    if weight.quantised:
        return False
    return n > (SORTED_NARROW if weight.ne[1] <= SORTED_ROWS else SORTED_WIDE)


def _shared_tiles(weight: Tensor, n: int) -> bool:
    """Whether blocks share tiles of a product of quantised weights, and a second kernel puts those
    together (`mmq.cuh`): where whole tiles would leave a tenth of the multiprocessors idle."""
    tiles = -(-weight.ne[1] // MMQ_TILE) * -(-n // MMQ_TILE) * weight.ne[2]
    waves = -(-tiles // MULTIPROCESSORS)
    return 100 * tiles // (MULTIPROCESSORS * waves) < 90 and tiles % MULTIPROCESSORS != 0


def _add(counts: Counts, key: str, n: float) -> None:
    if n:
        counts[key] = counts.get(key, 0.0) + n
