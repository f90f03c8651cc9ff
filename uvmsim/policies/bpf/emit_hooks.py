"""Statements of a hook as C: assignments, branches, bounded loops, the actions."""

from __future__ import annotations

import ast

from uvmsim.policies.bpf.emit_names import assigned
from uvmsim.policies.bpf.emit_terms import (
    Scope,
    binary,
    called,
    no_calls,
    own_function,
    place,
    term,
)

MOST_STEPS = 8_192
"""Of loops within loops: the verifier walks every step, of a million instructions in all."""


class Writer:
    """The body of one hook."""

    def __init__(self, scope: Scope):
        self._scope = scope
        self._lines: list[str] = []

    def body(self, statements: list[ast.stmt]) -> list[str]:
        """The lines, indented by one tab. Raises `InputError`."""
        self._names(statements)
        for node in statements:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    if inner.id in self._scope.parameters:
                        raise self._scope.refuse(inner, f"assigns to its argument {inner.id!r}")
                    if inner.id not in self._scope.arrays:
                        self._scope.local.add(inner.id)
        for node in statements:
            self._statement(node, "\t", 1)
        names = sorted(self._scope.local - self._scope.given)
        head = [f"\ts64 {', '.join(f'v_{n} = 0' for n in names)};"] if names else []
        return head + self._lines

    def _names(self, statements: list[ast.stmt]) -> None:
        """Find names that stand for a field of the state, and those that hold one constant."""
        scope = self._scope
        for name, values in assigned(statements).items():
            fields = {scope.array(v) if isinstance(v, ast.Attribute) else None for v in values if v}
            if None not in values and len(fields) == 1 and None not in fields:
                scope.arrays[name] = str(fields.pop())
            elif len(values) == 1 and values[0] is not None and name not in scope.given:
                fixed = scope.constant(values[0])
                if fixed is not None:
                    scope.fixed[name] = fixed

    def _put(self, pad: str, text: str) -> None:
        self._lines.append(pad + text)

    def _block(self, nodes: list[ast.stmt], pad: str, steps: int) -> None:
        for node in nodes:
            self._statement(node, pad + "\t", steps)

    def _statement(self, node: ast.stmt, pad: str, steps: int) -> None:
        scope = self._scope
        if isinstance(node, ast.Assign):
            self._assign(node, pad)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._store(node.target, term(scope, node.value), pad)
        elif isinstance(node, ast.AugAssign):
            no_calls(scope, node.target, "in what it adds to")
            value = binary(
                scope, type(node.op), node, self._load(node.target), term(scope, node.value)
            )
            self._store(node.target, value, pad)
        elif isinstance(node, ast.If):
            self._put(pad, f"if {grouped(term(scope, node.test))} {{")
            self._block(node.body, pad, steps)
            if node.orelse:
                self._put(pad, "} else {")
                self._block(node.orelse, pad, steps)
            self._put(pad, "}")
        elif isinstance(node, ast.For):
            self._for(node, pad, steps)
        elif isinstance(node, ast.Return):
            self._put(pad, f"return {term(scope, node.value) if node.value else 0};")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._put(pad, self._action(node.value))
        elif isinstance(node, ast.Break | ast.Continue):
            self._put(pad, "break;" if isinstance(node, ast.Break) else "continue;")
        elif isinstance(node, ast.While):
            raise scope.refuse(node, "a loop without a bound: the verifier refuses it; use range()")
        elif not (isinstance(node, ast.Pass) or _is_text(node)):
            told = ast.unparse(node).splitlines()[0]
            raise scope.refuse(node, f"{told!r} has no form in C here")

    def _assign(self, node: ast.Assign, pad: str) -> None:
        """One value to several places, or several values to as many."""
        scope, target = self._scope, node.targets[0]
        if isinstance(target, ast.Tuple):
            if not isinstance(node.value, ast.Tuple) or len(node.targets) != 1:
                raise scope.refuse(node, "takes apart what is no tuple")
            if len(target.elts) != len(node.value.elts):
                raise scope.refuse(node, "as many values as places")
            both = [
                (t, v)
                for t, v in zip(target.elts, node.value.elts, strict=True)
                if not self._is_name_of(t)
            ]
            values = [term(scope, v) for _, v in both]
            self._put(pad, "{")
            for i, v in enumerate(values):
                self._put(pad + "\t", f"s64 t{i} = {v};")
            for i, (t, _) in enumerate(both):
                self._store(t, f"t{i}", pad + "\t")
            self._put(pad, "}")
            return
        if self._is_name_of(target):
            return
        value = term(scope, node.value)
        if len(node.targets) > 1:
            self._put(pad, "{")
            self._put(pad + "\t", f"s64 t0 = {value};")
            for t in node.targets:
                self._store(t, "t0", pad + "\t")
            self._put(pad, "}")
        else:
            self._store(target, value, pad)

    def _is_name_of(self, target: ast.expr) -> bool:
        """Whether an assignment only names a field of the state."""
        return isinstance(target, ast.Name) and target.id in self._scope.arrays

    def _load(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return f"v_{node.id}"
        return term(self._scope, node)

    def _store(self, node: ast.expr, value: str, pad: str) -> None:
        if isinstance(node, ast.Name):
            self._put(pad, f"v_{node.id} = {value};")
            return
        found = place(self._scope, node) if isinstance(node, ast.Subscript) else None
        if found is None:
            told = ast.unparse(node)
            raise self._scope.refuse(node, f"assigns to {told!r}: only the state can be written")
        # The value first, as Python has it: its own places are looked at before the target's.
        self._put(pad, f"{{ s64 value = {value}; {found} = value; }}")

    def _for(self, node: ast.For, pad: str, steps: int) -> None:
        scope = self._scope
        if node.orelse or not isinstance(node.target, ast.Name):
            raise scope.refuse(node, "only `for NAME in range(..)`")
        call = node.iter
        if not isinstance(call, ast.Call) or called(scope, call) != "range":
            raise scope.refuse(node, "only `for NAME in range(..)`")
        if len(call.args) not in (1, 2):
            raise scope.refuse(node, "range() with one or two bounds")
        least = call.args[0] if len(call.args) == 2 else ast.Constant(0)
        first, end = scope.constant(least), scope.constant(call.args[-1])
        count = self._count(least, call.args[-1])
        if count is None:
            raise scope.refuse(
                node, "a loop without a bound that is a constant: the verifier refuses it; "
                "range(min(n, 8)) has one",
            )  # fmt: skip
        steps *= max(count, 1)
        if steps > MOST_STEPS:
            raise scope.refuse(node, f"{steps:,} steps; the verifier walks {MOST_STEPS:,} at most")
        own = node.target.id
        name = f"i_{own}"
        if first is not None and end is not None:
            self._put(pad, f"for (s64 {name} = {first}; {name} < {end}; {name}++) {{")
            self._put(pad + "\t", f"v_{own} = {name};")
            self._block(node.body, pad, steps)
            self._put(pad, "}")
            return
        a, n = term(scope, least), term(scope, call.args[-1])
        self._put(pad, f"{{ s64 a_{own} = {a}, n_{own} = {n};")
        self._put(pad, f"for (s64 {name} = 0; {name} < {max(count, 0)}; {name}++) {{")
        self._put(pad + "\t", f"if (a_{own} + {name} >= n_{own})")
        self._put(pad + "\t\t", "break;")
        self._put(pad + "\t", f"v_{own} = a_{own} + {name};")
        self._block(node.body, pad, steps)
        self._put(pad, "} }")

    def _count(self, first: ast.expr, end: ast.expr) -> int | None:
        """Steps of a range at most: by constants, or because it ends ``n`` after where it begins."""
        scope = self._scope
        least, most = scope.constant(first), scope.most(end)
        if least is not None and most is not None:
            return most - least
        if isinstance(end, ast.Call) and called(scope, end) == "min":
            found = [n for n in (self._count(first, a) for a in end.args) if n is not None]
            return min(found) if found else None
        if isinstance(end, ast.BinOp) and isinstance(end.op, ast.Add):
            for same, more in ((end.left, end.right), (end.right, end.left)):
                if ast.dump(same) == ast.dump(first) and isinstance(first, ast.Name):
                    return scope.most(more)
        return None

    def _action(self, node: ast.Call) -> str:
        scope, name = self._scope, called(self._scope, node)
        if name == "set_region" and len(node.args) == 3 and scope.means(node.args[0], "region"):
            first, outer = (term(scope, a) for a in node.args[1:])
            return f"set_region(result, most, {first}, {outer});"
        if name in ("move_head", "move_tail") and len(node.args) == 2:
            if scope.calls.hook == "evict_prepare":
                raise scope.refuse(
                    node, f"{name} of a chunk found in the list: the verifier takes only chunks that a "
                    "hook is given",
                )  # fmt: skip
            if not scope.means(node.args[1], "chunk"):
                raise scope.refuse(node, f"{name}: only the chunk of the hook can be moved")
            return f"bpf_gpu_block_{name}(chunk, list);"
        if name == "migrate" and len(node.args) == 2:
            if not scope.means(node.args[0], "d") or "block" not in scope.parameters.values():
                raise scope.refuse(node, "migrate is for hooks of prefetching")
            scope.needs.block = scope.needs.migrates = True
            return f"ask_for(now, {term(scope, node.args[1])});"
        if name == "drop_pending" and len(node.args) == 1 and scope.means(node.args[0], "d"):
            scope.needs.migrates = scope.needs.block = True
            return "forgotten += 1;"
        if own_function(scope, node) is not None:
            return f"(void){term(scope, node)};"
        raise scope.refuse(node, f"calls {ast.unparse(node.func)}, which has no form in C here")


def grouped(text: str) -> str:
    """An expression in one pair of parentheses: two would tell clang that an assignment was meant."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(text) - 1:
            return f"({text})"
    return text if text.startswith("(") and not text.startswith("({") else f"({text})"


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
