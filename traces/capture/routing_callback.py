"""Listen to llama.cpp's evaluation callback and collect the routing of every micro-batch.

The scheduler asks about each node of the graph before it computes it ("do you want to see this
one?") and calls again after those that were wanted. Wanted is one node a MoE layer: the top-k ids
``ffn_moe_topk-<layer>``. From there the scores that they were chosen by are one pointer away.

A decode graph has over a thousand nodes, and being asked about each costs Python about 0.7 µs: more
than everything else here. So the question is answered by a few compiled instructions, and Python
is called for the nodes that matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traces.capture.ggml_tensor import (
    NAME,
    SECOND_SOURCE,
    TensorReader,
    float_parameter,
    name_of,
    source_of,
    viewed_by,
)
from traces.capture.libllama import EVAL_CALLBACK, Library
from traces.capture.router_weights import WeightRule

_GRAPH_STARTS = (b"embd", b"inp_embd")
_STAGE = re.compile(rb"ffn_moe_([a-z_]+)-(\d+)$")
NOTHING_MORE, INPUTS, ALL_NODES = 0, 1, 2
"""What Python wants to be asked about besides the first node of a graph and the top-k ids: nothing,
nodes that may have the graph's inputs as second operand, every node."""
_FURTHEST_PROBS = 8
"""Operations between the unbiased router probabilities and the argsort, at most (group masks)."""


@dataclass
class LayerRouting:
    """One MoE layer in one micro-batch, rows in the order of the micro-batch.

    ``experts``: int32 [n, k], strongest first. ``scores``: float32 [n, n_experts], what they were
    chosen by (probabilities, biased where the model biases them; -inf for masked-out groups;
    gpt-oss: logits). ``probs``: what the weights are made from; the same array unless the model
    biases its choice. None where the graph does not hold them.
    """

    experts: np.ndarray
    scores: np.ndarray | None
    probs: np.ndarray | None


@dataclass
class MicroBatch:
    """What one forward pass showed: inputs int32 [n], and the routing of each MoE layer.

    The last layer may have fewer rows than there are tokens: llama.cpp drops those that need no
    logits before the last block's experts.
    """

    tokens: np.ndarray | None = None
    pos: np.ndarray | None = None
    layers: dict[int, LayerRouting] = field(default_factory=dict)
    stages: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    """Every ``ffn_moe_<stage>-<layer>`` tensor by (stage, layer); only when asked for."""


