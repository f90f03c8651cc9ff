"""What every study gives back: outcomes to look through, as a table, as data."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from traces.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console


NESTED = ("token_latency_ms", "prefetch", "time_split_s")
"""Keys of a run that hold an object, or nothing."""


class Answer:
    """The answer to a study: a sequence of outcomes, in the order they were run.

    Iterate, take ``len``, index. `table` and `to_pandas` give one row an outcome, `show` prints what
    the command line prints, and a notebook shows that too.
    """

    @property
    def outcomes(self) -> Sequence[Any]:
        """One a run."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """One flat row an outcome; units are in the names: ``time_s``, ``bytes_h2d``,
        ``token_latency_ms_p50``."""
        raise NotImplementedError

    printer: ClassVar[str] = ""
    """``module:function`` that prints an answer to a console: studies do not know the reports."""

    def print_to(self, console: Console | None) -> None:
        """Print the tables that the command line prints."""
        module, _, function = self.printer.partition(":")
        getattr(import_module(module), function)(self, console)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, index: Any) -> Any:
        return self.outcomes[index]

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        n = len(self)
        return f"<{type(self).__name__}: {n} outcome{'' if n == 1 else 's'}; .show(), .table()>"

    def table(self) -> pa.Table:
        """An Arrow table of `rows`; what a row lacks is null."""
        return table_of(self.rows())

    def to_pandas(self) -> Any:
        """`table` as a pandas data frame. Raises `InputError` where pandas is not installed."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise InputError("to_pandas needs pandas; pip install pandas") from None
        return self.table().to_pandas()

    def show(self, console: Console | None = None) -> None:
        """Print the tables to ``console`` (a `rich.console.Console`; standard output)."""
        self.print_to(console)

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(record=True, width=118, file=io.StringIO(), force_jupyter=False)
        self.print_to(console)
        look = "font-family:monospace;line-height:1.3"
        return console.export_html(
            inline_styles=True, code_format=f'<pre style="{look}">{{code}}</pre>'
        )


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as columns, in the order in which they first occur."""
    import pyarrow as pa

    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """A run's JSON as one flat row: nested names joined by ``_``, notes to one text."""
    row: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, dict):
            row |= {f"{key}_{k}": v for k, v in flat(value).items()}
        elif key in ("notes", "problems"):
            row[key] = "; ".join(value) or None
        elif value is None and key in NESTED:
            continue  # its parts are null
        else:
            row[key] = value
    return row
