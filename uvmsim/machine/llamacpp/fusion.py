"""Which nodes CUDA runs as one kernel, and what it therefore keeps allocated longer.

``ggml_backend_cuda_graph_optimize`` and the matchers it calls (`ggml/src/ggml-cuda/ggml-cuda.cu`,
`topk-moe.cu`, llama.cpp b11549): a shared expert beside a routed one, the weighted sum of experts, the
router's top-k. Each asks the scheduler to keep its inputs until its last node, which can enlarge the
compute buffer.
"""

from __future__ import annotations

from collections.abc import Callable

from uvmsim.machine.llamacpp.ggml import Tensor

Keep = Callable[[Tensor, Tensor], None]
"""Keep the first tensor until the second was computed."""
_MAX_REDUCED = 15
_GLUS = frozenset(("SWIGLU", "GEGLU", "SWIGLU_OAI", "SWIGLU_CLAMP"))


def optimise(nodes: list[Tensor], first: int, last: int, keep: Keep) -> None:
    """Reorder ``nodes[first:last]``, one split of the graph, and report what is kept."""
    _shared_experts(nodes, first, last, keep)
    i = first
    while i < last:
        found = weighted_sum(nodes, i, last)
        if found is not None:
            for tensor in found[0]:
                keep(tensor, nodes[found[1]])
            i = found[1]
        if nodes[i].op in ("UNARY", "SOFT_MAX"):
            n = router_nodes(nodes, i, last)
            if n:
                end = nodes[i + n]
                for node in nodes[i : i + n]:
                    keep(node, end)
                    for src in node.src:
                        if src is not None:
                            keep(src, end)
                i += n - 1
        i += 1


def _fusible(nodes: list[Tensor], at: list[int], ops: list[str], outputs: set[int]) -> bool:
    """``ggml_can_fuse_subgraph_ext``: what is no output is used inside only."""
    inside = {id(nodes[i]) for i in at}
    for n, i in enumerate(at):
        node = nodes[i]
        if node.op != ops[n]:
            return False
        if i in outputs:
            continue
        if node.output:
            return False
        uses = sum(src is node for j in at[n + 1 :] for src in nodes[j].src)
        if uses != node.uses:
            return False
        base = node.view_src
        if base is not None and id(base) not in inside and not base.weight:
            return False
    return True


# ---- routed and shared expert ---------------------------------------------------------------------


def _shared_experts(nodes: list[Tensor], first: int, last: int, keep: Keep) -> None:
    i = first
    while i + 5 < last:
        if nodes[i].op == "MUL_MAT_ID":
            for j in range(i + 3, last - 2):
                if nodes[j].op == "MUL_MAT_ID" and nodes[j + 1].op == "MUL_MAT_ID":
                    break
                if nodes[j].op != "MUL_MAT" or not _expert_pair(nodes, i, j, last):
                    continue
                nodes[i + 3 : j + 3] = nodes[j : j + 3] + nodes[i + 3 : j]
                up = nodes[i + 2].src[1]
                assert up is not None
                for src in up.src[1:3]:
                    assert src is not None
                    keep(src, nodes[i + 5])
                i += 5
                break
        i += 1


def _expert_pair(nodes: list[Tensor], routed: int, shared: int, last: int) -> bool:
    if shared + 2 >= last:
        return False
    at = [routed, routed + 1, routed + 2, shared, shared + 1, shared + 2]
    ops = ["MUL_MAT_ID", "MUL_MAT_ID", "GLU", "MUL_MAT", "MUL_MAT", "GLU"]
    if not _fusible(nodes, at, ops, {routed + 2, shared + 2}):
        return False
    a, b = nodes[routed + 2], nodes[shared + 2]
    if {id(a.src[0]), id(a.src[1])} != {id(nodes[routed]), id(nodes[routed + 1])}:
        return False
    if {id(b.src[0]), id(b.src[1])} != {id(nodes[shared]), id(nodes[shared + 1])}:
        return False
    gate, up, shared_gate, shared_up = a.src[0], a.src[1], b.src[0], b.src[1]
    assert gate and up and shared_gate and shared_up
    if not (_gated(up, gate, a) and _gated(shared_up, shared_gate, b) and a.param == b.param):
        return False
    weight, other, entered = up.src[0], shared_up.src[0], up.src[1]
    assert weight and other and entered and shared_gate.src[0]
    if weight.place is None or not weight.quantised:
        return False
    if entered.op != "RESHAPE" or entered.src[0] is not shared_up.src[1]:
        return False
    if entered.ne[1] != 1 or entered.ne[3] != 1 or not entered.contiguous:
        return False
    same = weight.type == other.type and weight.ne[:2] == other.ne[:2]
    return same and weight.nb[1] == other.nb[1] and other.op == "NONE"


def _gated(up: Tensor, gate: Tensor, glu: Tensor) -> bool:
    """``ggml_cuda_should_fuse_mul_mat`` without biases and scales."""
    a, b = up.src[0], gate.src[0]
    assert a is not None and b is not None
    same = a.type == b.type and a.ne == b.ne and a.nb == b.nb
    inputs = up.src[1] is gate.src[1] and (len(up.src) < 3 or up.src[2] is gate.src[2])
    return same and inputs and up.op == gate.op and glu.param in _GLUS


