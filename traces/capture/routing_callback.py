"""Listen to llama.cpp's evaluation callback and collect the routing of every micro-batch.

The scheduler asks about each node of the graph before it computes it ("do you want to see this
one?") and calls again after those that were wanted. Of interest are the top-k ids
``ffn_moe_topk-<layer>`` and the last of the tensors ``ffn_moe_weights*-<layer>``, which is what the
graph mixes the experts with.

The compiled half (`traces.capture.node_filter`) answers, exchanges memory and writes a tape; this
half gives it room and reads the tape (`traces.capture.tape`). Where a watcher wants nodes of its own,
Python alone listens, and every graph stops for it: at the ids, the weights and what it asks for.
"""

from __future__ import annotations

import ctypes as C
import re
import time
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakValueDictionary, finalize

import numpy as np

from traces.capture import filter_state as fs
from traces.capture.ggml_tensor import (
    SOURCES_MAX,
    TensorReader,
    is_made,
    name_of,
    source_of,
    viewed_by,
)
from traces.capture.kept_memory import KeptMemory
from traces.capture.libllama import EVAL_CALLBACK, Library
from traces.capture.node_filter import compile_filter
from traces.capture.tape import Block, LayerRouting, MicroBatch, TapeReader, empty_heads
from traces.errors import InputError

__all__ = ["LayerRouting", "MicroBatch", "RoutingCallback", "Watcher"]

_GRAPH_STARTS = (b"embd", b"inp_embd")
_STAGE = re.compile(rb"ffn_moe_([a-z_]+)-(\d+)$")
_WEIGHTS = ("weights", "weights_softmax", "weights_norm", "weights_scaled")
N_HEADS = 1 << 15
PAYLOAD_BYTES = 1 << 22
"""Room for what a `llama_decode` call shows; it grows where that is more."""


class Watcher(Protocol):
    """Looks at nodes that have just been computed: the ids of MoE layers, and those that it wants.
    What it finds it puts beside what the callback collects."""

    def begins(self) -> None: ...
    def wants(self, name: bytes) -> bool: ...
    def take(self, name: bytes, address: int, micro: MicroBatch) -> None: ...


