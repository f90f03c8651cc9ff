"""What the functions of this room need of a routing trace (`traces.routing.trace.RoutingTrace`)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from traces.files.schema import RoutingMeta


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
