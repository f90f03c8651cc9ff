"""Traces of real runs: which experts each token chose, which pages faulted.

Names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traces.errors import InputError as InputError
    from traces.faults import FaultTrace as FaultTrace
    from traces.faults import FaultWriter as FaultWriter
    from traces.faults import open_faults as open_faults
    from traces.routing import RoutingTrace as RoutingTrace
    from traces.routing import RoutingWriter as RoutingWriter
    from traces.routing import open_routing as open_routing

_HOME = {
    "FaultTrace": "traces.faults",
    "FaultWriter": "traces.faults",
    "InputError": "traces.errors",
    "RoutingTrace": "traces.routing",
    "RoutingWriter": "traces.routing",
    "open_faults": "traces.faults",
    "open_routing": "traces.routing",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'traces' has no attribute {name!r}")
