"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(what: str, told: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """Yields a function (done, total, doing) that moves the bar. ``told``: off a terminal, one line
    says at the end what was done last."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("[dim]{task.fields[doing]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as p:
        task = p.add_task(what, total=None, doing="")

        last = ""

        def move(done: int, total: int, doing: str) -> None:
            nonlocal last
            last = f"{what}: {done:,} of {total:,}; {doing}"
            p.update(task, completed=done, total=total, doing=doing[: max(10, console.width - 66)])

        yield move
    if told and last and not console.is_terminal:
        print(last, file=sys.stderr)


def wide() -> Console:
    """Standard output; 118 columns where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=118)
