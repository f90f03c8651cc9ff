"""Routing traces from arrays: what a notebook has at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL, RoutingMeta
from traces.models.info import ModelInfo
from traces.routing.bounds import check_values
from traces.routing.trace import RoutingTrace


def routing(
    ids: Any,
    n_experts: int,
    *,
    weights: Any = None,
    scores: Any = None,
    seq: Any = None,
    phase: Any = None,
    prefill: int = 0,
    layers: Sequence[int] | None = None,
    model: str = "unknown",
    expert_bytes: int | None = None,
    ranked: bool = False,
) -> RoutingTrace:
    """A routing trace in memory, of tokens in the order they were run.

    ``ids``: integers [tokens, layers, k], the experts each token chose in each MoE layer, from 0; a
    row of -1 where that is not known. ``n_experts``: experts a layer. ``weights``: [tokens, layers, k],
    ``scores``: [tokens, layers, n_experts], as floats. ``seq``: [tokens], the sequence of a token;
    all one where left out. ``phase``: [tokens], 0 prefill, 1 decode; or ``prefill``: the first tokens
    of each sequence that are its prompt. A prompt is one forward pass, every other token one of its
    own. ``layers``: block number of each layer; 0, 1, ... where left out. ``model``: its name, that
    of a preset gives sizes; ``expert_bytes``: bytes of one expert. ``ranked``: the first id of a row is
    the strongest (so it is, where weights never rise along a row).

    Raises `InputError`, which names the argument.
    """
    e = _array("ids", ids, "iu", 3)
    n, n_layers, k = e.shape
    if not n or not n_layers or not k:
        raise InputError(f": shape {e.shape}; there must be a token, a layer and an id", "ids")
    w = _floats("weights", weights, (n, n_layers, k))
    s = _floats("scores", scores, (n, n_layers, n_experts))
    sequence = np.zeros(n, np.int32) if seq is None else _array("seq", seq, "iu", 1, n)
    blocks = tuple(range(n_layers)) if layers is None else tuple(int(x) for x in layers)
    if len(blocks) != n_layers or list(blocks) != sorted(set(blocks)):
        raise InputError(f": {n_layers} block numbers, ascending, are needed", "layers")
    _check_ids(e, n_experts)
    pos = _positions(sequence)
    if phase is None:
        phases = np.where(pos < prefill, PREFILL, DECODE).astype(np.uint8)
    else:
        phases = _array("phase", phase, "iub", 1, n).astype(np.uint8)
    step = _steps(sequence, phases)
    # Rows in execution order: a forward pass, its layers, the tokens of each.
    token = np.tile(np.arange(n), n_layers)
    layer = np.repeat(np.arange(n_layers), n)
    order = np.lexsort((token, layer, step[token]))
    token, layer = token[order], layer[order]
    columns = {
        "seq": sequence.astype(np.int32)[token],
        "pos": pos[token],
        "step": step[token],
        "phase": phases[token],
        "layer": np.asarray(blocks, np.int16)[layer],
        "experts": np.ascontiguousarray(e[token, layer], np.int16),
    }
    if w is not None:
        columns["weights"] = w[token, layer]
    if s is not None:
        columns["scores"] = s[token, layer]
    falls = w is not None and not (np.diff(w, axis=2) > 0).any()
    info = ModelInfo(
        model, max(blocks) + 1, blocks, int(n_experts), k,
        expert_bytes=None if expert_bytes is None else (int(expert_bytes),) * n_layers,
        source="arrays in memory",
    )  # fmt: skip
    meta = RoutingMeta(info, ids_order="ranked" if ranked or falls else "unknown", tool="uvmsim")
    trace = RoutingTrace(columns, meta)
    check_values(trace)
    return trace


def _array(name: str, value: Any, kinds: str, ndim: int, length: int | None = None) -> np.ndarray:
    made = np.asarray(value)
    if made.dtype.kind not in kinds or made.ndim != ndim:
        what = "[tokens, layers, k]" if ndim == 3 else "[tokens]"
        raise InputError(
            f": expected integers {what}, got {made.dtype} of shape {made.shape}", name
        )
    if length is not None and len(made) != length:
        raise InputError(f": {len(made)} entries for {length} tokens", name)
    return made


def _floats(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if value is None:
        return None
    made = np.asarray(value, np.float32)
    if made.shape != shape:
        raise InputError(f": shape {made.shape}, not {shape}", name)
    return made


def _check_ids(ids: np.ndarray, n_experts: int) -> None:
    whole = isinstance(n_experts, int | np.integer) and not isinstance(n_experts, bool)
    if not whole or not 1 <= n_experts <= 32767:
        raise InputError(f"{n_experts}: a whole number, 1 to 32767", "n_experts")
    if ids.shape[2] > n_experts:
        raise InputError(f"{n_experts}: fewer than the {ids.shape[2]} ids of a row", "n_experts")
    missing = (ids == -1).all(axis=2)
    bad = ((ids < 0) | (ids >= n_experts)).any(axis=2) & ~missing
    if bad.any():
        t, layer = (int(x) for x in np.argwhere(bad)[0])
        raise InputError(
            f"[{t}, {layer}] is {ids[t, layer].tolist()}: ids are 0 to {n_experts - 1}", "ids"
        )


def _positions(seq: np.ndarray) -> np.ndarray:
    """int32 [tokens]: how many tokens of the same sequence came before."""
    order = np.argsort(seq, kind="stable")
    found = seq[order]
    first = np.r_[True, found[1:] != found[:-1]]
    start = np.maximum.accumulate(np.where(first, np.arange(len(seq)), 0))
    pos = np.empty(len(seq), np.int32)
    pos[order] = np.arange(len(seq)) - start
    return pos


def _steps(seq: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """int32 [tokens]: forward passes; neighbours of one prompt share theirs."""
    same = (seq[1:] == seq[:-1]) & (phase[1:] == PREFILL) & (phase[:-1] == PREFILL)
    return np.cumsum(np.r_[0, ~same], dtype=np.int32)
