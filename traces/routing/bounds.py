"""What a routing trace may hold: everything compiled code later uses as an index or a size.

`traces.routing.open_routing` looks at it in files, and `uvmsim.workload.build_workload` once more
in whatever reaches the kernels, which trust it: a wrong index there overwrites memory. What is
possible and yet wrong (an expert named twice, weights that are no numbers) is `traces.routing.check`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.errors import InputError
from traces.files.schema import PHASES, REJECTED, RoutingMeta, guess_width
from traces.routing.columns import GUESSES
from traces.routing.rows import Rows

MAX_EXPERTS = 32767
"""Experts a layer: ids are stored as int16."""
MAX_LAYERS = 32768
"""Transformer blocks: so are their numbers."""
INDICES = ("seq", "pos", "step", "phase", "layer", "experts", "draft")
SEE = "see `uvmsim trace check`"


def check_meta(meta: RoutingMeta, where: object) -> None:
    """Raise `InputError` where the metadata cannot be that of any model.

    ``where`` names the file.
    """
    m = meta.model
    texts = {
        "the model's name": m.name,
        "architecture": m.architecture,
        "the source of its sizes": m.source,
        "quantisation": m.quantisation or "",
        "ids_order": meta.ids_order,
        "tool": meta.tool,
        "command": meta.command,
        "prompt_source": meta.prompt_source,
    }
    tables = {"machine": meta.machine, "extra": meta.extra, "tensors": m.tensors}
    sizes = {
        "output_bytes": m.output_bytes,
        "embedding_bytes": m.embedding_bytes,
        "n_embd": m.n_embd,
        "n_ff_expert": m.n_ff_expert,
        "n_vocab": m.n_vocab,
        "kv_bytes_per_token": m.kv_bytes_per_token,
    }
    for name, value in texts.items():
        if not isinstance(value, str):
            _refuse(where, f"{name} is {_short(value)}, not text")
    for name, table in tables.items():
        if not isinstance(table, dict):
            _refuse(where, f"{name} is {_short(table)}, not a table")
    for name, number, low, high in (
        ("n_experts", m.n_experts, 1, MAX_EXPERTS),
        ("top_k", m.top_k, 1, MAX_EXPERTS),
        ("n_layers", m.n_layers, 0, MAX_LAYERS),
    ):
        if not _is_whole(number) or not low <= number <= high:
            _refuse(where, f"{name} is {_short(number)}; it is a whole number, {low} to {high}")
    if m.top_k > m.n_experts:
        _refuse(where, f"top_k is {m.top_k}, of {m.n_experts} experts")
    for name, size in sizes.items():
        if size is not None and not (_is_whole(size) and size >= 0):
            _refuse(where, f"{name} is {_short(size)}; it is a whole number, 0 or more")
    for name, each in (
        ("moe_layers", m.moe_layers),
        ("expert_bytes", m.expert_bytes or ()),
        ("dense_bytes", m.dense_bytes or ()),
    ):
        wrong = [v for v in each if not _is_whole(v) or v < 0]
        if wrong:
            _refuse(where, f"{name} has {_short(wrong[0])}; it holds whole numbers, 0 or more")


def check_values(t: Rows) -> None:
    """Raise `InputError` at the first row with a value that no trace can have.

    One pass over each column: about a millisecond a million rows.
    """
    where = t.path or "the trace"
    check_meta(t.meta, where)
    _shapes(t, where)
    phases = " or ".join(f"{code} ({name})" for code, name in enumerate(PHASES))
    blocks = t.meta.model.n_layers  # 0 where a writer did not know
    tests: tuple[tuple[str, int, int | None, str], ...] = (
        ("phase", 0, len(PHASES) - 1, f"is not {phases}"),
        ("layer", 0, blocks - 1 if blocks else None, f"is outside 0..{blocks - 1}"),
        ("seq", 0, None, "is negative"),
        ("pos", 0, None, "is negative"),
        ("step", 0, None, "is negative"),
    )
    if t.draft is not None:
        tests += (("draft", 0, REJECTED, "is not 0 (none), 1 (accepted) or 2 (rejected)"),)
    for name, low, high, what in tests:
        column = t.columns[name]
        if _within(column, low, high):
            continue
        row, value = _first(column, low, high)
        why = "is negative" if value < 0 else what
        raise InputError(f"{where}, row {row}: {name} {value} {why}; {SEE}")
    if not _within(t.experts, -1, t.n_experts - 1):
        row, _ = _first(t.experts, -1, t.n_experts - 1)
        ids = t.experts[row].tolist()
        raise InputError(f"{where}, row {row}: expert {ids} is outside 0..{t.n_experts - 1}; {SEE}")
    for name, guess in t.predictions.items():
        if not _within(guess.ids, -1, t.n_experts - 1):
            row, value = _first(guess.ids, -1, t.n_experts - 1)
            raise InputError(
                f"{where}, row {row}: {name}_ids has expert {value}, outside "
                f"0..{t.n_experts - 1}; {SEE}"
            )


def _shapes(t: Rows, where: object) -> None:
    """Columns of a trace made in memory: as many rows each, lists of one width, whole numbers."""
    for name in (n for n in INDICES if n in t.columns):
        if t.columns[name].dtype.kind not in "iu":
            raise InputError(f"{where}: column {name!r} does not hold whole numbers; {SEE}")
    k = t.experts.shape[1:]
    if len(k) != 1:
        raise InputError(f"{where}: experts has shape {t.experts.shape}, not [rows, k]; {SEE}")
    width = {"experts": k, "weights": k, "scores": (t.n_experts,)}
    width |= dict.fromkeys(GUESSES, (guess_width(k[0], t.n_experts),))
    for name, guess in t.predictions.items():
        if guess.ids.dtype.kind not in "iu":
            raise InputError(f"{where}: column '{name}_ids' does not hold whole numbers; {SEE}")
    for name, column in t.columns.items():
        want = (t.n_rows, *width.get(name, ()))
        if column.shape != want:
            raise InputError(
                f"{where}: column {name!r} has shape {column.shape}, not {want}; {SEE}"
            )


def _within(column: np.ndarray, low: int, high: int | None) -> bool:
    if not column.size:
        return True
    return bool(column.min() >= low and (high is None or column.max() <= high))


def _first(column: np.ndarray, low: int, high: int | None) -> tuple[int, int]:
    """The first row out of range, and the value there."""
    bad = column < low
    if high is not None:
        bad |= column > high
    at = int(np.argmax(bad))  # flat
    return at // max(column[0].size, 1), int(column.reshape(-1)[at])


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def _refuse(where: object, what: str) -> None:
    raise InputError(f"{where}: its metadata is impossible: {what}; copy or record it again")
