"""What a llama.cpp graph consists of: every node, as the scheduler asks about it."""

from __future__ import annotations

import ctypes as C
from typing import Any

from traces.capture.ggml_tensor import Tensor
from traces.capture.libllama import EVAL_CALLBACK, Library

NO_KERNEL = ("NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE")
"""Operations that compute nothing."""


class Census:
    """An evaluation callback that looks at each node and stops at none."""

    def __init__(self, library: Library) -> None:
        self.nodes: list[tuple[str, str, str, str, list[int]]] = []
        """``(op, name, weight, type, extents)``; the weight is the first operand's name, its type and
        extents."""
        name_of = library.c.ggml_op_name
        name_of.restype, name_of.argtypes = C.c_char_p, (C.c_int,)
        type_of = library.c.ggml_type_name
        type_of.restype, type_of.argtypes = C.c_char_p, (C.c_int,)

        def on_node(address: int, ask: bool, _: Any) -> bool:
            if ask:
                t = Tensor.from_address(address)
                op = name_of(t.op).decode()
                if op not in NO_KERNEL:
                    first = Tensor.from_address(t.src[0]) if t.src[0] else t
                    self.nodes.append(
                        (op, t.name.decode(), first.name.decode(), type_of(first.type).decode(),
                         [*first.ne, *t.ne])
                    )  # fmt: skip
            return not ask

        self._callback = EVAL_CALLBACK(on_node)
        self.pointers = (C.cast(self._callback, C.c_void_p).value or 0, 0)
