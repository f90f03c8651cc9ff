"""ggml's tensors and graphs as shapes: what an operation's result looks like, and in which order nodes
come. Nothing is computed; it is there to know what llama.cpp has to allocate.

Sources: `ggml/src/ggml.c` of llama.cpp b11549 (``ggml_new_tensor_impl``, ``ggml_visit_parents_graph``
and the constructors of the operations).
"""

from __future__ import annotations

from uvmsim.machine.model_spec import TYPES

Dims = tuple[int, int, int, int]

BLOCKS: dict[str, tuple[int, int]] = {
    **TYPES, "I32": (1, 4), "I64": (1, 8), "I8": (1, 1), "I16": (1, 2), "F64": (1, 8),
    "Q8_1": (32, 36), "Q8_K": (256, 292), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
    "Q1_0": (128, 18), "Q2_0": (64, 18),
}  # fmt: skip
"""Type -> elements and bytes of a block."""
PLAIN = frozenset(("F32", "F16", "BF16", "I8", "I16", "I32", "I64", "F64"))
"""Types that are not quantised."""
VIEWS = frozenset(("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"))
GPU, HOST = "gpu", "host"


def row_size(kind: str, n: int) -> int:
    """Bytes of ``n`` elements of a type."""
    elements, size = BLOCKS[kind]
    return size * n // elements


class Tensor:
    """One tensor. ``ne`` and ``nb``: elements and strides in bytes, innermost dimension first.

    ``place`` is the buffer it already lies in (a weight, a KV cache), ``weight`` whether that is a
    buffer of weights; ``param`` holds the one parameter of an operation that placement asks for.
    """

    __slots__ = (
        "children", "copies", "input", "name", "nb", "ne", "op", "output", "param", "place", "src",
        "target", "type", "uses", "view_offset", "view_src", "views", "weight",
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        ne: Dims,
        op: str = "NONE",
        src: tuple[Tensor | None, ...] = (),
        *,
        nb: Dims | None = None,
        name: str = "",
        param: object = None,
    ) -> None:
        self.type, self.ne, self.op, self.name, self.param = kind, ne, op, name, param
        self.src: list[Tensor | None] = list(src)
        self.nb = nb or strides(kind, ne)
        self.view_src: Tensor | None = None
        self.view_offset = 0
        self.place: str | None = None
        self.weight = self.input = self.output = False
        self.target: int | None = None
        """Index of the back end it runs on (`scheduler`)."""
        self.copies: dict[int, Tensor] = {}
        self.uses = self.children = self.views = 0

    @property
    def n_elements(self) -> int:
        a, b, c, d = self.ne
        return a * b * c * d

    @property
    def n_bytes(self) -> int:
        """``ggml_nbytes``"""
        elements, size = BLOCKS[self.type]
        a, b, c, d = self.ne
        s0, s1, s2, s3 = self.nb
        row = size + (a - 1) * s0 if elements == 1 else a * s0 // elements
        return row + (b - 1) * s1 + (c - 1) * s2 + (d - 1) * s3

    @property
    def quantised(self) -> bool:
        return self.type not in PLAIN

    @property
    def contiguous(self) -> bool:
        """``ggml_is_contiguous``: dimensions of one element do not count."""
        elements, size = BLOCKS[self.type]
        expected = size
        if self.ne[0] != elements and self.nb[0] != expected:
            return False
        expected *= self.ne[0] // elements
        for i in (1, 2, 3):
            if self.ne[i] != 1:
                if self.nb[i] != expected:
                    return False
                expected *= self.ne[i]
        return True

    def same_layout(self, other: Tensor) -> bool:
        return self.type == other.type and self.ne == other.ne and self.nb == other.nb

    def home(self) -> str | None:
        """The buffer it lies in, its own or of what it is a view of."""
        return self.view_src.place if self.view_src is not None else self.place


def strides(kind: str, ne: Dims) -> Dims:
    first = BLOCKS[kind][1]
    row = row_size(kind, ne[0])
    return (first, row, row * ne[1], row * ne[1] * ne[2])


def dims(*ne: int) -> Dims:
    a, b, c, d = (*ne, 1, 1, 1, 1)[:4]
    return (a, b, c, d)


