"""JSON-lines request traces: a request (or a session of them) a line."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.requests.formats import Columns
from traces.requests.rows import MAX_NS, Chunk, cell

MAX_LINE = 8 << 20
"""Bytes of a line: a prompt of a million tokens with all its ids, and no more."""
LINES = 8192
"""Lines a chunk."""


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and what the lines hold; empty lines are stepped over."""
    try:
        with path.open("rb") as f:
            number = 0
            while line := f.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise InputError(
                        f"{path}: row {number} is longer than {MAX_LINE >> 20} MiB; is it JSON lines?"
                    )
                if line.strip():
                    yield number, decoded(path, number, line)
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from None


def decoded(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The object of one line. Whatever JSON can do wrong is one `InputError`."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        value = json.loads(text)
    except UnicodeDecodeError:
        why = "not text in UTF-8"
    except json.JSONDecodeError as e:
        why = f"not valid JSON ({e.msg}, column {e.colno})"
    except ValueError:
        why = "a number of thousands of digits"
    except RecursionError:
        why = "nested too deeply"
    else:
        if isinstance(value, dict):
            return value
        why = "not a JSON object"
    raise InputError(f"{path}: row {number}: {why}; mend or remove the row")


def chunks(path: Path, format: Columns) -> Iterator[Chunk]:
    """The requests of a file, some thousand at a time."""
    source = lines(path)
    while some := _Rows(path, format, islice(source, LINES)).chunk():
        yield some


class _Rows:
    """Values of some lines, as they come; flat arrays at the end."""

    def __init__(
        self, path: Path, format: Columns, source: Iterator[tuple[int, dict[str, Any]]]
    ) -> None:
        self.path, self.format = path, format
        self.rows, self.after, self.held = array("q"), array("q"), array("q")
        self.prompt, self.output = array("d"), array("d")
        self.when = array("q" if format.unit == "ns" else "d")
        self.blocks = array("q")
        for number, d in source:
            if format.parts:
                self._session(number, d)
            else:
                self._request(number, d, self._time(number, d, str(format.arrival)), 0)
                if format.blocks:
                    self._blocks(number, d, format.blocks)

    def chunk(self) -> Chunk | None:
        """None where there were no lines."""
        if not self.rows:
            return None
        return Chunk(
            np.array(self.rows),
            np.array(self.prompt),
            np.array(self.output),
            np.array(self.when),
            np.array(self.after) if self.format.parts else None,
            np.array(self.blocks),
            np.array(self.held) if self.format.blocks else None,
        )

    def _number(self, row: int, d: dict[str, Any], name: str) -> int | float:
        value = d.get(name)
        if value is None:
            raise InputError(f"{self.path}: row {row}: {name} is missing; mend or remove the row")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise cell(self.path, row, name, value, "not a number")
        if isinstance(value, int) and abs(value) > 1 << 63:
            raise cell(self.path, row, name, value, "a number of too many digits")
        return value

    def _time(self, row: int, d: dict[str, Any], name: str) -> int | float:
        value = self._number(row, d, name)
        if self.format.unit != "ns":
            return value
        if not -MAX_NS < value < MAX_NS or value != int(value):
            raise cell(self.path, row, name, value, "not a whole number of ns")
        return int(value)

    def _request(self, row: int, d: dict[str, Any], when: int | float, after: int) -> None:
        prompt = self._number(row, d, self.format.prompt)
        output = self._number(row, d, self.format.output)
        self.rows.append(row)
        self.prompt.append(prompt)
        self.output.append(output)
        self.when.append(when)  # type: ignore[arg-type]
        self.after.append(after)

    def _blocks(self, row: int, d: dict[str, Any], name: str) -> None:
        ids, before = d.get(name), len(self.blocks)
        if not isinstance(ids, list):
            raise cell(self.path, row, name, ids, "not a list of block ids")
        try:
            self.blocks.extend(ids)
        except (TypeError, OverflowError):
            bad = ids[len(self.blocks) - before]
            raise cell(self.path, row, name, bad, "not a block id (a 64-bit integer)") from None
        self.held.append(len(ids))

    def _session(self, row: int, d: dict[str, Any]) -> None:
        """A session's requests: each goes out when the tools before it are done."""
        when, after = self._time(row, d, str(self.format.arrival)), 0
        parts, pause = d.get(str(self.format.parts)), str(self.format.pause)
        if not isinstance(parts, list) or not parts or not all(isinstance(p, dict) for p in parts):
            raise cell(self.path, row, str(self.format.parts), parts, "not a list of requests")
        for i, part in enumerate(parts):
            self._request(row, part, when, after)
            if i + 1 < len(parts) or part.get(pause) is not None:
                took = self._time(row, part, pause)
                if took < 0 or after + took > MAX_NS:
                    raise cell(self.path, row, pause, took, "not a time that passes")
                after += int(took)
