"""Guesses of the experts to come, recorded beside the routing: routers run too early.

Which router is run on what is said by `traces.files.schema.PREDICTORS`. A router is its layer's norm,
gate and biases, so the guess about layer l is what layer l would choose if nothing were added to the
residual stream any more. (The gate alone, on the normalised input of the layer before, is the other
reading of these predictors; it recalls less: docs/capture.md.)

While a graph runs, the residual streams of the last two MoE layers are kept, and each MoE layer's
router, read off the graph when it has run, is applied to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from pathlib import Path

import numpy as np

from traces.capture.gate_graph import GateGraph, NormPlace, NotUnderstood
from traces.capture.gate_rule import GateRule, Norm, best
from traces.capture.ggml_tensor import TensorReader
from traces.capture.libllama import Library
from traces.capture.routing_callback import MicroBatch
from traces.errors import InputError
from traces.files.schema import guess_width
from traces.models.gguf_tensors import GgufTensors
from traces.models.info import ModelInfo

_AHEAD = 2
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
        before = info.moe_layers if self._pre else ()
        self._attention_norms = {b"attn_norm-%d" % il: il for il in before}
        self._rules: dict[int, GateRule | None] = {}
        self._norms: dict[int, Norm] = {}
        self._why: dict[str, list[int]] = {}
        self.begins()

    @property
    def notes(self) -> list[str]:
        """What could not be recorded, one line a reason."""
        return [
            f"no guesses about layer {', '.join(map(str, layers))}: {why}"
            for why, layers in self._why.items()
        ]

    def begins(self) -> None:
        """A micro-batch begins: nothing of the one before is left."""
        self._before: deque[tuple[int, np.ndarray | None]] = deque(maxlen=_AHEAD)
        self._attention: dict[int, np.ndarray] = {}

    def wants(self, name: bytes) -> bool:
        """Whether `take` must see this node, besides the top-k ids of MoE layers."""
        return name in self._attention_norms

    def take(self, name: bytes, address: int, micro: MicroBatch) -> None:
        """Look at a node that has just been computed."""
        layer = self._layers.get(name)
        if layer is not None:
            self._take_router(layer, address, micro)
        elif name in self._attention_norms:
            self._take_attention(self._attention_norms[name], address)

    def _take_attention(self, layer: int, address: int) -> None:
        try:
            if layer not in self._norms:
                self._norms[layer] = self._graph.norm(address)
            place = self._graph.norm_place(address)
            self._attention[layer] = self._residual(layer, place, self._norms[layer])
        except NotUnderstood:
            pass  # no guess is made, and `_take_router` says so

    def _take_router(self, layer: int, address: int, micro: MicroBatch) -> None:
        rule = self._rule(layer, address)
        if rule is not None:
            if self._ahead:
                for name, (earlier, x) in zip(self._ahead, reversed(self._before), strict=False):
                    if x is not None:
                        micro.guesses[name, earlier] = best(rule.scores(x), self._width)
            if self._pre and layer in self._attention:
                x = self._attention.pop(layer)
                micro.guesses["pre", layer] = best(rule.scores(x), self._width)
            elif self._pre:
                self._note("llama.cpp shows no norm before its attention", layer)
        if self._ahead:
            self._before.append((layer, self._routed(layer, address, rule)))

    def _routed(self, layer: int, address: int, rule: GateRule | None) -> np.ndarray | None:
        """The residual stream that this layer's experts read."""
        if rule is None:
            return None
        try:
            return self._residual(layer, self._graph.place(address), rule.norm)
        except NotUnderstood as e:
            self._note(str(e), layer)
            return None

    def _rule(self, layer: int, address: int) -> GateRule | None:
        if layer not in self._rules:
            try:
                self._rules[layer] = self._graph.rule(address)
            except NotUnderstood as e:
                self._rules[layer] = None
                self._note(str(e), layer)
        return self._rules[layer]

    def _note(self, why: str, layer: int) -> None:
        layers = self._why.setdefault(why, [])
        if layer not in layers:
            layers.append(layer)

    def _residual(self, layer: int, place: NormPlace, norm: Norm) -> np.ndarray:
        """float32 [rows, d], checked: its memory may already serve something else."""
        output, x = self._read(place.output), self._read(place.residual)
        output, x = (a.reshape(a.size // a.shape[-1], a.shape[-1]) for a in (output, x))
        mine = norm(x)
        fits = output.shape == mine.shape and (
            np.abs(mine - output).max(axis=1, initial=0)
            <= _TOLERANCE * np.abs(output).max(axis=1, initial=0)
        )
        if not np.all(fits):
            raise InputError(
                f"layer {layer}: this libllama had overwritten the residual stream before it could "
                "be read; capture without --scores-next and --scores-pre, or use the library of the "
                "capture extra"
            )
        return x
