"""How many bytes a graph's intermediate results take: ggml's graph allocator, step by step.

`ggml/src/ggml-alloc.c` of llama.cpp b11549. Tensors are placed in the order in which they are
computed and freed after their last use; results may take the place of a source (`INPLACE`); the best
fitting free block is used, and the peak is the size of the buffer.
"""

from __future__ import annotations

from collections.abc import Callable

from uvmsim.machine.llamacpp.ggml import Tensor

INPLACE = frozenset((
    "FILL", "SCALE", "DIAG_MASK_INF", "ADD", "ADD_ID", "ADD1", "SUB", "MUL", "DIV", "SQR", "SQRT",
    "LOG", "UNARY", "ROPE", "RMS_NORM", "CLAMP", "SOFT_MAX",
))  # fmt: skip
"""Operations that may write over a source (``ggml_op_can_inplace``)."""
_ENDLESS = 1 << 62
Size = Callable[[Tensor], int]


class Blocks:
    """A buffer that is yet to be allocated (``ggml_dyn_tallocr``, one chunk): free blocks by offset."""

    def __init__(self, alignment: int, size: Size) -> None:
        self.alignment, self._size = alignment, size
        self.free: list[list[int]] = [[0, _ENDLESS]]
        self.peak = 0

    def size(self, tensor: Tensor) -> int:
        return -(-self._size(tensor) // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        """Offset of ``size`` bytes: the best fitting block, the endless last one only if none fits."""
        best, fit = -1, _ENDLESS
        for i in range(len(self.free) - 1):
            room = self.free[i][1]
            if size <= room <= fit:
                best, fit = i, room
        block = self.free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.free[best]
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free bytes, joined with their neighbours."""
        free = self.free
        for i, block in enumerate(free):
            if block[0] + block[1] == offset:
                block[1] += size
                if i + 1 < len(free) and block[0] + block[1] == free[i + 1][0]:
                    block[1] += free[i + 1][1]
                    del free[i + 1]
                return
            if offset + size == block[0]:
                block[0] = offset
                block[1] += size
                if i > 0 and free[i - 1][0] + free[i - 1][1] == offset:
                    free[i - 1][1] += block[1]
                    del free[i]
                return
        at = 0
        while at < len(free) and free[at][0] < offset:
            at += 1
        free.insert(at, [offset, size])


class GraphAllocator:
    """``ggml_gallocr_alloc_graph_impl`` over several buffers; ``peaks`` after `run`."""

    def __init__(self, buffers: list[Blocks]) -> None:
        self.buffers = buffers
        self._where: dict[int, tuple[int, int]] = {}
        """Tensors that own memory right now -> buffer and offset."""

    def run(
        self, nodes: list[tuple[Tensor, int]], leafs: list[tuple[Tensor, int]]
    ) -> tuple[int, ...]:
        """Allocate and free as the graph runs; ``(tensor, buffer)`` each. Returns peaks, bytes."""
        for tensor, _ in nodes:
            tensor.children = tensor.views = 0
            for src in tensor.src:
                if src is not None:
                    src.children = src.views = 0
                    if src.view_src is not None:
                        src.view_src.children = src.view_src.views = 0
        for tensor, buffer in leafs:
            self._allocate(tensor, buffer)
        for node, buffer in nodes:
            if node.view_src is not None and node.op != "NONE":
                node.view_src.views += 1
            if node.input:
                self._allocate(node, buffer)
            for src in node.src:
                if src is not None:
                    src.children += 1
                    if src.input:
                        self._allocate(src, buffer)
        for node, buffer in nodes:
            for src in node.src:
                if src is not None:
                    self._allocate(src, buffer)
            self._allocate(node, buffer)
            for src in node.src:
                if src is not None:
                    self._used(src)
        return tuple(b.peak for b in self.buffers)

    def _used(self, parent: Tensor) -> None:
        parent.children -= 1
        if parent.children or parent.views:
            return
        base = parent.view_src
        if base is None:
            self._free(parent)
            return
        base.views -= 1
        if base.views == 0 and base.children == 0:
            self._free(base)

    def _free(self, tensor: Tensor) -> None:
        if id(tensor) not in self._where or tensor.output:
            return
        buffer, offset = self._where.pop(id(tensor))
        blocks = self.buffers[buffer]
        blocks.give(offset, blocks.size(tensor))

    def _allocate(self, node: Tensor, buffer: int) -> None:
        if node.place is not None or node.view_src is not None or id(node) in self._where:
            return
        if node.op in INPLACE:
            for parent in node.src:
                if parent is not None and self._takes_over(node, parent):
                    return
        blocks = self.buffers[buffer]
        self._where[id(node)] = (buffer, blocks.take(blocks.size(node)))

    def _takes_over(self, node: Tensor, parent: Tensor) -> bool:
        """Whether ``node`` is written over ``parent``, which nobody else needs."""
        owned = self._where.get(id(parent))
        if owned is None or parent.output or not node.same_layout(parent):
            return False
        if parent.children != 1 or parent.views != 0:
            return False
        del self._where[id(parent)]
        self._where[id(node)] = owned
        blocks = self.buffers[owned[0]]
        before, after = blocks.size(parent), blocks.size(node)
        if before > after:
            blocks.give(owned[1] + after, before - after)
        return True
