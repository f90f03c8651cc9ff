"""What every importer returns, and how it becomes a routing trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.files.ipc import require_file
from traces.files.schema import DECODE, PREFILL, RoutingMeta
from traces.importers.formats import named, sniff
from traces.models.info import ModelInfo
from traces.models.known import COMMON_EXPERT_COUNTS, KNOWN, find
from traces.routing import RoutingTrace
from traces.routing.bounds import MAX_EXPERTS


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about a dump; None means: find out."""

    model_name: str | None = None
    n_experts: int | None = None
    ids_order: str | None = None
    sequences: tuple[int, ...] | None = None


@dataclass
class Dump:
    """A routing dump by token, in the order of the file.

    ``ids``: integers [T, L, k], -1 where the routing of a token in a layer is missing; ``weights``:
    floats of that shape or None; ``seq``, ``pos``: integers [T]; ``phase`` (0 prefill, 1 decode)
    and ``step``: integers [T], or None: decode, one step a token; ``layers``: block indices of
    axis 1, None where the dump only counts them.
    """

    ids: np.ndarray
    seq: np.ndarray
    pos: np.ndarray
    weights: np.ndarray | None = None
    phase: np.ndarray | None = None
    step: np.ndarray | None = None
    token: np.ndarray | None = None
    layers: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)
    place: str = "token"
    """What a row is called in messages: ``token``, ``line``."""
    places: np.ndarray | None = None
    """[T] numbers of the rows in the file, where not 0, 1, 2, ..."""

    def where(self, t: int) -> str:
        """The place of token t, for messages."""
        return f"{self.place} {int(self.places[t]) if self.places is not None else t}"


def import_routing(
    path: str | Path,
    options: ImportOptions | None = None,
    *,
    format: str | None = None,
    tool: str = "",
    command: str = "",
) -> RoutingTrace:
    """Read a routing dump into a trace in memory.

    ``format`` is one of `traces.importers.formats`, None for the file to tell. What was inferred and
    what was left out is in ``meta.extra["inferred"]`` and ``meta.extra["notes"]``. Raises
    `InputError` for a file that cannot be used.
    """
    p, opt = Path(path), options or ImportOptions()
    require_file(p)
    if not p.stat().st_size:
        raise InputError(f"{p}: empty file; export the dump again")
    fmt = named(format) if format else sniff(p)
    dump = fmt.load(p, opt)
    if not len(dump.ids):
        raise InputError(f"{p}: holds no token; export the dump again")
    if opt.sequences is not None:
        dump = _only(dump, opt.sequences, p)
    inferred: dict[str, str] = {}
    model = _model(dump, opt, p, inferred)
    _check_ids(dump, model, p)
    order = opt.ids_order or _ids_order(dump)
    if not opt.ids_order:
        inferred["ids_order"] = order
    extra: dict[str, Any] = {"format": fmt.name, "inferred": inferred, "notes": dump.notes}
    meta = RoutingMeta(model, order, tool, command, f"imported from {p.name}", {}, extra)
    return _trace(dump, meta, p)


def _only(dump: Dump, sequences: tuple[int, ...], p: Path) -> Dump:
    there = set(np.unique(dump.seq).tolist())
    lacking = [s for s in sequences if s not in there]
    if lacking:
        raise InputError(
            f"--sequences {lacking[0]}: {p} has no such sequence; "
            f"it has {min(there)} to {max(there)}"
        )
    keep = np.isin(dump.seq, sequences)
    cut = {
        k: getattr(dump, k)[keep]
        for k in ("ids", "seq", "pos", "weights", "phase", "step", "token", "places")
        if getattr(dump, k) is not None
    }
    if dump.places is None:
        cut["places"] = np.flatnonzero(keep)
    return Dump(**cut, layers=dump.layers, notes=dump.notes, place=dump.place)


def _model(dump: Dump, opt: ImportOptions, p: Path, inferred: dict[str, str]) -> ModelInfo:
    _, n_layers, k = dump.ids.shape
    top = int(dump.ids.max())
    known = find(opt.model_name) if opt.model_name else find("/".join(p.absolute().parts[-3:]))
    shape = KNOWN[known] if known else None
    fits = shape is not None and shape.top_k == k and top < shape.n_experts
    if shape and fits:
        if dump.layers is None and n_layers == len(shape.moe_layers):
            dump.layers = shape.moe_layers
        elif dump.layers is None or max(dump.layers) >= shape.n_layers:
            fits = n_layers <= shape.n_layers
    if opt.model_name:
        name = opt.model_name
    elif known and fits:
        name, inferred["model"] = known, "from the file's path; its shape fits"
    else:
        name = "unknown"
    if opt.n_experts is not None:
        n_experts = opt.n_experts
    elif shape and fits:
        n_experts = shape.n_experts
        inferred["n_experts"] = f"{n_experts}: the published shape of {known}"
    else:
        n_experts = next((c for c in COMMON_EXPERT_COUNTS if c > top), top + 1)
        inferred["n_experts"] = (
            f"{n_experts}: the smallest usual count above the highest id {top}; "
            "state it with --n-experts"
        )
    layers = dump.layers if dump.layers is not None else tuple(range(n_layers))
    dump.layers = layers
    blocks = max(shape.n_layers if shape and fits else 0, max(layers) + 1)
    return ModelInfo(name, blocks, tuple(layers), n_experts, k, source=f"imported from {p.name}")


