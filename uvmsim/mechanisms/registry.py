"""Names to mechanisms: every module of this folder, found by looking, not by a list."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

from traces.errors import InputError

if TYPE_CHECKING:
    from uvmsim.mechanisms.base import Mechanism, Planned


@functools.cache
def mechanisms() -> dict[str, type[Mechanism]]:
    """All mechanisms by name."""
    from uvmsim.mechanisms.base import Mechanism

    found: dict[str, type[Mechanism]] = {}
    folder = importlib.import_module("uvmsim.mechanisms")
    for info in pkgutil.iter_modules(folder.__path__):
        for cls in vars(importlib.import_module(f"{folder.__name__}.{info.name}")).values():
            if not (isinstance(cls, type) and issubclass(cls, Mechanism) and cls.name):
                continue
            if found.setdefault(cls.name, cls) is not cls:
                both = f"{found[cls.name]}, {cls}"
                raise RuntimeError(f"two mechanisms are called {cls.name!r}: {both}")
    return dict(sorted(found.items()))


def mechanism(name: str) -> Mechanism:
    """A new mechanism of that name; raises `InputError` with the nearest one that exists."""
    known = mechanisms()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"{name}: not known{hint} (there are: {', '.join(known)})", argument="mechanisms"
        )
    return known[name]()


def planned(name: str) -> Planned:
    """A new mechanism of that name that writes a plan; raises `InputError` for one that does not."""
    from uvmsim.mechanisms.base import Planned

    found = mechanism(name)
    if not isinstance(found, Planned):
        raise InputError(f"{name}: writes no plan of copies; simulate() runs it", "mechanisms")
    return found