# ---- the weighted sum of experts ------------------------------------------------------------------


def weighted_sum(nodes: list[Tensor], i: int, last: int) -> tuple[list[Tensor], int] | None:
    """``ggml_cuda_match_moe_weighted_reduction``: what is kept, and the last node's index."""
    first = nodes[i]
    if first.op != "MUL" or first.type != "F32" or not first.contiguous:
        return None
    weighted, kept, n_mul = first, None, 1
    if i + 1 < last and nodes[i + 1].op == "MUL":
        scaled, raw = _split(nodes[i + 1]), _split(first)
        if scaled and raw and scaled[0] is first:
            weighted, kept, n_mul = nodes[i + 1], [raw[0], scaled[1], raw[1]], 2
    if kept is None:
        found = _split(first)
        if found is None:
            return None
        kept = list(found)
    used, tokens = weighted.ne[1], weighted.ne[2] * weighted.ne[3]
    count = 2 * used + n_mul - 1
    if not 2 <= used <= _MAX_REDUCED or i + count > last or count >= 32:
        return None
    views: list[Tensor] = []
    added: Tensor | None = None
    n_adds = 0
    for node in nodes[i + n_mul : i + count]:
        if node.op == "VIEW":
            expected = len(views) * weighted.nb[1]
            if node.view_src is not weighted or node.view_offset != expected:
                return None
            if node.ne != (weighted.ne[0], tokens, 1, 1) or node.nb[1] != weighted.nb[2]:
                return None
            views.append(node)
            continue
        if node.op != "ADD" or len(views) < 2 or n_adds + 1 >= len(views):
            return None
        if node.src[0] is not (added or views[0]) or node.src[1] is not views[n_adds + 1]:
            return None
        added, n_adds = node, n_adds + 1
    if len(views) != used or n_adds != used - 1:
        return None
    at = list(range(i, i + count))
    if not _fusible(nodes, at, [nodes[j].op for j in at], {at[-1]}):
        return None
    return kept, at[-1]


def _split(mul: Tensor) -> tuple[Tensor, Tensor] | None:
    """A product as (experts, weights): the second is one number an expert and token."""

    def weights(t: Tensor) -> bool:
        return t.type == "F32" and t.contiguous and t.ne == (1, *mul.ne[1:])

    def experts(t: Tensor) -> bool:
        return t.type == "F32" and t.contiguous and t.ne == mul.ne

    a, b = mul.src[0], mul.src[1]
    assert a is not None and b is not None
    if experts(a) and weights(b):
        return a, b
    return (b, a) if experts(b) and weights(a) else None


# ---- the router -----------------------------------------------------------------------------------


def router_nodes(nodes: list[Tensor], i: int, last: int) -> int:
    """Nodes of the router's softmax (or sigmoid), top-k and normalisation; 0 where not fused."""
    gating = nodes[i]
    if gating.op == "UNARY" and gating.param != "SIGMOID":
        return 0
    middle = ["RESHAPE", "ADD", "ARGSORT", "VIEW", "GET_ROWS"]
    biased = i + 2 < last and nodes[i + 2].op == "ADD" and nodes[i + 2].src[0] is gating
    ops = [gating.op, *(middle if biased else [m for m in middle if m != "ADD"])]
    if i + len(ops) > last or [n.op for n in nodes[i : i + len(ops)]] != ops:
        return 0
    ids, rows = i + len(ops) - 2, i + len(ops) - 1
    if nodes[rows].src[0] is not nodes[i + 1] or nodes[rows].src[1] is not nodes[ids]:
        return 0
    norm = ["RESHAPE", "SUM_ROWS", "CLAMP", "DIV", "RESHAPE"]
    at = i + len(ops)
    if at >= last:
        return 0
    normed = [n.op for n in nodes[at : min(at + 5, last)]] == norm
    if normed and nodes[at].src[0] is nodes[at - 1] and nodes[at + 3].src[0] is nodes[at]:
        ops += norm
        at += 5
    if at < last and nodes[at].op == "SCALE" and nodes[at].src[0] is nodes[at - 1]:
        ops.append("SCALE")
    everything = list(range(i, i + len(ops)))
    if i + len(ops) > last or not _fusible(nodes, everything, ops, {ids, everything[-1]}):
        return 0
    return len(ops) if _topk_kernel(gating, nodes[everything[-1]], nodes[ids]) else 0


def _topk_kernel(gating: Tensor, weights: Tensor, ids: Tensor) -> bool:
    """``ggml_cuda_should_use_topk_moe``"""
    n = ids.nb[1] // ids.nb[0]
    if (n & (n - 1) or n > 512) and n not in (288, 576):
        return False
    logits = gating.src[0]
    assert logits is not None
    if not weights.contiguous or not logits.contiguous:
        return False
    return gating.op == "UNARY" or not any(s is not None for s in gating.src[1:])
