"""Running a cell on the machine: the replay engine's session, in the words of a prediction."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from replay.backend import backend as open_backend
from replay.results import replayed, verified
from replay.session import How, Session
from replay.validate.grid import Cell
from replay.validate.predict import COUNTERS

NOT_COUNTED = ("zero-copy", "bytes_h2d")
"""Nothing counts what kernels read across the link, so there is nothing to hold the model against."""


class Runner:
    """An open session, so that cells of one model share its expert bank. Use ``with``."""

    def __init__(self, backend: str):
        self._session = Session(open_backend(backend))
        self._machine: dict[str, Any] = {}

    def __enter__(self) -> Runner:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._session.close()

    def machine(self) -> dict[str, Any]:
        """What ran; empty before the first run."""
        return self._machine

    def run(self, cell: Cell) -> dict[str, Any]:
        """``counters``, ``step_ns`` [S], ``verified``, ``problems``, ``time_split_s``,
        ``host_issue_s``.

        Raises whatever the engine raises, and `RuntimeError` where the model does not fit.
        """
        done = self._session.run(cell.job, cell.mode, How(dtype=cell.dtype))
        self._machine = done.about["machine"]
        options = replayed(done).options
        made = done.to_json()
        return {
            "counters": {k: made[k] for k in COUNTERS if (cell.mode, k) != NOT_COUNTED},
            "step_ns": done.step_ns.tolist(),
            "verified": verified(done),
            "problems": done.problems,
            "options": options,
            "time_split_s": made["time_split_s"],
            "host_issue_s": made["host_issue_s"],
        }
