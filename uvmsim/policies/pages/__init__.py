"""Policies of the paging driver, one file each: what gpu_ext's eBPF programs do.

Policies of your own derive from `PagePolicy` (docs/page-policies.md). Names are loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvmsim.policies.pages.base import BYPASS as BYPASS
    from uvmsim.policies.pages.base import DEFAULT as DEFAULT
    from uvmsim.policies.pages.base import ENTER_LOOP as ENTER_LOOP
    from uvmsim.policies.pages.base import FIRST as FIRST
    from uvmsim.policies.pages.base import MAX_FIRST as MAX_FIRST
    from uvmsim.policies.pages.base import MAX_OUTER as MAX_OUTER
    from uvmsim.policies.pages.base import OUTER as OUTER
    from uvmsim.policies.pages.base import PAGES as PAGES
    from uvmsim.policies.pages.base import PHASE as PHASE
    from uvmsim.policies.pages.base import Driver as Driver
    from uvmsim.policies.pages.base import PageContext as PageContext
    from uvmsim.policies.pages.base import PagePolicy as PagePolicy
    from uvmsim.policies.pages.base import drop_pending as drop_pending
    from uvmsim.policies.pages.base import migrate as migrate
    from uvmsim.policies.pages.base import move_head as move_head
    from uvmsim.policies.pages.base import move_tail as move_tail
    from uvmsim.policies.pages.base import set_region as set_region

_HOME = {
    "BYPASS": "uvmsim.policies.pages.base",
    "DEFAULT": "uvmsim.policies.pages.base",
    "Driver": "uvmsim.policies.pages.base",
    "ENTER_LOOP": "uvmsim.policies.pages.base",
    "FIRST": "uvmsim.policies.pages.base",
    "MAX_FIRST": "uvmsim.policies.pages.base",
    "MAX_OUTER": "uvmsim.policies.pages.base",
    "OUTER": "uvmsim.policies.pages.base",
    "PAGES": "uvmsim.policies.pages.base",
    "PHASE": "uvmsim.policies.pages.base",
    "PageContext": "uvmsim.policies.pages.base",
    "PagePolicy": "uvmsim.policies.pages.base",
    "drop_pending": "uvmsim.policies.pages.base",
    "migrate": "uvmsim.policies.pages.base",
    "move_head": "uvmsim.policies.pages.base",
    "move_tail": "uvmsim.policies.pages.base",
    "set_region": "uvmsim.policies.pages.base",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
