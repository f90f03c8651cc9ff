"""Listen to llama.cpp's evaluation callback and collect the routing of every micro-batch.

The scheduler asks about each node of the graph before it computes it ("do you want to see this
one?") and calls again after those that were wanted. Wanted is one node a MoE layer: the top-k ids
``ffn_moe_topk-<layer>``. From there the scores that they were chosen by are one pointer away.

The compiled half (`traces.capture.node_filter`) answers for the bulk of the nodes and copies the
routing to a tape; this half looks at the inputs of every graph, at the whole of the first one, and
reads the tape.
"""

from __future__ import annotations

import ctypes as C
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from traces.capture.ggml_tensor import (
    NUMPY,
    TensorReader,
    float_parameter,
    name_of,
    source_of,
    viewed_by,
)
from traces.capture.libllama import EVAL_CALLBACK, Library
from traces.capture.node_filter import (
    ALL_NODES,
    HEADER,
    IDS,
    INPUTS,
    NOTHING_MORE,
    PROBS,
    ROOM,
    SCORES,
    TAPE,
    USED,
    WANTED,
    compile_filter,
    user_data,
)
from traces.capture.router_weights import WeightRule

_GRAPH_STARTS = (b"embd", b"inp_embd")
_STAGE = re.compile(rb"ffn_moe_([a-z_]+)-(\d+)$")
TAPE_BYTES = 1 << 25
"""Room for what a `llama_decode` call shows; a stop that finds none left is left to Python."""
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
    guesses: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Ids and scores by (predictor, layer of the row), from a watcher: `traces.capture.gate_scores`."""


class Watcher(Protocol):
    """Sees what the callback sees, and asks for more nodes; every graph is then stopped in Python."""

    def begins(self) -> None: ...
    def wants(self, name: bytes) -> bool: ...
    def take(self, name: bytes, address: int, micro: MicroBatch) -> None: ...


class RoutingCallback:
    """Collects micro-batches while `llama_decode` runs; `drain` hands them over.

    An exception must not leave a C callback (the graph would be dropped, and `llama_decode` return
    success with logits of zeros), so it is kept and raised by `drain`.
    """

    def __init__(
        self,
        library: Library,
        moe_layers: Iterable[int],
        *,
        all_stages: bool = False,
        watcher: Watcher | None = None,
    ) -> None:
        self._read = TensorReader(library.c).read
        self._layers = frozenset(moe_layers)
        self._topk = {b"ffn_moe_topk-%d" % il: il for il in self._layers}
        self._all_stages, self._watcher = all_stages, watcher
        self._done: list[MicroBatch] = []
        self._now: MicroBatch | None = None
        self._error: BaseException | None = None
        self._rules: dict[int, WeightRule] = {}
        self._graphs = 0
        self._data = user_data()
        self._tape = np.zeros(TAPE_BYTES, np.uint8)
        self._data[TAPE], self._data[ROOM] = self._tape.ctypes.data, TAPE_BYTES
        self._native = compile_filter(
            *(
                C.cast(f, C.c_void_p).value or 0
                for f in (_dispatch, library.c.ggml_backend_tensor_get)
            )
        )
        _LISTENERS[self._data.ctypes.data] = self
        self.pointers = (int(self._native.address), int(self._data.ctypes.data))
        """Function and user data, for `llama_context_params`; valid as long as this object."""

    @property
    def rules(self) -> dict[int, WeightRule]:
        """How each layer turns probabilities into weights, as its graph says (after one pass)."""
        return self._rules

    def drain(self) -> list[MicroBatch]:
        """The micro-batches since the last call. Raises what went wrong inside the callback."""
        self._read_tape()
        error, self._error = self._error, None
        done, self._done, self._now = self._done, [], None
        if error is not None:
            raise error
        return done

    def on_node(self, address: int, ask: bool) -> bool:
        """What the evaluation callback does where Python has to decide."""
        try:
            return self._ask(address) if ask else self._take(address)
        except BaseException as e:
            self._error = self._error or e
            return not ask

    def _ask(self, address: int) -> bool:
        name = name_of(address)
        if name in _GRAPH_STARTS:
            self._begin()
        if self._data[WANTED] == NOTHING_MORE:
            return False
        self._look_at_inputs(address)
        watched = self._watcher is not None and self._watcher.wants(name)
        stage = _STAGE.match(name) if self._data[WANTED] == ALL_NODES else None
        if stage:
            self._note_rule(stage[1].decode(), int(stage[2]), address)
            return self._all_stages or name in self._topk or watched
        return watched

    def _read_tape(self) -> None:
        """Bring what the compiled half copied into the micro-batch that runs now."""
        at, end = 0, int(self._data[USED])
        self._data[USED] = 0
        while at < end:
            header = self._tape[at : at + 8 * HEADER].view(np.int64)
            layer, kind, n0, n1, stride, dtype, n_bytes, _ = header.tolist()
            at += 8 * HEADER
            copy = np.ndarray((n1, n0), NUMPY[dtype], self._tape.data, at, (stride, 4)).copy()
            at += n_bytes
            if layer not in self._layers:
                continue
            assert self._now is not None
            if kind == IDS:
                self._now.layers[layer] = LayerRouting(copy, None, None)
            elif kind == SCORES:
                self._now.layers[layer].scores = self._now.layers[layer].probs = copy
            elif kind == PROBS:
                self._now.layers[layer].probs = copy

    def _begin(self) -> None:
        self._read_tape()
        if self._now is not None and not self._now.layers:
            return  # both names of the first node occur in this graph
        self._now = MicroBatch()
        self._done.append(self._now)
        if self._watcher is not None:
            self._watcher.begins()
        # The first graph is looked at as a whole, to learn how it makes weights.
        self._graphs += 1
        whole = self._graphs == 1 or self._all_stages or self._watcher is not None
        self._data[WANTED] = ALL_NODES if whole else INPUTS

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
            if self._data[WANTED] == INPUTS:
                self._data[WANTED] = NOTHING_MORE

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
        if self._watcher is not None and self._now is not None:
            self._watcher.take(name, address, self._now)
        return True

    def _take_routing(self, address: int, layer: int) -> None:
        self._read_tape()
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


_LISTENERS: WeakValueDictionary[int, RoutingCallback] = WeakValueDictionary()
"""By the address of their user data: one compiled function serves them all."""


@EVAL_CALLBACK
def _dispatch(address: int, ask: bool, user: int) -> bool:
    return _LISTENERS[user].on_node(address, ask)
