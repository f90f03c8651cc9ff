"""What clients ask of a server: when, how long the prompt, how many tokens out, which prefix."""

from traces.requests.arrivals import Ramp, arrivals, fixed
from traces.requests.open import open_requests
from traces.requests.trace import RequestTrace

__all__ = ["Ramp", "RequestTrace", "arrivals", "fixed", "open_requests"]
