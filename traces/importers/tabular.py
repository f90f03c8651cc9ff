"""CSV and Parquet dumps, in two layouts.

Wide, one row per (token, layer): columns ``layer``, ``e0`` .. ``ek-1`` and ``seq``, ``pos`` (or
``token``: a running token number); optional ``w0`` .. ``wk-1``, ``step``, ``phase`` (``prefill``,
``decode``, 0 or 1), ``token_id``. Empty ``e`` cells (all of a row) mean: routing missing.

Long, one row per chosen expert: columns ``token`` (or ``seq``, ``pos``), ``layer``, ``expert``,
``rank`` (0 = strongest); optional ``weight``, ``step``, ``phase``, ``token_id``.

A Parquet file exported by uvmsim is opened as the trace that it is, by name, with no import needed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.files.schema import META_KEY, PHASES
from traces.importers.dump import Dump, ImportOptions
from traces.importers.format import Format


def load_csv(path: Path, options: ImportOptions) -> Dump:
    """Read a CSV (or .tsv) dump with a header line."""
    import pyarrow.csv as pacsv

    parse = pacsv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        table = pacsv.read_csv(
            path, parse_options=parse, read_options=pacsv.ReadOptions(use_threads=False)
        )
    except (pa.ArrowException, OSError) as e:
        raise InputError(f"{path}: {_csv_reason(str(e).splitlines()[0])}; mend it") from None
    return _Table(path, table, "line", 2).dump()


def load_parquet(path: Path, options: ImportOptions) -> Dump:
    """Read a Parquet dump."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as e:
        why = str(e).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({why}); copy it again") from None
    if META_KEY in (table.schema.metadata or {}):
        raise InputError(f"{path}: is a uvmsim trace already; use it as it is")
    return _Table(path, table, "row", 0).dump()


def _csv_reason(message: str) -> str:
    """pyarrow's words, with its row numbers (from 1, header included) called lines."""
    message = re.sub(r"Row #(\d+)", r"line \1", message)
    return re.sub(r"^CSV parse error: ", "", message)


