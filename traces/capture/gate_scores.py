"""Guesses of the experts to come, recorded beside the routing: routers run too early.

Which router is run on what is said by `traces.files.schema.PREDICTORS`. A router is its layer's norm,
gate and biases, so the guess about layer l is what layer l would choose if nothing were added to the
residual stream any more. (The gate alone, on the normalised input of the layer before, is the other
reading of these predictors; it recalls less: docs/capture.md.)

While a graph runs, the residual streams of the last two MoE layers are kept, and each MoE layer's
router, read off the graph when it has run, is applied to them. They are in memory for a moment only,
and must be read before the graph goes on, so every graph stops for them, in Python.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from pathlib import Path

import numpy as np

from traces.capture.gate_graph import GateGraph, NotUnderstood
from traces.capture.gate_rule import GateRule, Norm, best
from traces.capture.ggml_tensor import TensorReader
from traces.capture.libllama import Library
from traces.capture.routing_callback import MicroBatch
from traces.errors import InputError
from traces.files.schema import guess_width
from traces.models.gguf_tensors import GgufTensors
from traces.models.info import ModelInfo

_AHEAD = 2
_ATTENTION, _ROUTER = "attention", "router"
"""What reads a residual stream, through a norm. Both are looked at when the norm, or the product right
after it, has just been computed: later their memory may serve something else."""
_TOLERANCE = 1e-2
"""Of the largest value of a row: llama.cpp's norm and ours differ by rounding alone."""


class GateScores:
    """A watcher for `RoutingCallback`: puts `MicroBatch.guesses` beside what it collects."""

    def __init__(
        self, library: Library, model: str | Path, info: ModelInfo, asked: Collection[str]
    ) -> None:
        """``asked``: which of `PREDICTORS`; ``model``: the GGUF file, for the routers' weights."""
        self._read = TensorReader(library.c).read
        self._graph = GateGraph(library.c, GgufTensors(model))
        self._layers = {b"ffn_moe_topk-%d" % il: il for il in info.moe_layers}
        self._width = guess_width(info.top_k, info.n_experts)
        self._ahead = [name for name in ("next1", "next2") if name in asked]
        self._pre = "pre" in asked
        self._readers: dict[bytes, tuple[str, int]] = {}
        for il in info.moe_layers:
            if self._pre:
                self._readers[b"attn_norm-%d" % il] = (_ATTENTION, il)
            if self._ahead:
                self._readers[b"ffn_moe_logits-%d" % il] = (_ROUTER, il)
        self._rules: dict[int, GateRule | None] = {}
        self._norms: dict[tuple[str, int], Norm] = {}
        self._why: dict[str, list[int]] = {}
        self.begins()

    @property
    def notes(self) -> list[str]:
        """What could not be recorded, one line a reason."""
        return [
            f"guesses are missing, layer {', '.join(map(str, layers))}: {why}"
            for why, layers in self._why.items()
        ]

    def begins(self) -> None:
        """A micro-batch begins: nothing of the one before is left."""
        self._before: deque[tuple[int, np.ndarray | None]] = deque(maxlen=_AHEAD)
        self._streams: dict[tuple[str, int], np.ndarray] = {}

    def wants(self, name: bytes) -> bool:
        """Whether `take` must see this node, besides the top-k ids of MoE layers."""
        return name in self._readers

    def take(self, name: bytes, address: int, micro: MicroBatch) -> None:
        """Look at a node that has just been computed."""
        layer = self._layers.get(name)
        if layer is not None:
            self._take_router(layer, address, micro)
        elif name in self._readers:
            self._take_stream(self._readers[name], address)

    def _take_stream(self, reader: tuple[str, int], address: int) -> None:
        """Keep the residual stream that a layer's attention, or its router, reads."""
        try:
            output = self._graph.router_input(address) if reader[0] == _ROUTER else address
            if reader not in self._norms:
                self._norms[reader] = self._graph.norm(output)
            residual = self._graph.residual(output)
        except NotUnderstood:
            return  # `_take_router` says that it is missing
        self._streams[reader] = self._checked(reader, output, residual)

    def _take_router(self, layer: int, address: int, micro: MicroBatch) -> None:
        if layer not in self._rules:
            try:
                self._rules[layer] = self._graph.rule(address)
            except NotUnderstood as e:
                self._rules[layer] = None
                self._note(str(e), layer)
        rule = self._rules[layer]
        if rule is not None:
            for name, (earlier, x) in zip(self._ahead, reversed(self._before), strict=False):
                if x is not None:
                    micro.guesses[name, earlier] = best(rule.scores(x), self._width)
            x = self._stream(_ATTENTION, layer) if self._pre else None
            if x is not None:
                micro.guesses["pre", layer] = best(rule.scores(x), self._width)
        if self._ahead:
            self._before.append((layer, self._stream(_ROUTER, layer) if rule else None))

    def _stream(self, reader: str, layer: int) -> np.ndarray | None:
        x = self._streams.pop((reader, layer), None)
        if x is None:
            self._note(f"llama.cpp shows no norm before its {reader}", layer)
        return x

    def _note(self, why: str, layer: int) -> None:
        layers = self._why.setdefault(why, [])
        if layer not in layers:
            layers.append(layer)

    def _checked(self, reader: tuple[str, int], output: int, residual: int) -> np.ndarray:
        """float32 [rows, d]: the residual stream, unless its memory serves something else by now."""
        theirs, x = self._read(output), self._read(residual)
        theirs, x = (a.reshape(a.size // a.shape[-1], a.shape[-1]) for a in (theirs, x))
        mine = self._norms[reader](x)
        fits = theirs.shape == mine.shape and (
            np.abs(mine - theirs).max(axis=1, initial=0)
            <= _TOLERANCE * np.abs(theirs).max(axis=1, initial=0)
        )
        if not np.all(fits):
            raise InputError(
                f"layer {reader[1]}: this libllama had overwritten the residual stream before its "
                f"{reader[0]} when it could be read; capture without --scores-next and --scores-pre, "
                "or use the library of the capture extra"
            )
        return x
