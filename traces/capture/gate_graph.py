"""Find a layer's router in llama.cpp's graph: which norm, which gate, what happens to the logits.

llama.cpp's `build_moe_ffn` and `build_norm` (src/llama-graph.cpp) have switches that each
architecture sets for itself. The graph shows what came out: from the top-k ids it is walked back
along first operands, ``ffn_moe_topk`` <- argsort <- masks, biases, activation <- MUL_MAT of
``blk.<l>.ffn_gate_inp.weight`` and the router's input <- weight, bias and norm of the residual stream.
So nothing is kept here by architecture. What is not understood is said and not guessed: SmallThinker's
router, for one, which reads something else than a norm of the residual stream.
"""

from __future__ import annotations

import ctypes as C
import re
from collections.abc import Callable
from functools import partial

import numpy as np

from traces.capture import gate_rule
from traces.capture.gate_rule import GateRule, Norm, Step
from traces.capture.ggml_tensor import Tensor, float_parameter, name_of, source_of, viewed_by
from traces.models.gguf_tensors import GgufTensors

_WEIGHT = re.compile(r"blk\.\d+\.[\w.]+")
"""In the name of a weight, or of a copy for another back end (``CUDA0#blk.0.ffn_norm.weight#0``)."""
_MASKED = re.compile(rb"ffn_moe_probs_masked-\d+$")
_SHAPE_ONLY = ("RESHAPE", "VIEW", "CONT")
_FURTHEST = 24
"""Operations between the argsort and the router's input, at most; 15 with groups and biases."""
_SQUASHES: dict[str, Step] = {
    "SOFT_MAX": gate_rule.softmax,
    "SIGMOID": gate_rule.sigmoid,
    "SOFTPLUS": gate_rule.softplus,
    "SQRT": np.sqrt,
}
"""Activations of routers. All keep the order of experts."""


class NotUnderstood(Exception):
    """The router is built in a way that is not known; says how."""


class GateGraph:
    """Reads routers off the graph; weights come from the model's GGUF file."""

    def __init__(self, library: C.CDLL, tensors: GgufTensors) -> None:
        self._desc: Callable[[int], bytes] = C.CFUNCTYPE(C.c_char_p, C.c_void_p)(
            ("ggml_op_desc", library)
        )
        self._tensors = tensors

    def router_input(self, logits: int) -> int:
        """Address of what the router with these logits reads: the output of a norm."""
        return source_of(self._walk(logits)[0], 1)

    def residual(self, output: int) -> int:
        """Address of what the norm with this output, weights and biases included, normalises."""
        return source_of(self._norm_walk(output)[0])

    def rule(self, topk: int) -> GateRule:
        """The router that chose the ids at address ``topk``."""
        argsort = viewed_by(topk)
        if not argsort or not name_of(argsort).startswith(b"ffn_moe_argsort"):
            raise NotUnderstood("its ids are not chosen by scores")
        gate, steps = self._walk(source_of(argsort))
        weight = self._weight(source_of(gate))
        made = [self._step(address, len(weight)) for address in reversed(steps)]
        kept = gate_rule.without_order_keeping([m for m in made if m])
        return GateRule(self.norm(source_of(gate, 1)), weight, kept)

    def norm(self, output: int) -> Norm:
        """The norm whose output, weights and biases included, is at this address."""
        node, after = self._norm_walk(output)
        done = [(self._desc(a).decode(), self._operand(a)) for a in reversed(after)]
        # The epsilon is the first parameter of both norms.
        return Norm(
            self._desc(node) == b"RMS_NORM",
            float_parameter(node),
            tuple(("MUL" if what == "SCALE" else what, value) for what, value in done),
        )

    def _walk(self, at: int) -> tuple[int, list[int]]:
        """The gate's MUL_MAT, and the operations from it to a node, last first, those on shapes left
        out."""
        steps: list[int] = []
        masked = False
        for _ in range(_FURTHEST):
            if not at:
                break
            what = self._desc(at).decode()
            if _MASKED.match(name_of(at)):
                steps.append(at)
                masked = True
            elif what == "MUL_MAT":
                return at, steps
            elif what in _SQUASHES or what in ("ADD", "MUL", "SCALE"):
                steps.append(at)
                masked = False
            elif what not in _SHAPE_ONLY and not (masked and what in ("SET_ROWS", "GET_ROWS")):
                raise NotUnderstood(f"its logits pass through {what}")
            at = source_of(at)
        raise NotUnderstood("no product with a gate's matrix leads to its scores")

    def _norm_walk(self, output: int) -> tuple[int, list[int]]:
        """The RMS_NORM or NORM node, and the operations after it, last first."""
        at = output
        after: list[int] = []
        for _ in range(_FURTHEST):
            what = self._desc(at).decode() if at else "nothing"
            if what in ("RMS_NORM", "NORM"):
                return at, after
            weighted = what in ("ADD", "MUL") and self._is_weight(source_of(at, 1))
            if weighted or what == "SCALE":
                after.append(at)
            elif what not in _SHAPE_ONLY:
                break
            at = source_of(at)
        raise NotUnderstood("its input is not a norm of the residual stream")

    def _step(self, address: int, n_experts: int) -> tuple[bool, Step] | None:
        """(whether it keeps the order of experts, the step); None for what does nothing."""
        what = self._desc(address).decode()
        if what in _SQUASHES:
            return True, _SQUASHES[what]
        if what in ("ADD", "MUL"):
            operation = np.add if what == "ADD" else np.multiply
            return False, partial(_binary, operation, self._operand(address))
        if what == "SCALE":
            return True, partial(_binary, np.multiply, self._operand(address))
        rows = source_of(address)
        while self._desc(rows) != b"SET_ROWS":
            if self._desc(rows).decode() not in _SHAPE_ONLY:
                raise NotUnderstood("it rules out experts in an unknown way")
            rows = source_of(rows)
        groups = int(Tensor.from_address(rows).ne[1])
        used = int(Tensor.from_address(source_of(rows)).ne[1])
        if not 0 < used <= groups or n_experts % groups:
            raise NotUnderstood(f"it rules out experts by {groups} groups of {n_experts} experts")
        return False, gate_rule.within_groups(groups, used)

    def _operand(self, address: int) -> np.ndarray:
        """What an ADD or MUL takes from the model's weights; a SCALE's factor."""
        if self._desc(address) == b"SCALE":
            if float_parameter(address, 1):
                raise NotUnderstood("a scale with an offset")
            return np.array(float_parameter(address), np.float32)
        return self._weight(source_of(address, 1))

    def _is_weight(self, address: int) -> bool:
        return bool(address and _WEIGHT.search(name_of(address).decode()))

    def _weight(self, address: int) -> np.ndarray:
        name = _WEIGHT.search(name_of(address).decode()) if address else None
        if name is None or name[0] not in self._tensors:
            shown = name_of(address).decode() if address else "nothing"
            raise NotUnderstood(f"{shown!r} takes part in it, which is no weight of the model")
        return self._tensors.read(name[0])


def _binary(operation: np.ufunc, value: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(operation(x, value), np.float32)
