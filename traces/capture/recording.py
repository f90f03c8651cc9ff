"""A routing trace while it is being recorded."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from traces.routing import RoutingWriter

FLUSH_NS = 5_000_000_000
"""At most this much of a run is lost when it is killed."""


class Recording:
    """Passes rows to a `RoutingWriter` and brings them to disk every few seconds.

    Used as a context manager: a clean end completes the trace, any other leaves its ``.partial``
    file, or nothing where no row was recorded.
    """

    def __init__(self, writer: RoutingWriter) -> None:
        self._writer = writer
        self._flushed = time.monotonic_ns()

    def append(self, **columns: Any) -> None:
        """As `RoutingWriter.append`."""
        self._writer.append(**columns)
        now = time.monotonic_ns()
        if now - self._flushed >= FLUSH_NS:
            self._writer.flush()
            self._flushed = now

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self._writer.close()
        elif self._writer.rows:
            self._writer.abandon()
        else:
            self._writer.discard()