class RoutingCallback:
    """Collects micro-batches while `llama_decode` runs; `drain` hands them over.

    An exception must not leave a C callback (the graph would be dropped, and `llama_decode` return
    success with logits of zeros), so it is kept and raised by `drain`.
    """

    def __init__(
        self, library: Library, moe_layers: Iterable[int], *, all_stages: bool = False
    ) -> None:
        self._read = TensorReader(library.c).read
        self._topk = {b"ffn_moe_topk-%d" % il: il for il in moe_layers}
        self._all_stages = all_stages
        self._done: list[MicroBatch] = []
        self._now: MicroBatch | None = None
        self._error: BaseException | None = None
        self._rules: dict[int, WeightRule] = {}
        self._graphs = 0
        self._wanted = np.full(1, ALL_NODES, np.int64)  # user data of the callback
        self._python = EVAL_CALLBACK(self._on_node)
        self._native = _compile_filter(self._python)
        self.pointers = (int(self._native.address), int(self._wanted.ctypes.data))
        """Function and user data, for `llama_context_params`; valid as long as this object."""

    @property
    def rules(self) -> dict[int, WeightRule]:
        """How each layer turns probabilities into weights, as its graph says (after one pass)."""
        return self._rules

    def drain(self) -> list[MicroBatch]:
        """The micro-batches since the last call. Raises what went wrong inside the callback."""
        error, self._error = self._error, None
        done, self._done, self._now = self._done, [], None
        if error is not None:
            raise error
        return done

    def _on_node(self, address: int, ask: bool, _: Any) -> bool:
        try:
            return self._ask(address) if ask else self._take(address)
        except BaseException as e:
            self._error = self._error or e
            return not ask

    def _ask(self, address: int) -> bool:
        name = name_of(address)
        if name in _GRAPH_STARTS:
            self._begin()
        if self._wanted[0] == NOTHING_MORE:
            return False
        self._look_at_inputs(address)
        stage = _STAGE.match(name) if self._wanted[0] == ALL_NODES else None
        if stage:
            self._note_rule(stage[1].decode(), int(stage[2]), address)
            return self._all_stages or name in self._topk
        return False

    def _begin(self) -> None:
        if self._now is not None and not self._now.layers:
            return  # both names of the first node occur in this graph
        self._now = MicroBatch()
        self._done.append(self._now)
        # The first graph is looked at as a whole, to learn how it makes weights.
        self._graphs += 1
        self._wanted[0] = ALL_NODES if self._graphs == 1 or self._all_stages else INPUTS

    def _look_at_inputs(self, address: int) -> None:
        """The token ids and positions are second operands of the first nodes, already filled."""
        source, now = source_of(address, 1), self._now
        if not source or now is None:
            return
        name = name_of(source)
        # A copy for another back end is called e.g. "CUDA0#inp_pos#0".
        if now.tokens is None and b"inp_tokens" in name:
            now.tokens = self._read(source).reshape(-1)
        elif now.pos is None and b"inp_pos" in name:
            now.pos = self._read(source).reshape(-1)
            if now.tokens is not None:
                now.pos = now.pos[: len(now.tokens)]  # multi-axis positions: the first axis
            if self._wanted[0] == INPUTS:
                self._wanted[0] = NOTHING_MORE

    def _note_rule(self, stage: str, layer: int, address: int) -> None:
        if stage == "topk":
            self._rules[layer] = WeightRule()
        elif layer in self._rules:
            self._rules[layer] = self._rules[layer].with_stage(stage, float_parameter(address))

    def _take(self, address: int) -> bool:
        name = name_of(address)
        layer = self._topk.get(name)
        if layer is not None:
            self._take_routing(address, layer)
        elif self._now is not None:
            stage = _STAGE.match(name)
            if stage:
                self._now.stages[stage[1].decode(), int(stage[2])] = self._read(address)
        return True

    def _take_routing(self, address: int, layer: int) -> None:
        if self._now is None or layer in self._now.layers:
            self._begin()
        assert self._now is not None
        experts = self._read(address)
        argsort = viewed_by(address)
        if not argsort or not name_of(argsort).startswith(b"ffn_moe_argsort"):
            # The ids come from elsewhere, e.g. from a table by token id.
            self._now.layers[layer] = LayerRouting(experts, None, None)
            return
        chosen_by = source_of(argsort)
        scores = self._read(chosen_by)
        unbiased = self._find_probs(chosen_by, layer)
        if unbiased == chosen_by:
            probs: np.ndarray | None = scores
        else:
            probs = self._read(unbiased) if unbiased else None
        self._now.layers[layer] = LayerRouting(experts, scores, probs)

    def _find_probs(self, address: int, layer: int) -> int:
        """``ffn_moe_probs-<layer>`` among what the selection scores were made from; 0 if absent."""
        wanted = b"ffn_moe_probs-%d" % layer
        for _ in range(_FURTHEST_PROBS):
            if not address or name_of(address) == wanted:
                return address
            address = source_of(address)
        return 0


def _compile_filter(python: Any) -> Any:
    """A C function that passes on to ``python`` only the nodes it may want (see the module)."""
    from numba import carray, cfunc, types

    # The struct is looked at as words of eight bytes; names are compared a word at a time.
    name, source = NAME // 8, SECOND_SOURCE // 8
    ffn_moe, topk = (int.from_bytes(s, "little") for s in (b"ffn_moe_", b"topk-"))
    embd, inp_embd = (int.from_bytes(s, "little") for s in (b"embd\0", b"inp_embd"))
    five_bytes = np.uint64((1 << 40) - 1)

    @cfunc(types.boolean(types.voidptr, types.boolean, types.voidptr))
    def on_node(tensor, ask, state):  # type: ignore[no-untyped-def]
        if not ask:
            return python(tensor, ask, state)
        wanted = carray(state, (1,), np.int64)[0]
        if wanted == ALL_NODES:
            return python(tensor, ask, state)
        words = carray(tensor, (name + 2,), np.uint64)
        if words[name] == ffn_moe and words[name + 1] & five_bytes == topk:
            letters = carray(tensor, (NAME + 32,), np.uint8)
            i = NAME + 13
            while 48 <= letters[i] <= 57:  # a view made from it is called "... (view)"
                i += 1
            return letters[i] == 0
        if words[name] & five_bytes == embd or words[name] == inp_embd:
            return python(tensor, ask, state)
        if wanted == INPUTS and words[source] != 0:
            return python(tensor, ask, state)
        return False

    return on_node