class RoutingCallback:
    """Collects micro-batches while `llama_decode` runs; `drain` hands them over.

    ``scores``: also what the experts were chosen by. ``stop_at_layers``: copy at every layer, at a
    stop there, in place of after the graph. ``all_stages``: every ``ffn_moe_*`` tensor, read by
    Python alone: slow, and what the rest is tested against. ``compiled``: False for a run of few
    graphs, where compiling would take longer than stopping for Python at every layer. ``tensors``:
    note where the first graph's weights and caches are (`tensors`). ``watcher``: is shown nodes when
    they have been computed, by Python alone. It must outlive the contexts that it listens to: their
    graphs may use its memory.

    An exception must not leave a C callback (the graph would be dropped, and `llama_decode` return
    success with logits of zeros), so it is kept and raised by `drain`.
    """

    def __init__(
        self,
        library: Library,
        moe_layers: Iterable[int],
        *,
        scores: bool = False,
        stop_at_layers: bool = False,
        all_stages: bool = False,
        tensors: bool = False,
        watcher: Watcher | None = None,
        compiled: bool = True,
    ) -> None:
        self._reader = TensorReader(library.c)
        self._layers = frozenset(moe_layers)
        self._topk = {b"ffn_moe_topk-%d" % il: il for il in self._layers}
        self._all_stages, self._scores, self._watcher = all_stages, scores, watcher
        self._done: list[MicroBatch] = []
        self._now: MicroBatch | None = None
        self._error: BaseException | None = None
        self._memory = KeptMemory(library.c)
        self._tape = TapeReader(self._layers)
        self._heads = empty_heads(N_HEADS)
        self._payload = np.zeros(PAYLOAD_BYTES, np.uint8)
        data = self._data = fs.user_data()
        self._alone = all_stages or watcher is not None or not compiled
        data[fs.THOROUGH] = self._alone
        data[fs.STOPS] = stop_at_layers
        data[fs.WANT_SCORES], data[fs.SHOW_NODES] = scores, tensors
        self.tensors: dict[str, tuple[int, int]] = {}
        """Address and bytes of the weights and caches that the first graph uses, by name."""
        data[fs.HEADS], data[fs.HEADS_ROOM] = self._heads.ctypes.data, len(self._heads)
        self._place_payload()
        _LISTENERS[data.ctypes.data] = self
        self._native = None if self._alone else self._compiled(library)
        function = _dispatch if self._native is None else self._native
        self.pointers = (C.cast(function, C.c_void_p).value or 0, int(data.ctypes.data))
        """Function and user data, for `llama_context_params`; valid as long as this object."""
        finalize(self, self._memory.close)

    def _compiled(self, library: Library) -> Any:
        c = library.c
        functions = (_dispatch, c.ggml_backend_tensor_get, self._memory.type_of)
        self._code = compile_filter(*(C.cast(f, C.c_void_p).value or 0 for f in functions))
        return EVAL_CALLBACK(self._code.address)

    @property
    def kept_memory(self) -> list[tuple[int, int]]:
        """Address and bytes of the memory, in the back ends' buffers, that this one has taken."""
        return list(self._memory.ranges)

    def need_positions(self, needed: bool) -> None:
        """Whether the positions of a micro-batch are read too: one readback from the device, without
        use where all its rows are of one sequence."""
        self._data[fs.WANT_POSITIONS] = needed

    def finish_graph(self) -> None:
        """Take over what the last graph left; the device has finished it. To be called after every
        `llama_decode` where its end is of interest, by `drain` in any case."""
        if self._native is not None:
            self._native(None, False, self.pointers[1])
        self._end()

    @property
    def failed(self) -> bool:
        """Whether `drain` will raise."""
        return self._error is not None or bool(self._data[fs.LATE])

    def drain(self) -> list[MicroBatch]:
        """The micro-batches since the last call; the device has finished what it was given. Raises
        what went wrong inside the callback."""
        self.finish_graph()
        self._read_tape()
        if self.tensors:
            self._data[fs.SHOW_NODES] = 0
        error, self._error = self._error, None
        if error is not None:
            raise error  # what was seen before is for the next call
        if self._data[fs.LATE]:
            raise InputError(
                "this model's graph looks at its routing in a way that would be read too late; "
                "capture with --stops layer"
            )
        done, self._done = self._done, []
        return done

    def on_node(self, address: int, ask: bool) -> bool:
        """What the evaluation callback does where Python has to do something."""
        try:
            request = self._data[fs.REQUEST]
            if request == fs.ADD_MEMORY:
                return self._add_memory()
            if request == fs.MAKE_ROOM:
                return self._make_room()
            if request == fs.LOOK_AT:
                return self._note_tensors(address)
            return self._ask(address) if ask else self._take(address)
        except BaseException as e:
            self._error = self._error or e
            return not ask

    # For the compiled half

    def _read_tape(self) -> None:
        """Bring what the tape holds of whole graphs into micro-batches."""
        data = self._data
        n, used = int(data[fs.HEADS_USED]), int(data[fs.PAYLOAD_USED])
        if not n or data[fs.OPEN]:
            return
        data[fs.HEADS_USED] = data[fs.PAYLOAD_USED] = 0
        self._done += self._tape.read(self._heads[:n], self._payload[:used])

    def _make_room(self) -> bool:
        data = self._data
        self._read_tape()
        while data[fs.PAYLOAD_USED] + data[fs.NEED] > len(self._payload):
            self._payload = np.concatenate([self._payload, np.zeros_like(self._payload)])
            self._place_payload()
        return True

    def _place_payload(self) -> None:
        self._data[fs.PAYLOAD] = self._payload.ctypes.data
        self._data[fs.PAYLOAD_ROOM] = len(self._payload)

    def _add_memory(self) -> bool:
        data = self._data
        n, kind = int(data[fs.BLOCKS]), int(data[fs.NEED_TYPE])
        found = self._memory.add(kind, int(data[fs.NEED])) if n < fs.MOST_BLOCKS else None
        if found is None:
            return False
        at = fs.BLOCKS_AT + n * fs.BLOCK
        data[at : at + fs.BLOCK] = 0
        data[at + fs.TYPE] = kind
        buffer, base, size, whole = found
        data[at + fs.BUFFER], data[at + fs.BASE], data[at + fs.SIZE] = buffer, base, size
        data[at + fs.WHOLE] = whole
        data[fs.BLOCKS] = n + 1
        return True

    def _note_tensors(self, address: int) -> bool:
        for i in range(SOURCES_MAX):
            source = source_of(address, i)
            source = (source and viewed_by(source)) or source
            # Weights and caches are made by no operation; "CUDA0#name#0" is a copy.
            if source and not is_made(source) and b"#" not in (name := name_of(source)):
                self.tensors.setdefault(name.decode(), self._reader.place(source))
        return True

    # Python alone

    def _ask(self, address: int) -> bool:
        name = name_of(address)
        if name in _GRAPH_STARTS and (self._now is None or self._now.blocks):
            self._begin()
        if self._now is None:
            return False
        if self._data[fs.SHOW_NODES]:
            self._note_tensors(address)
        self._look_at_inputs(address)
        if self._watcher is not None and self._watcher.wants(name):
            return True
        stage = _STAGE.match(name)
        if stage is None or self._all_stages:
            return stage is not None
        weights = stage[1].decode() in _WEIGHTS and int(stage[2]) in self._layers
        return weights or name in self._topk

    def _begin(self) -> None:
        self._end()
        self._now = MicroBatch(start_ns=time.monotonic_ns())
        self._done.append(self._now)
        if self._watcher is not None:
            self._watcher.begins()

    def _end(self) -> None:
        if self._now is not None:
            self._now.end_ns = time.monotonic_ns()
            self._now = None

    def _look_at_inputs(self, address: int) -> None:
        """The token ids and positions are second operands of the first nodes, already filled."""
        source, now = source_of(address, 1), self._now
        if not source or now is None:
            return
        name = name_of(source)
        # A copy for another back end is called e.g. "CUDA0#inp_pos#0".
        if now.tokens is None and b"inp_tokens" in name:
            now.tokens = self._reader.read(source).reshape(-1)
        elif now.pos is None and b"inp_pos" in name:
            now.pos = self._reader.read(source).reshape(-1)
            if now.tokens is not None:
                now.pos = now.pos[: len(now.tokens)]

    def _take(self, address: int) -> bool:
        now, name = self._now, name_of(address)
        if now is None:
            return True
        stage = _STAGE.match(name)
        if stage is not None:
            self._take_stage(name, stage[1].decode(), int(stage[2]), address)
        if self._watcher is not None and (name in self._topk or self._watcher.wants(name)):
            self._watcher.take(name, address, now)
        return True

    def _take_stage(self, name: bytes, which: str, layer: int, address: int) -> None:
        now = self._now
        assert now is not None
        if self._all_stages:
            now.stages[which, layer] = self._reader.read(address)
        if name in self._topk:
            self._take_routing(address, self._topk[name])
        elif which in _WEIGHTS and now.blocks and now.blocks[-1].layers == (layer,):
            block = now.blocks[-1]  # the last stage that the graph names is the one that it uses
            block.weights = self._reader.read(address).reshape(block.experts.shape)

    def _take_routing(self, address: int, layer: int) -> None:
        assert self._now is not None
        block = Block((layer,), self._reader.read(address)[None])
        argsort = viewed_by(address) if self._scores or self._all_stages else 0
        if argsort and name_of(argsort).startswith(b"ffn_moe_argsort"):
            block.scores = self._reader.read(source_of(argsort))[None]
        self._now.blocks.append(block)


_LISTENERS: WeakValueDictionary[int, RoutingCallback] = WeakValueDictionary()
"""By the address of their user data: one compiled function serves them all."""


@EVAL_CALLBACK
def _dispatch(address: int, ask: bool, user: int) -> bool:
    return _LISTENERS[user].on_node(address, ask)