class _Table:
    def __init__(self, path: Path, table: pa.Table, place: str, first: int) -> None:
        self.path, self.table, self.place, self.first = path, table, place, first
        try:
            self.names = table.column_names
        except UnicodeDecodeError:
            raise InputError(f"{path}: column names are not UTF-8 text; export it again") from None
        if not table.num_rows:
            raise InputError(f"{path}: a header and no rows; export the dump again")

    def dump(self) -> Dump:
        if len(set(self.names)) < len(self.names):
            twice = next(n for n in self.names if self.names.count(n) > 1)
            raise InputError(f"{self.path}: column {twice!r} occurs twice; rename one")
        if "layer" not in self.names:
            raise self._lacks("layer")
        if "e0" in self.names:
            return self._wide()
        if "expert" in self.names:
            return self._long()
        raise InputError(
            f"{self.path}: neither 'e0' (one row per token and layer) nor 'expert' (one row per "
            f"chosen expert) among its columns {', '.join(self.names[:12])}; rename them"
        )

    def _lacks(self, name: str) -> InputError:
        return InputError(
            f"{self.path}: column {name!r} is missing (it has {', '.join(self.names[:12])}); add it"
        )

    def _row(self, i: int) -> str:
        return f"{self.path}: {self.place} {i + self.first}"

    def _ints(self, name: str, *, empty: int | None = None) -> np.ndarray:
        """A column as int64; empty cells become ``empty``, or an error where that is None."""
        column = self.table.column(name)
        if column.null_count:
            if empty is None:
                i = int(np.argmax(column.is_null().to_numpy()))
                raise InputError(f"{self._row(i)}: {name} is empty; fill it in")
            if pa.types.is_null(column.type):
                return np.full(len(column), empty, np.int64)
            if pa.types.is_integer(column.type):
                column = column.fill_null(empty)
        if pa.types.is_integer(column.type):
            return column.to_numpy().astype(np.int64)
        values = column.to_pylist()
        for i, v in enumerate(values):
            if v is None and empty is not None:
                continue
            if not (isinstance(v, float) and v.is_integer()):
                raise InputError(f"{self._row(i)}: {name} is {v!r}, not a whole number; mend it")
        return np.array([empty if v is None else int(v) for v in values], np.int64)

    def _floats(self, name: str) -> np.ndarray:
        column = self.table.column(name)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            for i, v in enumerate(column.to_pylist()):
                if v is not None and not isinstance(v, (int, float)):
                    raise InputError(f"{self._row(i)}: {name} is {v!r}, not a number; mend it")
            return np.full(len(column), np.nan, np.float32)
        with np.errstate(over="ignore"):  # too large for float32: infinite, and `check` says so
            return column.to_numpy(zero_copy_only=False).astype(np.float32)

    def _phase(self) -> np.ndarray | None:
        if "phase" not in self.names:
            return None
        values = self.table.column("phase").to_pylist()
        known = {"prefill": 0, "decode": 1, 0: 0, 1: 1}
        for i, v in enumerate(values):
            if v not in known:
                raise InputError(f"{self._row(i)}: phase is {v!r}; use {' or '.join(PHASES)}")
        return np.array([known[v] for v in values], np.int64)

    def _tokens(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Token number of each row (in order of first appearance), and the columns of a token."""
        n = self.table.num_rows
        if "pos" in self.names:
            pos = self._ints("pos")
        elif "token" in self.names:
            pos = self._ints("token")
        else:
            raise self._lacks("pos")
        seq = self._ints("seq") if "seq" in self.names else np.zeros(n, np.int64)
        step = self._ints("step") if "step" in self.names else None
        key = [seq, pos] + ([step] if step is not None else [])
        _, first, inverse = np.unique(
            np.stack(key, axis=1), axis=0, return_index=True, return_inverse=True
        )
        order = np.argsort(first, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        at = first[order]
        columns: dict[str, Any] = {"seq": seq[at], "pos": pos[at], "places": at + self.first}
        if step is not None:
            columns["step"] = step[at]
        phase = self._phase()
        if phase is not None:
            columns["phase"] = phase[at]
        if "token_id" in self.names:
            columns["token"] = self._ints("token_id")[at]
        return rank[inverse.reshape(-1)], columns

    def _layers(self) -> tuple[np.ndarray, tuple[int, ...]]:
        layer = self._ints("layer")
        if layer.min() < 0 or layer.max() > 32767:
            i = int(np.argmax((layer < 0) | (layer > 32767)))
            raise InputError(f"{self._row(i)}: layer {layer[i]} is out of range; layers start at 0")
        ids, index = np.unique(layer, return_inverse=True)
        return index.reshape(-1), tuple(int(x) for x in ids)

    def _wide(self) -> Dump:
        k = 0
        while f"e{k}" in self.names:
            k += 1
        stray = [n for n in self.names if re.fullmatch(r"e\d+", n) and int(n[1:]) >= k]
        if stray:
            raise self._lacks(f"e{k}")
        ids = np.stack([self._ints(f"e{i}", empty=-1) for i in range(k)], axis=1)
        ragged = (ids == -1).any(axis=1) & ~(ids == -1).all(axis=1)
        if ragged.any():
            i = int(np.argmax(ragged))
            raise InputError(f"{self._row(i)}: has fewer than {k} expert ids; all or none of them")
        weights = None
        if "w0" in self.names:
            for i in range(k):
                if f"w{i}" not in self.names:
                    raise self._lacks(f"w{i}")
            weights = np.stack([self._floats(f"w{i}") for i in range(k)], axis=1)
        token, columns = self._tokens()
        slot, layers = self._layers()
        self._once(token * len(layers) + slot, "the same token and layer as an earlier one")
        shape = (int(token.max()) + 1, len(layers), k)
        out = np.full(shape, -1, np.int64)
        out[token, slot] = ids
        out_w = None
        if weights is not None:
            out_w = np.full(shape, np.nan, np.float32)
            out_w[token, slot] = weights
        return Dump(out, weights=out_w, layers=layers, place=self.place, **columns)

    def _long(self) -> Dump:
        if "rank" not in self.names:
            raise self._lacks("rank")
        rank, expert = self._ints("rank"), self._ints("expert")
        if rank.min() < 0 or rank.max() > 1024 or expert.min() < 0:
            bad = (rank < 0) | (rank > 1024) | (expert < 0)
            raise InputError(
                f"{self._row(int(np.argmax(bad)))}: rank or expert out of range; mend it"
            )
        token, columns = self._tokens()
        slot, layers = self._layers()
        k = int(rank.max()) + 1
        self._once(
            (token * len(layers) + slot) * k + rank,
            "the same token, layer and rank as an earlier one",
        )
        shape = (int(token.max()) + 1, len(layers), k)
        out = np.full(shape, -1, np.int64)
        out[token, slot, rank] = expert
        ragged = (out == -1).any(axis=2) & ~(out == -1).all(axis=2)
        if ragged.any():
            t, s = (int(x) for x in np.argwhere(ragged)[0])
            got = int((out[t, s] != -1).sum())
            raise InputError(
                f"{self.path}: token {t} (first at {self.place} {columns['places'][t]}), layer "
                f"{layers[s]}: {got} of {k} ranks are there; every row needs ranks 0..{k - 1}"
            )
        out_w = None
        if "weight" in self.names:
            out_w = np.full(shape, np.nan, np.float32)
            out_w[token, slot, rank] = self._floats("weight")
        return Dump(out, weights=out_w, layers=layers, place=self.place, **columns)

    def _once(self, key: np.ndarray, what: str) -> None:
        order = np.argsort(key, kind="stable")
        again = order[1:][np.diff(key[order]) == 0]
        if len(again):
            raise InputError(f"{self._row(int(again.min()))}: {what}; remove one")


FORMATS = (
    Format("csv", load_csv, (".csv", ".tsv")),
    Format("parquet", load_parquet, (".parquet", ".pq")),
)