def _check_ids(dump: Dump, model: ModelInfo, p: Path) -> None:
    n = model.n_experts
    if not 0 < n <= MAX_EXPERTS:
        raise InputError(f"--n-experts {n}: must be 1 to {MAX_EXPERTS}")
    if model.top_k > n:
        raise InputError(f"{p}: rows of {model.top_k} ids cannot come from {n} experts; check them")
    ids = dump.ids
    missing = (ids == -1).all(axis=2)
    bad = ((ids < 0) | (ids >= n)).any(axis=2) & ~missing
    if bad.any():
        t, layer = (int(x) for x in np.argwhere(bad)[0])
        row = ids[t, layer]
        value = int(row[(row < 0) | (row >= n)][0])
        layers = dump.layers or ()
        mend = "ids start at 0" if value < 0 else "set --n-experts, or mend the dump"
        raise InputError(
            f"{p}: {dump.where(t)}, layer {layers[layer]}: expert id {value} is outside "
            f"0..{n - 1}; {mend}"
        )


def _ids_order(dump: Dump) -> str:
    """``ranked`` where weights never rise along a row, ``sorted`` where all rows ascend."""
    ids = dump.ids[(dump.ids != -1).all(axis=2)]
    if dump.weights is not None:
        w = dump.weights[(dump.ids != -1).all(axis=2)]
        with np.errstate(invalid="ignore"):
            rises = np.diff(w.astype(np.float32), axis=-1) > 0
        if not rises.any():
            return "ranked"
        dump.notes.append("weights rise along some rows, so ids are not taken to be in rank order")
    if ids.shape[-1] > 1 and len(ids) and (np.diff(ids.astype(np.int32), axis=-1) > 0).all():
        return "sorted"
    return "unknown"


def _trace(dump: Dump, meta: RoutingMeta, p: Path) -> RoutingTrace:
    n, n_layers, k = dump.ids.shape
    step = np.arange(n) if dump.step is None else np.asarray(dump.step)
    phase = np.full(n, DECODE) if dump.phase is None else np.asarray(dump.phase)
    odd = (phase != PREFILL) & (phase != DECODE)
    if odd.any():
        raise InputError(
            f"{p}: {dump.where(int(np.argmax(odd)))}: phase must be prefill (0) or decode (1)"
        )
    for name, column in (("seq", dump.seq), ("pos", dump.pos), ("step", step)):
        if column.min() < 0 or column.max() > np.iinfo(np.int32).max:
            t = int(np.argmin(column)) if column.min() < 0 else int(np.argmax(column))
            raise InputError(f"{p}: {dump.where(t)}: {name} {column[t]} is out of range; mend it")
    _, step = np.unique(step, return_inverse=True)  # numbered from 0 without gaps
    token_of = np.repeat(np.arange(n), n_layers)
    layer_of = np.tile(np.arange(n_layers), n)
    rows: Any = slice(None)
    if len(np.unique(step)) < n or (np.diff(step) < 0).any():
        order = np.lexsort((token_of, layer_of, step[token_of]))
        token_of, layer_of = token_of[order], layer_of[order]
        rows = token_of * n_layers + layer_of
    columns: dict[str, np.ndarray] = {
        "seq": dump.seq.astype(np.int32)[token_of],
        "pos": dump.pos.astype(np.int32)[token_of],
        "step": step.astype(np.int32)[token_of],
        "phase": phase.astype(np.uint8)[token_of],
        "layer": np.asarray(dump.layers, np.int16)[layer_of],
        "experts": np.ascontiguousarray(dump.ids.reshape(-1, k)[rows], np.int16),
    }
    if dump.weights is not None:
        columns["weights"] = dump.weights.reshape(-1, k)[rows].astype(np.float32)
    if dump.token is not None:
        columns["token"] = dump.token.astype(np.int32)[token_of]
    return RoutingTrace(columns, meta)
