"""What runs: models, hardware, and the programs on it. Names are loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvmsim.machine.engine import EngineProfile as EngineProfile
    from uvmsim.machine.hardware import Hardware as Hardware
    from uvmsim.machine.model import Model as Model

_HOME = {
    "EngineProfile": "uvmsim.machine.engine",
    "Hardware": "uvmsim.machine.hardware",
    "Model": "uvmsim.machine.model",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
