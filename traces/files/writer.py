"""What every writer of traces does: gather rows, bring them to disk, end well or badly."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from traces.files.ipc import IpcWriter


class TraceWriter:
    """Base of the writers of `traces.routing` and `traces.faults`; used as a context manager.

    Rows gather in memory and go to ``PATH.partial`` a batch at a time, or at `flush`; a clean end
    of the ``with`` block marks the trace complete and renames it to ``PATH``. After an exception,
    or a kill, ``PATH.partial`` stays and can be opened.

    A subclass sets ``_out``, counts the rows that `flush` has not seen yet in ``_used``, and says
    how they are written.
    """

    _out: IpcWriter
    _used: int = 0
    append: Callable[..., None]
    """Append rows, given as columns; each writer says which."""

    def _write_gathered(self, n: int) -> None:
        """Hand the ``n`` gathered rows to ``_out`` and forget them."""
        raise NotImplementedError

    @property
    def rows(self) -> int:
        """Rows appended so far."""
        return self._out.rows + self._used

    def flush(self) -> None:
        """Bring what was appended so far to disk."""
        n, self._used = self._used, 0
        if n:
            self._write_gathered(n)

    def close(self) -> None:
        """Mark the trace complete and give it its name."""
        self.flush()
        self._out.close()

    def abandon(self) -> None:
        """Stop: keep what was appended in ``PATH.partial``, incomplete."""
        self.flush()
        self._out.abandon()

    def discard(self) -> None:
        """Stop and leave nothing behind."""
        self._used = 0
        self._out.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()
