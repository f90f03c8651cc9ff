"""Questions over many runs: comparisons, sweeps, curves, benchmarks. Loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvmsim.studies.answer import Answer as Answer
    from uvmsim.studies.scenario import Scenario as Scenario

_HOME = {
    "Answer": "uvmsim.studies.answer",
    "Scenario": "uvmsim.studies.scenario",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
