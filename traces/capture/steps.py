"""Micro-batches as rows of a routing trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from traces.capture.options import CaptureOptions, CaptureResult
from traces.capture.recording import Recording
from traces.capture.routing_callback import MicroBatch
from traces.capture.row_order import Row
from traces.errors import InputError
from traces.files.schema import guess_width
from traces.models.info import ModelInfo

_TOGETHER = 4096
"""Tokens that are written together, about."""


class _Arrays(NamedTuple):
    """A micro-batch, all layers and rows: [layers, rows, k]; scores only where asked for."""

    experts: np.ndarray
    weights: np.ndarray
    scores: np.ndarray | None


class StepWriter:
    """Writes one step a micro-batch, and counts it in ``result``."""

    def __init__(
        self,
        recording: Recording,
        info: ModelInfo,
        options: CaptureOptions,
        result: CaptureResult,
        *,
        origin_ns: int | None = None,
    ) -> None:
        """``origin_ns``: rows get a time, counted from there on CLOCK_MONOTONIC."""
        self._recording, self._result, self._origin = recording, result, origin_ns
        self._scores, self._tokens = options.scores, options.tokens
        self._predictors = options.predictors
        self._k, self._n_experts = info.top_k, info.n_experts
        self._layers = tuple(info.moe_layers)
        self._layer_numbers = np.array(self._layers, np.int16)
        self._slot = {layer: i for i, layer in enumerate(self._layers)}

    def add(self, steps: list[tuple[list[Row], MicroBatch]]) -> None:
        """Micro-batches with their rows, in order. Those of one size are written together: NumPy's
        calls cost more than its arithmetic."""
        alike: list[tuple[list[Row], MicroBatch, _Arrays]] = []
        for rows, micro in steps:
            arrays = self._whole(len(rows), micro) or self._by_layer(rows, micro)
            if alike and (len(rows) != len(alike[0][0]) or len(alike) * len(rows) > _TOGETHER):
                self._write(alike)
                alike = []
            alike.append((rows, micro, arrays))
        if alike:
            self._write(alike)

    def _write(self, steps: list[tuple[list[Row], MicroBatch, _Arrays]]) -> None:
        g, n, layers = len(steps), len(steps[0][0]), len(self._layers)
        experts = np.stack([a.experts for _, _, a in steps])
        weights = np.stack([a.weights for _, _, a in steps])
        found = [a.scores for _, _, a in steps if a.scores is not None]
        scores = np.stack(found) if found else None
        self._result.rows += g * layers * n
        self._result.missing_rows += int(np.count_nonzero(experts[..., 0] < 0))
        fields = [(r.seq, r.pos, r.phase, r.token) for rows, _, _ in steps for r in rows]
        columns = np.array(fields, np.int32).T.reshape(4, g, 1, n)
        seq, pos, phase, token = np.broadcast_to(columns, (4, g, layers, n)).reshape(4, -1)
        times = {}
        if self._origin is not None:
            start = np.array([m.start_ns for _, m, _ in steps]) - self._origin
            duration = np.array([m.end_ns - m.start_ns for _, m, _ in steps])
            times = {
                "time_ns": np.repeat(start, layers * n),
                "duration_ns": np.repeat(duration, layers * n),
            }
        self._recording.append(
            seq=seq,
            pos=pos,
            step=np.repeat(self._result.steps + np.arange(g), layers * n),
            phase=phase,
            layer=np.tile(np.repeat(self._layer_numbers, n), g),
            experts=experts.reshape(-1, self._k),
            weights=weights.reshape(-1, self._k),
            scores=None if scores is None else scores.reshape(-1, self._n_experts),
            token=token if self._tokens else None,
            **times,
            **self._guesses([(rows, micro) for rows, micro, _ in steps]),
        )
        self._result.steps += g

    def _guesses(self, steps: list[tuple[list[Row], MicroBatch]]) -> dict[str, np.ndarray]:
        """The predictors' columns of steps of one size; rows without a guess are -1 and NaN."""
        width = guess_width(self._k, self._n_experts)
        shape = (len(steps), len(self._layers), len(steps[0][0]), width)
        found = {
            name: (np.full(shape, -1, np.int16), np.full(shape, np.nan, np.float16))
            for name in self._predictors
        }
        for i, (rows, micro) in enumerate(steps):
            for (name, layer), guess in micro.guesses.items():
                where = _rows_present(len(guess[0]), _outputs(rows), layer)
                for column, values in zip(found[name], guess, strict=True):
                    column[i, self._slot[layer], where] = values
        return {
            f"{name}_{kind}": column.reshape(-1, width)
            for name, pair in found.items()
            for kind, column in zip(("ids", "scores"), pair, strict=True)
        }

    def _whole(self, n: int, micro: MicroBatch) -> _Arrays | None:
        """The arrays as they are, where the micro-batch is one block of all layers and rows."""
        if len(micro.blocks) != 1:
            return None
        block = micro.blocks[0]
        complete = block.layers == self._layers and block.experts.shape[1] == n
        if not complete or block.weights is None or (self._scores and block.scores is None):
            return None
        return _Arrays(block.experts, block.weights, block.scores if self._scores else None)

    def _by_layer(self, rows: list[Row], micro: MicroBatch) -> _Arrays:
        n, layers = len(rows), len(self._layers)
        experts = np.full((layers, n, self._k), -1, np.int32)
        weights = np.full((layers, n, self._k), np.nan, np.float32)
        scores = np.full((layers, n, self._n_experts), np.nan, np.float32) if self._scores else None
        outputs = _outputs(rows)
        for block in micro.blocks:
            which = np.array([self._slot[layer] for layer in block.layers])
            where = _rows_present(block.experts.shape[1], outputs, block.layers[0])
            at = np.ix_(which, where)
            experts[at] = block.experts
            if block.weights is not None:
                weights[at] = block.weights
            if scores is not None and block.scores is not None:
                scores[at] = block.scores
        return _Arrays(experts, weights, scores)


def _outputs(rows: Iterable[Row]) -> np.ndarray:
    """bool [rows]: which of them need logits."""
    return np.array([r.output for r in rows])


def _rows_present(n: int, outputs: np.ndarray, layer: int) -> np.ndarray:
    """Which of the micro-batch's rows a layer computed: all, or those that need logits."""
    if n == len(outputs):
        return np.arange(n)
    where = np.flatnonzero(outputs)
    if n != len(where):
        raise InputError(
            f"layer {layer} routed {n} of {len(outputs)} rows, and {len(where)} ask for logits: "
            "this build drops rows in an unknown way; use the library of the capture extra"
        )
    return where
