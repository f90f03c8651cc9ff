"""JSONL dumps: one token a line.

``{"tok": 0, "layers": [[ids of layer 0], [ids of layer 1], ...]}``; optional keys: ``gen`` or
``seq`` (sequence), ``pos`` in place of ``tok``, ``phase`` (``decode``, or ``prefill``: consecutive
prefill lines of one sequence make one step), ``step``, ``weights`` (shaped as ``layers``). A layer
given as ``null`` is missing. Lines of a union (``"phase": "prefill_union"``) say which experts a
whole prompt used, not which token used them: they are left out, with a note.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.files.schema import DECODE, PHASES, PREFILL
from traces.importers.dump import Dump, ImportOptions
from traces.importers.format import Format


def load(path: Path, options: ImportOptions) -> Dump:
    """Read a JSONL dump, line by line; every message names the line."""
    reader = _Reader(path)
    try:
        with path.open(encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    reader.line(number, line)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; is it really JSONL?") from None
    return reader.dump()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.n_layers, self.k, self.unions = path, 0, 0, 0
        self.ids: list[list[list[int]]] = []
        self.weights: list[Any] = []
        self.rows: list[tuple[int, int, int, int, int]] = []  # line, seq, pos, phase, step
        self.has_step: bool | None = None
        self.next_pos: dict[int, int] = {}

    def line(self, number: int, text: str) -> None:
        where = f"{self.path}: line {number}"
        try:
            d = json.loads(text)
        except json.JSONDecodeError as e:
            raise InputError(
                f"{where}: not valid JSON ({e.msg}, column {e.colno}); mend it"
            ) from None
        if not isinstance(d, dict) or not isinstance(d.get("layers"), list) or not d["layers"]:
            raise InputError(
                f'{where}: no "layers" list; each line is {{"tok": n, "layers": [[ids]]}}'
            )
        name = d.get("phase", "decode")
        if isinstance(name, str) and "union" in name:
            self.unions += 1
            return
        if name not in PHASES:
            raise InputError(f"{where}: phase {name!r} is unknown; use prefill or decode")
        seq = _number(where, d, ("seq", "gen"), 0)
        pos = _number(where, d, ("pos", "tok"), self.next_pos.get(seq, 0))
        self.next_pos[seq] = pos + 1
        step = _number(where, d, ("step",), -1)
        if self.has_step is None:
            self.has_step = step >= 0
        elif self.has_step != (step >= 0):
            raise InputError(f'{where}: "step" must be on every line or on none; mend it')
        self.ids.append(self._layers(where, d["layers"]))
        self._weights(where, d)
        self.rows.append((number, seq, pos, PHASES.index(name), step))

    def _layers(self, where: str, layers: list[Any]) -> list[list[int]]:
        if not self.n_layers:
            self.n_layers = len(layers)
        if len(layers) != self.n_layers:
            raise InputError(
                f"{where}: {len(layers)} layers where the first token has {self.n_layers}; mend it"
            )
        out: list[list[int]] = []
        for i, row in enumerate(layers):
            if row is None:
                out.append([])
                continue
            if not isinstance(row, list) or not row:
                raise InputError(f"{where}: layer {i} is not a list of expert ids; mend it")
            if not self.k:
                self.k = len(row)
            if len(row) != self.k:
                raise InputError(
                    f"{where}: layer {i} has {len(row)} ids where others have {self.k}; "
                    "rows must be of one length"
                )
            for x in row:
                if type(x) is not int:
                    raise InputError(f"{where}: layer {i}: id {x!r} is not an integer; mend it")
                if not 0 <= x < 1 << 31:
                    raise InputError(f"{where}: layer {i}: id {x} is out of range; ids start at 0")
            out.append(row)
        return out

    def _weights(self, where: str, d: dict[str, Any]) -> None:
        w = d.get("weights", d.get("probs"))
        if self.weights and (w is None) != (self.weights[-1] is None):
            raise InputError(f'{where}: "weights" must be on every line or on none; mend it')
        if w is not None:
            try:
                shape = [len(r) if r is not None else 0 for r in w]
                w = [[float(x) for x in r] if r is not None else [] for r in w]
            except (TypeError, ValueError):
                raise InputError(f"{where}: weights are not lists of numbers; mend them") from None
            if shape != [len(r) for r in self.ids[-1]]:
                raise InputError(f"{where}: weights are not shaped as layers; mend them")
        self.weights.append(w)

    def dump(self) -> Dump:
        if not self.ids or not self.k:
            raise InputError(f"{self.path}: no token with expert ids in it; export the dump again")
        gap = [-1] * self.k
        ids = np.array([[row or gap for row in token] for token in self.ids], np.int64)
        weights = None
        if self.weights[0] is not None:
            hole = [float("nan")] * self.k
            weights = np.array([[r or hole for r in token] for token in self.weights], np.float32)
        number, seq, pos, phase, step = np.array(self.rows, np.int64).T
        notes = []
        if self.unions:
            notes.append(
                f"{self.unions} union lines left out: they do not say which token used an expert"
            )
        if not self.has_step:
            # A prompt's lines, one after the other, went through the model together.
            together = (phase[1:] == PREFILL) & (phase[:-1] == PREFILL) & (seq[1:] == seq[:-1])
            step = np.concatenate(([0], np.cumsum(~together)))
            if together.any():
                notes.append(
                    "no step numbers: the prefill lines of a sequence are taken as one step"
                )
        if (phase == DECODE).all():
            notes.append("decode only: one step a token")
        return Dump(ids, seq, pos, weights, phase, step, notes=notes, place="line", places=number)


def _number(where: str, d: dict[str, Any], keys: tuple[str, ...], default: int) -> int:
    for key in keys:
        if key in d:
            if type(d[key]) is not int or d[key] < 0:
                raise InputError(f"{where}: {key} {d[key]!r} is not a whole number from 0; mend it")
            return int(d[key])
    return default


FORMATS = (Format("jsonl", load, (".jsonl", ".ndjson", ".json")),)
