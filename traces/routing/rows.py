"""What the functions of this room need of a routing trace (`traces.routing.trace.RoutingTrace`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from traces.files.schema import RoutingMeta


@dataclass(frozen=True)
class Prediction:
    """A predictor's columns (`traces.files.schema.PREDICTORS`), best guess first.

    ``ids``: int16 [rows, 2k], -1 where there is none; ``scores``: float16 [rows, 2k], NaN there.
    """

    ids: np.ndarray
    scores: np.ndarray


class Rows(Protocol):
    """A trace's columns and what follows from them; shapes as in `RoutingTrace`."""

    meta: RoutingMeta
    path: Path | None
    columns: dict[str, np.ndarray]
    seq: np.ndarray
    pos: np.ndarray
    step: np.ndarray
    phase: np.ndarray
    layer: np.ndarray
    experts: np.ndarray
    weights: np.ndarray | None
    token: np.ndarray | None
    draft: np.ndarray | None
    predictions: dict[str, Prediction]

    @property
    def n_rows(self) -> int: ...
    @property
    def n_experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def token_index(self) -> np.ndarray: ...
