"""Tables that fit the terminal without cutting a number.

Rich shortens whatever does not fit, numbers too: ``42…``. Here heads are broken into lines first,
then long names fold, then columns leave, the least important first, and what left is said. A pipe
has no width: there the table is as wide as it must be.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

NAME = 20
"""A name folds to no less than this before columns leave."""
ENDLESS = 100_000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal acts on."""


@dataclass(frozen=True)
class Column:
    """A head and how its cells stand."""

    head: str
    justify: Literal["left", "right"] = "right"
    leaves: int = 0
    """Columns with the highest number leave first; 0 stays."""
    name: bool = False
    """Cells are names, which may fold."""


@dataclass(frozen=True)
class Row:
    """Cells, as many as columns."""

    cells: Sequence[str | Text]
    style: str = ""


def show(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    break_heads: bool = True,
    **look: Any,
) -> list[str]:
    """Print a table and return the heads that left; ``look`` is for `rich.table.Table`."""
    chosen = list(range(len(columns)))
    looks: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False} | look

    def table(broken: bool, fold: bool) -> Table:
        made = Table(**looks)
        for i in chosen:
            _add(made, columns[i], [row.cells[i] for row in rows], broken, fold)
        for row in rows:
            made.add_row(*(_plain(row.cells[i]) for i in chosen), style=row.style)
        return made

    plain = table(False, False)
    room = console.width if console.is_terminal else max(console.width, _width(console, plain))
    if _width(console, plain) <= room:
        _print(console, plain, room)
        return []
    order = sorted((c.leaves, -i) for i, c in enumerate(columns) if c.leaves)
    left = []
    while order and _width(console, table(break_heads, True)) > room:
        _, at = order.pop()
        chosen.remove(-at)
        left.append(columns[-at].head)
    folded = table(break_heads, True)
    least = _width(console, folded)
    if least > room:
        _print(console, folded, least)
    else:
        named = table(break_heads, False)
        _print(console, named, min(room, _width(console, named)))
    if left:
        what = ", ".join(sorted(left, key=[c.head for c in columns].index))
        console.print(Text(f"  too narrow for: {what}; --json has them", style="dim"))
    return left


def width(console: Console, columns: Sequence[Column], rows: Sequence[Row], **look: Any) -> int:
    """Characters that a table takes where nothing is broken, folded or left out."""
    looks: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False} | look
    made = Table(**looks)
    for i, column in enumerate(columns):
        _add(made, column, [row.cells[i] for row in rows], False, False)
    for row in rows:
        made.add_row(*map(_plain, row.cells))
    return _width(console, made)


def _plain(cell: str | Text) -> Text:
    """What a file or a user named is no markup (``[red]``) and moves no cursor."""
    return cell if isinstance(cell, Text) else Text(CONTROL.sub("\N{REPLACEMENT CHARACTER}", cell))


def _add(
    made: Table, column: Column, cells: Sequence[str | Text], broken: bool, fold: bool
) -> None:
    longest = max((cell_len(line) for c in cells for line in str(c).split("\n")), default=0)
    head = column.head
    if broken and cell_len(head) > longest:
        words = re.sub("/(?=chunk|lost)", "/ ", head).split()
        most = max(longest, *map(len, words))
        head = textwrap.fill(" ".join(words), most, break_long_words=False)
    made.add_column(
        Text(head), justify=column.justify, no_wrap=not column.name, overflow="fold",
        min_width=min(longest, NAME) if column.name else None,
        max_width=NAME if fold and column.name else None,
    )  # fmt: skip


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=ENDLESS), table).maximum


def _print(console: Console, table: Table, at: int) -> None:
    """The table in ``at`` characters, whatever the console's width."""
    if at > console.width:
        table.width = at
    console.print(table, crop=False)
