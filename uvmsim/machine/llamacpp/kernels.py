"""How many kernels CUDA launches for a run of nodes, fusions taken off.

The matchers are those of ``ggml_cuda_try_fuse`` and what the products launch beside themselves
(`ggml/src/ggml-cuda/ggml-cuda.cu`, `mmvq.cu`, `mmq.cu`, `mmf.cu`, llama.cpp b11549). The tests have the
counts of three models, recorded with CUPTI.
"""

from __future__ import annotations

from uvmsim.machine.llamacpp.fusion import router_nodes, weighted_sum
from uvmsim.machine.llamacpp.ggml import VIEWS, Tensor

ROW_TOKENS = 8
"""Tokens up to which products run row by row (MMVQ_MAX_BATCH_SIZE)."""
_MATRICES = ("MUL_MAT", "MUL_MAT_ID")
VECTOR_ROWS = 512
"""Rows up to which one token's product of float experts takes the vector kernel."""
SCANNED_TOKENS = 1024
"""Tokens from which on the mask is looked through for what attention can pass over (``scan_mask``)."""


def launched(nodes: list[Tensor], n_tokens: int) -> list[int]:
    """Kernels that each node launches; 0 for views and for what an earlier node's kernel does too."""
    row = n_tokens <= ROW_TOKENS
    out = [0 if node.op in VIEWS else 1 for node in nodes]
    i = 0
    while i < len(nodes):
        node = nodes[i]
        done = _fused(nodes, i, row)
        if done:
            for j in range(i + 1, i + done):
                out[j] = 0
            i += done
            continue
        if node.op in _MATRICES:
            out[i] += _beside(node, row)
            if row:
                i += _absorbed(nodes, i, out)
        elif node.op == "FLASH_ATTN_EXT":
            # Blocks share a head's positions, and what they found is put together (`fattn-common.cuh`).
            out[i] += 1 + int(n_tokens >= SCANNED_TOKENS)
        i += 1
    return out


def _fused(nodes: list[Tensor], i: int, row: bool) -> int:
    """Nodes that one kernel does, from ``nodes[i]`` on; 0 where it is a kernel of its own."""
    node, end = nodes[i], len(nodes)
    if node.op in ("SOFT_MAX", "UNARY"):
        return router_nodes(nodes, i, end)
    if node.op == "MUL":
        found = weighted_sum(nodes, i, end)
        return found[1] - i + 1 if found else 0
    if node.op == "RMS_NORM":
        if i + 1 < end and nodes[i + 1].op == "MUL" and nodes[i + 1].src[0] is node:
            if i + 2 < end and nodes[i + 2].op == "ROPE" and nodes[i + 2].src[0] is nodes[i + 1]:
                return 3 + _stored(nodes, i + 2)
            return 2
        return 0
    if node.op == "ROPE":
        stored = _stored(nodes, i)
        return 1 + stored if stored else 0
    return 0


def _stored(nodes: list[Tensor], i: int) -> int:
    """2 where a rotated K goes straight to the cache (a view and SET_ROWS behind it)."""
    if i + 2 >= len(nodes) or nodes[i + 1].op != "VIEW" or nodes[i + 2].op != "SET_ROWS":
        return 0
    one = nodes[i + 1].view_src is nodes[i] and nodes[i + 2].src[0] is nodes[i + 1]
    return 2 if one else 0


def _beside(node: Tensor, row: bool) -> int:
    """Kernels that prepare a product: rows quantised to Q8_1, ids sorted by expert, types converted."""
    weight = node.src[0]
    assert weight is not None
    quantised = weight.quantised
    if row:
        return int(quantised)
    if node.op == "MUL_MAT_ID":
        return 1 + int(quantised)  # mm_ids_helper, quantize_mmq_q8_1
    if quantised:
        return 1
    return 2 if weight.weight and weight.type != "F32" else 1  # to F16 and back; batched pointers


def _absorbed(nodes: list[Tensor], i: int, out: list[int]) -> int:
    """What the kernel of a row product does beside it: biases, gate and activation; nodes skipped."""
    node = nodes[i]
    weight = node.src[0]
    assert weight is not None
    if not weight.quantised and tiled(node):
        return _added(nodes, i, out)
    kind = node.op
    last = i + _added(nodes, i, out)
    j = last + 1
    if j < len(nodes) and nodes[j].op == kind and nodes[j].src[1] is node.src[1]:
        second = j + _peek(nodes, j)
        k = second + 1
        if k < len(nodes) and nodes[k].op == "GLU":
            for at in range(last + 1, k + 1):
                out[at] = 0
            return k - i
    return last - i


def tiled(node: Tensor) -> bool:
    """Whether the product of float experts runs in tiles of 16 tokens (MMF) for a few tokens too: it
    does where the vector kernel is not for it (``ggml_cuda_should_use_mmvf``)."""
    weight = node.src[0]
    assert weight is not None
    many = node.ne[2] > 1 or weight.ne[1] > VECTOR_ROWS
    return node.op == "MUL_MAT_ID" and many and not weight.quantised


def _peek(nodes: list[Tensor], i: int) -> int:
    return int(i + 1 < len(nodes) and nodes[i + 1].op in ("ADD", "ADD_ID") and
               nodes[i + 1].src[0] is nodes[i])  # fmt: skip


def _added(nodes: list[Tensor], i: int, out: list[int]) -> int:
    n = _peek(nodes, i)
    if n:
        out[i + 1] = 0
    return n
