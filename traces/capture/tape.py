"""What a run shows, micro-batch by micro-batch, and how it is read from the callback's tape.

The compiled half of the callback (`traces.capture.node_filter`) writes heads, which say what was
copied, and a payload of bytes. Graphs of one shape have equal heads, so where things are is worked
out once for each shape, and a graph is then a few gathers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from traces.capture.filter_state import GRAPH, HEAD, IDS, POSITIONS, SCORES, TOKENS, WEIGHTS
from traces.errors import InputError

_F32, _I32 = 0, 26  # GGML_TYPE_F32, GGML_TYPE_I32
_SHAPES = 256
"""Shapes of graphs that are remembered."""
_AT_ONCE = 1 << 20
"""Values that are gathered at once, about."""


@dataclass
class LayerRouting:
    """One MoE layer in one micro-batch, rows in the order of the micro-batch.

    ``experts``: int32 [n, k], strongest first. ``weights``: float32 [n, k], what the graph mixes
    the experts with; None where it names no such tensor. ``scores``: float32 [n, n_experts], what
    the experts were chosen by (probabilities, biased where the model biases them; -inf for
    masked-out groups; gpt-oss: logits); None unless asked for.
    """

    experts: np.ndarray
    weights: np.ndarray | None = None
    scores: np.ndarray | None = None


@dataclass
class Block:
    """Layers of a micro-batch that routed equally many rows: arrays as in `LayerRouting`, with the
    layers as first axis."""

    layers: tuple[int, ...]
    experts: np.ndarray
    weights: np.ndarray | None = None
    scores: np.ndarray | None = None


@dataclass
class MicroBatch:
    """What one forward pass showed: inputs int32 [n], and the routing of each MoE layer.

    The last layer may have fewer rows than there are tokens: llama.cpp drops those that need no
    logits before the last block's experts.
    """

    tokens: np.ndarray | None = None
    pos: np.ndarray | None = None
    blocks: list[Block] = field(default_factory=list)
    start_ns: int = 0
    """When the graph began, on CLOCK_MONOTONIC (`time.monotonic_ns`)."""
    end_ns: int = 0
    """When it had run: for all but the last one of a `llama_decode` call, when the next began."""
    stages: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    """Every ``ffn_moe_<stage>-<layer>`` tensor by (stage, layer); only when asked for."""
    guesses: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Ids and scores by (predictor, layer of the row), from a watcher: `traces.capture.gate_scores`."""

    @property
    def layers(self) -> dict[int, LayerRouting]:
        """The routing by layer."""
        found = {}
        for b in self.blocks:
            for i, layer in enumerate(b.layers):
                weights = None if b.weights is None else b.weights[i]
                scores = None if b.scores is None else b.scores[i]
                found[layer] = LayerRouting(b.experts[i], weights, scores)
        return dict(sorted(found.items()))


@dataclass
class _Part:
    """A block's layers, and where its values are: indices into the payload's words of 4 bytes."""

    layers: tuple[int, ...]
    experts: np.ndarray
    weights: np.ndarray | None
    scores: np.ndarray | None


class TapeReader:
    """Turns heads and payload into micro-batches. ``layers``: those that are of interest."""

    def __init__(self, layers: frozenset[int]) -> None:
        self._layers = layers
        self._shapes: dict[bytes, _Shape] = {}

    def read(self, heads: np.ndarray, payload: np.ndarray) -> Iterator[MicroBatch]:
        """``heads``: int64 [n, HEAD], whole graphs; ``payload``: uint8. All is copied."""
        at = 0
        run: list[list[int]] = []  # graphs of one shape, one after the other
        last: _Shape | None = None
        while at < len(heads):
            graph = heads[at].tolist()
            assert graph[0] == GRAPH
            shape = self._shape(heads[at + 1 : at + 1 + graph[1]])
            at += 1 + graph[1]
            if last is not None and (shape is not last or len(run) * shape.size > _AT_ONCE):
                yield from last.gather(payload, run)
                run = []
            run.append(graph)
            last = shape
        if last is not None:
            yield from last.gather(payload, run)

    def _shape(self, copies: np.ndarray) -> _Shape:
        key = copies.tobytes()
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) == _SHAPES:
                self._shapes.clear()
            shape = self._shapes[key] = _Shape(copies, self._layers)
        return shape


class _Shape:
    """Where things are in the payload of graphs with these heads."""

    def __init__(self, copies: np.ndarray, layers: frozenset[int]) -> None:
        self._inputs: dict[int, slice] = {}
        ids: dict[int, np.ndarray] = {}
        weights: dict[int, np.ndarray] = {}
        scores: dict[int, np.ndarray] = {}
        for kind, layer, n0, n1, stride, type_, at, kept in copies.tolist():
            if (
                type_ != (_F32 if kind in (WEIGHTS, SCORES) else _I32)
                or at % 4
                or stride % 4
                or kept
            ):
                raise InputError(
                    f"layer {layer}: this libllama's routing has an unknown form (ggml type {type_}); "
                    "use the one of the capture extra: pip install 'uvmsim[capture]'"
                )
            where = at // 4 + np.arange(n1)[:, None] * (stride // 4) + np.arange(n0)
            if kind in (TOKENS, POSITIONS):
                self._inputs[kind] = slice(at // 4, at // 4 + n0 * n1)
            elif layer in layers:
                {IDS: ids, WEIGHTS: weights, SCORES: scores}[kind][layer] = where
        self._parts: list[_Part] = []
        alike: dict[tuple[object, ...], list[int]] = {}
        for layer, where in ids.items():
            key = (where.shape, layer in weights, layer in scores)
            alike.setdefault(key, []).append(layer)
        for (shape, has_weights, has_scores), members in alike.items():
            self._parts.append(
                _Part(
                    tuple(members),
                    np.stack([ids[i] for i in members]),
                    # The last stage that the graph names is the one that it uses.
                    np.stack([weights[i].reshape(shape) for i in members]) if has_weights else None,
                    np.stack([scores[i] for i in members]) if has_scores else None,
                )
            )

        self.size = sum(p.experts.size for p in self._parts)

    def gather(self, payload: np.ndarray, graphs: list[list[int]]) -> Iterator[MicroBatch]:
        """``graphs``: their heads."""
        words, floats = payload.view(np.int32), payload.view(np.float32)
        begins = np.array([g[4] for g in graphs], np.int64) // 4
        at = begins[:, None, None, None]
        found = [
            (
                p.layers,
                words[at + p.experts],
                None if p.weights is None else floats[at + p.weights],
                None if p.scores is None else floats[at + p.scores],
            )
            for p in self._parts
        ]
        for i, (_, _, start, end, *_) in enumerate(graphs):
            inputs = {
                kind: words[begins[i] + s.start : begins[i] + s.stop].copy()
                for kind, s in self._inputs.items()
            }
            tokens, pos = inputs.get(TOKENS), inputs.get(POSITIONS)
            if tokens is not None and pos is not None:
                pos = pos[: len(tokens)]  # multi-axis positions: the first axis
            blocks = [
                Block(
                    layers,
                    experts[i],
                    None if weights is None else weights[i],
                    None if scores is None else scores[i],
                )
                for layers, experts, weights, scores in found
            ]
            yield MicroBatch(tokens, pos, blocks, start, end)


def empty_heads(n: int) -> np.ndarray:
    """Room for ``n`` heads."""
    return np.zeros((n, HEAD), np.int64)
