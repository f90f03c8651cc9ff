"""Errors of the library in the command line's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from traces.errors import InputError


class Command(click.Command):
    """A command whose options bear the names of the library's arguments: where an error names an
    argument, the user reads the flag."""

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; an `InputError` names flags."""
        try:
            return super().invoke(ctx)
        except InputError as err:
            flags = {
                p.name: p.opts[-1]
                for p in self.params
                if p.name and isinstance(p, click.Option) and p.opts[-1].startswith("--")
            }
            raise err.with_flags(flags) from err.__cause__


def policy_list(texts: Sequence[str]) -> tuple[str, ...]:
    """``("lru,lfu", "belady")`` as ``("lru", "lfu", "belady")``, doubles dropped; what begins with
    ``phase:`` keeps its comma."""
    names = [p.strip() for t in texts for p in ([t] if t.startswith("phase:") else t.split(","))]
    return tuple(dict.fromkeys(n for n in names if n))
