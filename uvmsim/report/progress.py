"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields a function (done, total, doing) that moves the bar."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("[dim]{task.fields[doing]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as p:
        task = p.add_task(what, total=None, doing="")

        def move(done: int, total: int, doing: str) -> None:
            p.update(task, completed=done, total=total, doing=doing)

        yield move


def wide() -> Console:
    """Standard output; 118 columns where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=118)
