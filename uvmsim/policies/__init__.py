"""Who stays, who goes, who is fetched early. A module here is found by its presence alone.

Policies of your own derive from `Eviction` or `Prefetch` (docs/policies.md). Names are loaded when
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvmsim.policies.base import NEVER as NEVER
    from uvmsim.policies.base import Context as Context
    from uvmsim.policies.base import Event as Event
    from uvmsim.policies.base import Eviction as Eviction
    from uvmsim.policies.base import Pool as Pool
    from uvmsim.policies.base import Prefetch as Prefetch
    from uvmsim.policies.base import in_use as in_use
    from uvmsim.policies.base import pool_of as pool_of
    from uvmsim.policies.registry import PolicySpec as PolicySpec
    from uvmsim.policies.registry import spec_of as spec_of

_HOME = {
    "Context": "uvmsim.policies.base",
    "Event": "uvmsim.policies.base",
    "Eviction": "uvmsim.policies.base",
    "NEVER": "uvmsim.policies.base",
    "Pool": "uvmsim.policies.base",
    "Prefetch": "uvmsim.policies.base",
    "in_use": "uvmsim.policies.base",
    "pool_of": "uvmsim.policies.base",
    "PolicySpec": "uvmsim.policies.registry",
    "spec_of": "uvmsim.policies.registry",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
