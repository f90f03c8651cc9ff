"""Which device runs a node, what is copied for it, and how large the compute buffers get.

``ggml_backend_sched_split_graph`` (`ggml/src/ggml-backend.cpp`, llama.cpp b11549) for one GPU and the
CPU: operations follow their weights, large batches on weights in host memory go to the GPU with a copy
of the whole tensor, neighbours join, and every change of device starts a split whose inputs are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uvmsim.machine.llamacpp import cuda_rules
from uvmsim.machine.llamacpp.allocator import Blocks, GraphAllocator
from uvmsim.machine.llamacpp.fusion import optimise
from uvmsim.machine.llamacpp.ggml import GPU, HOST, VIEWS, Graph, Tensor, view_tensor

_GPU, _CPU = 0, 1


@dataclass(frozen=True)
class Split:
    """A run of nodes on one device; ``inputs`` are copied there before it."""

    gpu: bool
    n_nodes: int
    inputs: tuple[tuple[str, int], ...]
    """Name and bytes of each."""


@dataclass(frozen=True)
class Reserved:
    """What one graph takes: compute buffers in bytes, and its splits."""

    gpu_bytes: int
    host_bytes: int
    splits: tuple[Split, ...]
    n_nodes: int


class Scheduler:
    """One graph on a GPU of compute capability ``cc`` (times 100) and the CPU; the graph is used up.

    ``gpu``: False where there is none, then everything runs on the CPU. ``op_offload``: llama.cpp's
    ``--op-offload``. Nodes whose ``target`` is set stay there.
    """

    def __init__(self, graph: Graph, cc: int, *, gpu: bool = True, op_offload: bool = True) -> None:
        self.graph, self.cc, self.gpu, self.op_offload = graph, cc, gpu, op_offload
        self.nodes = graph.nodes

    def reserve(self) -> Reserved:
        """Place every node and allocate the graph."""
        if not self.gpu:
            host = Blocks(cuda_rules.HOST_ALIGNMENT, cuda_rules.host_size)
            nodes = [(n, 0) for n in self.nodes]
            (peak,) = GraphAllocator([host]).run(nodes, [(t, 0) for t in self.graph.leafs])
            split = Split(False, len(self.nodes), ())
            return Reserved(0, peak, (split,), len(self.nodes))
        self.assign()
        return self._allocate(self.split())

    # ---- passes 1 to 4: a device for every node ---------------------------------------------------

    def _supported(self, node: Tensor, device: int) -> bool:
        return device == _CPU or cuda_rules.supports(node, self.cc)

    def _of_buffer(self, tensor: Tensor, op: Tensor) -> int | None:
        home = tensor.home()
        if home == HOST:
            return _CPU
        return _GPU if home == GPU and self._supported(op, _GPU) else None

    def _from_current(self, t: Tensor) -> int | None:
        found = self._of_buffer(t, t)
        if found is not None:
            return found
        if t.input:
            return _CPU
        if t.op in ("ROPE", "FLASH_ATTN_EXT"):
            return None
        for src in t.src:
            if src is not None and src.weight and src.place is not None:
                device = self._of_buffer(src, t)
                taken = self.op_offload and device == _CPU and self._supported(t, _GPU)
                if taken and cuda_rules.offloads(t):
                    return _GPU
                return device
        return None

    def assign(self) -> None:
        """Give every node its device (``target``)."""
        for t in (*self.graph.leafs, *self.nodes):
            if t.target is None:
                t.target = self._from_current(t)
        real = [n for n in self.nodes if n.op not in VIEWS]
        self._spread(real, gpu_only=True)
        self._spread(real[::-1], gpu_only=True)
        self._spread(real, gpu_only=False)
        self._spread(real[::-1], gpu_only=False)
        for node in real:
            if node.target is None:
                node.target = self._most_inputs(node)
        for node in self.nodes:
            if node.target is None and node.view_src is not None:
                node.target = node.view_src.target
            for src in node.src:
                if src is not None and src.target is None:
                    src.target = node.target if src.view_src is None else src.view_src.target
            if node.target is None:
                node.target = _GPU if self._supported(node, _GPU) else _CPU

    def _spread(self, nodes: list[Tensor], *, gpu_only: bool) -> None:
        """Unassigned nodes take the device of the one before."""
        current: int | None = None
        for node in nodes:
            if node.target is not None:
                current = None if gpu_only and node.target == _CPU else node.target
            elif current is not None and self._supported(node, current):
                node.target = current

    def _most_inputs(self, node: Tensor) -> int | None:
        best, most = None, -1
        for device in (_GPU, _CPU):
            if self._supported(node, device):
                n = sum(s is not None and self._reads(s, device) for s in node.src)
                if n > most:
                    best, most = device, n
        return best

    @staticmethod
    def _reads(t: Tensor, device: int) -> bool:
        """Whether a device can use a tensor where it lies (``buffer_supported``)."""
        home = t.home()
        if home is not None:
            return (home == GPU) == (device == _GPU)
        target = t.target
        if target is None and t.view_src is not None:
            target = t.view_src.target
        return target == device

    # ---- pass 5: splits and copies ----------------------------------------------------------------

    def split(self) -> list[tuple[int, int, int, list[Tensor]]]:
        """``(device, first, end, inputs)`` of every split; sources are replaced by their copies."""
        nodes = self.nodes
        begin = next((i for i, n in enumerate(nodes) if n.op not in VIEWS), 0)
        current = nodes[begin].target
        assert current is not None
        splits: list[tuple[int, int, list[Tensor]]] = [(current, 0, [])]
        for i in range(begin, len(nodes)):
            node = nodes[i]
            if node.op in VIEWS:
                continue
            if node.target != current or (splits[-1][2] and self._foreign_weight(node, current)):
                current = node.target
                assert current is not None
                splits.append((current, i, []))
            for j, src in enumerate(node.src):
                if src is None or src.target == current or self._reads(src, current):
                    continue
                copy = src.copies.get(current)
                if copy is None:
                    copy = Tensor(src.type, src.ne, nb=src.nb, name=src.name)
                    src.copies[current] = copy
                    splits[-1][2].append(src)
                node.src[j] = copy
        ends = [s[1] for s in splits[1:]] + [len(nodes)]
        return [(d, a, b, inputs) for (d, a, inputs), b in zip(splits, ends, strict=True)]

    def _foreign_weight(self, node: Tensor, device: int) -> bool:
        """A weight that must be copied: a new split lets the memory of earlier copies be used again."""
        return any(
            s is not None and s.weight and s.target != device and not self._reads(s, device)
            for s in node.src
        )

    # ---- the graph with copies in it, allocated ---------------------------------------------------

    def _allocate(self, splits: list[tuple[int, int, int, list[Tensor]]]) -> Reserved:
        kept: dict[int, list[Tensor]] = {}

        def keep(tensor: Tensor, until: Tensor) -> None:
            held = kept.setdefault(id(until), [])
            if not any(t is tensor for t in held):
                held.append(tensor)

        for device, first, end, _ in splits:
            if device == _GPU:
                optimise(self.nodes, first, end, keep)
        order: list[tuple[Tensor, int]] = []
        for device, first, end, inputs in splits:
            for src in inputs:
                assert src.target is not None
                order.append((view_tensor(src, src=(src,)), src.target))
                order.append((src.copies[device], device))
            for node in self.nodes[first:end]:
                assert node.target is not None
                order.append((node, node.target))
                held = kept.get(id(node), [])
                for k in range(0, len(held), 10):
                    order.append((view_tensor(held[k], src=tuple(held[k : k + 10])), device))
        size: Callable[[Tensor], int] = lambda t: cuda_rules.device_size(t, self.cc)  # noqa: E731
        buffers = [
            Blocks(cuda_rules.ALIGNMENT, size),
            Blocks(cuda_rules.HOST_ALIGNMENT, cuda_rules.host_size),
        ]
        leafs = [(t, _CPU if t.target is None else t.target) for t in self.graph.leafs]
        on_gpu, on_host = GraphAllocator(buffers).run(order, leafs)
        told = tuple(
            Split(d == _GPU, b - a, tuple((t.name, t.n_bytes) for t in inputs))
            for d, a, b, inputs in splits
        )
        return Reserved(on_gpu, on_host, told, len(self.nodes))
