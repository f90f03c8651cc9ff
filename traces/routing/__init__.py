"""Which experts each token chose: the trace, its checks, its statistics."""

from traces.routing.from_arrays import routing
from traces.routing.trace import RoutingTrace, open_routing
from traces.routing.writer import RoutingWriter

__all__ = ["RoutingTrace", "RoutingWriter", "open_routing", "routing"]
