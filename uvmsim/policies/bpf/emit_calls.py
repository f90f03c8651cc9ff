"""Functions of a policy's own that its hooks call, as static functions in C.

One is written for each hook and each way it is called in: fields of the state, the chunk and the
driver's tables stand for parameters where they are handed over, whole numbers are passed. An index
outside an array ends the hook, also from within.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvmsim.core.globals_of import plain
from uvmsim.policies.bpf.emit_names import source_of
from uvmsim.policies.bpf.emit_terms import Needs, Scope, term

CONTEXT = {
    "page_prefetch": ("uvm_va_block_region_t *most", "uvm_va_block_region_t *result"),
    "page_prefetch_iter": ("uvm_va_block_region_t *most", "uvm_va_block_region_t *result"),
    "block_activate": ("uvm_gpu_chunk_t *chunk", "struct list_head *list"),
    "block_access": ("uvm_gpu_chunk_t *chunk", "struct list_head *list"),
    "evict_prepare": ("struct list_head *list",),
}
"""What a hook hands on, whatever a function takes."""
SYMBOLS = frozenset({"s", "d", "region"})
"""Parameters that are read by their parts only."""


@dataclass
class Calls:
    """The functions that one hook reaches."""

    hook: str
    write: Callable[[Scope, list[ast.stmt]], list[str]]
    """Writes a body."""
    texts: list[str] = field(default_factory=list)
    """C functions, those that are called first."""
    _names: dict[tuple[Any, ...], tuple[str, Needs]] = field(default_factory=dict)
    _open: list[Any] = field(default_factory=list)

    def call(self, scope: Scope, node: ast.Call, f: Any) -> str:
        """The value of a call in C. Raises `InputError`."""
        f = plain(f)
        if f in self._open:
            raise scope.refuse(node, f"{f.__name__} calls itself: the verifier refuses it")
        tree, where = source_of(f)
        a = tree.args
        if a.vararg or a.kwarg or a.kwonlyargs or a.defaults or len(a.args) != len(node.args):
            raise scope.refuse(node, f"{f.__name__} takes {len(a.args)} arguments, all by place")
        kinds = tuple(self._kind(scope, arg) for arg in node.args)
        key = (f, kinds)
        if key not in self._names:
            self._names[key] = self._written(scope, f, tree, where, kinds)
        name, needs = self._names[key]
        scope.needs.add(needs)
        own = [c.rpartition("*")[2] for c in CONTEXT[self.hook]] + ["now"] * needs.block
        given = [
            term(scope, arg) for arg, (kind, _) in zip(node.args, kinds, strict=True)
            if kind in ("number", "chunk", "block")
        ]  # fmt: skip
        scope.lost()
        return f"CALL({name}({', '.join(['lost', *own, *given])}))"

    def _kind(self, scope: Scope, node: ast.expr) -> tuple[str, str]:
        """What an argument is: one of the contract's, a field of the state, or a whole number."""
        named = scope.array(node)
        if named is not None:
            return "array", named
        what = scope.parameters.get(node.id, "") if isinstance(node, ast.Name) else ""
        return (what, "") if what in SYMBOLS | {"chunk", "block"} else ("number", "")

    def _written(
        self, caller: Scope, f: Any, tree: ast.FunctionDef, where: Callable[[ast.AST], str],
        kinds: tuple[tuple[str, str], ...],
    ) -> tuple[str, Needs]:  # fmt: skip
        names = [a.arg for a in tree.args.args]
        needs = Needs()
        scope = Scope(
            where, {}, caller.state, dict(f.__globals__), needs, caller.sizes, caller.bounds,
            caller.calls, helper=True,
        )  # fmt: skip
        parameters, passed = {}, []
        for name, (kind, what) in zip(names, kinds, strict=True):
            if kind == "array":
                scope.arrays[name] = what
            elif kind in SYMBOLS:
                parameters[name] = kind
            elif kind == "number":
                scope.local.add(name)
                passed.append(f"s64 v_{name}")
            else:
                parameters[name] = kind
                passed.append(f"s64 v_{kind}")
        scope.parameters = parameters
        scope.given = frozenset(
            n for n, (kind, _) in zip(names, kinds, strict=True) if kind == "number"
        )
        self._open.append(f)
        body = self.write(scope, tree.body)
        self._open.pop()
        name = f"{self.hook}_{f.__name__}"
        if any(name == used for used, _ in self._names.values()):
            name += f"_{len(self._names)}"
        own = ["s64 *lost", *CONTEXT[self.hook], *["struct now *now"] * needs.block, *passed]
        head = f"static __always_inline s64 {name}({', '.join(own)})\n{{"
        self.texts.append("\n".join([head, *body, "\treturn 0;", "}"]))
        return name, needs
