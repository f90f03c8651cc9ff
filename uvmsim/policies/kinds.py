"""What policies decide about: the experts of a pool, or the driver's pages. A mechanism says which
kind is for it; what a user names goes to the kind that knows it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from traces.errors import InputError
from uvmsim.policies.pages.base import PagePolicy
from uvmsim.policies.pages.phases import PREFIX, PhasedPolicy, parse_phased, phased_of
from uvmsim.policies.pages.registry import PagePolicySpec, builtin_pages
from uvmsim.policies.registry import OBJECT, PolicySpec, builtin, parse, spec_of

Spec = PolicySpec | PhasedPolicy
"""A policy with its parameters set, of either kind."""


@dataclass(frozen=True)
class PolicyKind:
    """One kind of policy."""

    noun: str
    """What is decided about: ``expert`` or ``page``."""
    of: Callable[[Any], Spec]
    """From a name, a class or an instance; raises `InputError`."""
    defaults: tuple[str, ...]
    """Compared where nobody names any."""
    plain: str
    """What runs where nobody asks for a policy."""
    pooled: bool
    """Whether the size of an expert pool bears on it."""


EXPERTS = PolicyKind(
    "expert", spec_of, ("lru", "lfu", "layer-lru", "lru+next-layer", "learned", "belady"), "lru", True
)  # fmt: skip
PAGES = PolicyKind(
    "page", phased_of, ("default", "prefetch_always_max", "prefetch_stride", "prefetch_none"),
    "default", False,
)  # fmt: skip


def kind_of(policy: Any) -> PolicyKind:
    """The kind of a policy given by name, class or instance; `InputError` where no kind knows it."""
    if isinstance(policy, str):
        return _kind_named(policy)
    first = policy[0] if type(policy) is tuple and policy else policy
    if isinstance(first, str):
        return _kind_named(first)
    paged = isinstance(first, PagePolicy | PagePolicySpec | PhasedPolicy)
    return (
        PAGES if paged or (isinstance(first, type) and issubclass(first, PagePolicy)) else EXPERTS
    )


def _kind_named(name: str) -> PolicyKind:
    if name.startswith(PREFIX):
        return PAGES
    try:
        parse_phased(name)
    except InputError as pages:
        if any(part.split(":")[0].endswith(OBJECT) for part in name.split("+")):
            raise
        try:
            parse(name)
        except InputError as experts:
            head = name.split("+")[0].split(":")[0]
            near = difflib.get_close_matches(head, [*builtin_pages(), *builtin()], 1)
            better = pages if near and near[0] in builtin_pages() else experts
            raise better from None
        return EXPERTS
    return PAGES