class Graph:
    """Nodes in the order in which they run, and leafs; `expand` is ``ggml_build_forward_expand``."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        self._seen: set[int] = set()

    def expand(self, tensor: Tensor) -> None:
        if id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        for src in tensor.src:
            if src is not None:
                self.expand(src)
                src.uses += 1
        (self.leafs if tensor.op == "NONE" else self.nodes).append(tensor)


# ---- operations: the shape of what comes out ------------------------------------------------------


def view_tensor(a: Tensor, op: str = "NONE", src: tuple[Tensor | None, ...] = ()) -> Tensor:
    """``ggml_view_tensor``: the same elements under another name."""
    return view_as(a, a.ne, a.nb, 0, op, src)


def view_as(
    a: Tensor, ne: Dims, nb: Dims, offset: int, op: str, src: tuple[Tensor | None, ...]
) -> Tensor:
    t = Tensor(a.type, ne, op, src, nb=nb)
    t.view_src = a.view_src or a
    t.view_offset = offset + (a.view_offset if a.view_src is not None else 0)
    return t


def view(a: Tensor, ne: tuple[int, ...], nb: tuple[int, ...] = (), offset: int = 0) -> Tensor:
    """``ggml_view_Nd``: ``nb`` are the strides from the second dimension on."""
    full = dims(*ne)
    steps = [BLOCKS[a.type][1], *nb]
    if len(steps) == 1:
        steps.append(row_size(a.type, full[0]))
    while len(steps) < 4:
        steps.append(steps[-1] * full[len(steps) - 1])
    return view_as(a, full, (steps[0], steps[1], steps[2], steps[3]), offset, "VIEW", (a,))


def reshape(a: Tensor, *ne: int) -> Tensor:
    full = dims(*ne)
    return view_as(a, full, strides(a.type, full), 0, "RESHAPE", (a,))


def permute(a: Tensor, *axes: int) -> Tensor:
    ne, nb = [0] * 4, [0] * 4
    for i, axis in enumerate(axes):
        ne[axis], nb[axis] = a.ne[i], a.nb[i]
    return view_as(a, dims(*ne), dims(*nb), 0, "PERMUTE", (a,))


def transpose(a: Tensor) -> Tensor:
    ne, nb = a.ne, a.nb
    return view_as(
        a, (ne[1], ne[0], *ne[2:]), (nb[1], nb[0], *nb[2:]), 0, "TRANSPOSE", (a,)
    )  # fmt: skip


def like(op: str, a: Tensor, *more: Tensor | None, param: object = None) -> Tensor:
    """An operation whose result has the shape of its first source, stored without gaps."""
    return Tensor(a.type, a.ne, op, (a, *more), param=param)


def cont(a: Tensor, *ne: int) -> Tensor:
    return Tensor(a.type, dims(*ne) if ne else a.ne, "CONT", (a,))


def mul_mat(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("F32", (a.ne[1], *b.ne[1:]), "MUL_MAT", (a, b))


def mul_mat_id(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    return Tensor("F32", (a.ne[1], ids.ne[0], b.ne[2], 1), "MUL_MAT_ID", (a, b, ids))


def get_rows(a: Tensor, ids: Tensor) -> Tensor:
    kind = "I32" if a.type == "I32" else "F32"
    return Tensor(kind, (a.ne[0], *ids.ne[:3]), "GET_ROWS", (a, ids))


def set_rows(a: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    return view_tensor(a, "SET_ROWS", (rows, ids, a))


def top_k(a: Tensor, k: int) -> Tensor:
    """``ggml_argsort_top_k``: a view of the whole order."""
    order = Tensor("I32", a.ne, "ARGSORT", (a,))
    return view(order, (k, *order.ne[1:]), order.nb[1:])


def sum_rows(a: Tensor) -> Tensor:
    return Tensor(a.type, (1, *a.ne[1:]), "SUM_ROWS", (a,))


def glu(kind: str, a: Tensor, b: Tensor) -> Tensor:
    return Tensor(a.type, a.ne, "GLU", (a, b), param=kind)


def concat(a: Tensor, b: Tensor, axis: int) -> Tensor:
    ne = list(a.ne)
    ne[axis] += b.ne[axis]
    return Tensor(a.type, dims(*ne), "CONCAT", (a, b))


def repeat(a: Tensor, *ne: int) -> Tensor:
    return Tensor(a.type, dims(*ne), "REPEAT", (a,))


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None) -> Tensor:
    ne = (v.ne[0], q.ne[2], q.ne[1], q.ne[3])
    return Tensor("F32", ne, "FLASH_ATTN_EXT", (q, k, v, mask, sinks))


def input_tensor(kind: str, *ne: int, name: str = "") -> Tensor:
    t = Tensor(kind, dims(*ne), name=name)
    t.input = True
    return t
