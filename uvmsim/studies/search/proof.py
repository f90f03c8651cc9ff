"""What was found on a real GPU: replayed, every output, byte and counter checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rich.console import Console

from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.studies.scenario import Scenario


@dataclass(frozen=True)
class Proof:
    """Replays, or why there are none."""

    replays: Any = None
    why_not: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        if self.replays is None:
            return {"status": "not run", "why": self.why_not}
        return {"status": "void" if self.replays.problems else "ok", **self.replays.to_json()}

    def show(self, console: Console | None = None) -> None:
        """The replay's own table, or the line."""
        if self.replays is None:
            (console or Console()).print(f"not proved on a GPU: {self.why_not}", soft_wrap=True)
        else:
            self.replays.show(console)


def prove(s: Scenario, test: RoutingTrace | None, policies: Sequence[str], backend: str) -> Proof:
    """Replay policies on a trace. What replays is a package above this one, found by its name."""
    try:
        replay = import_module("uvmsim").replay
        return Proof(replay(s.with_(trace=test, policies=list(policies)), backend=backend))
    except (InputError, AttributeError) as err:
        return Proof(why_not=" ".join(str(err).split()))
