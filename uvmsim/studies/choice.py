"""Which policies are meant, and for which mechanisms: those that decide about experts or pages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from traces.errors import InputError
from uvmsim.policies.pages.base import PagePolicy
from uvmsim.policies.pages.phases import PREFIX, PhasedPolicy, parse_phased, phased_of
from uvmsim.policies.pages.registry import PagePolicySpec, builtin_pages
from uvmsim.policies.registry import PolicySpec, builtin, parse, spec_of
from uvmsim.studies.resolve import mechanism_of
from uvmsim.studies.scenario import name_of

DEFAULT_POLICIES = ("lru", "lfu", "layer-lru", "lru+next-layer", "belady")
DEFAULT_PAGE_POLICIES = ("default", "prefetch_always_max", "prefetch_stride", "prefetch_none")


def policies_for(
    mechanisms: Sequence[str], policies: Sequence[Any] | None
) -> tuple[list[PolicySpec], list[PhasedPolicy]]:
    """The policies for mechanisms of expert grain and of page grain. What the user names goes to the
    grain that knows it; where nothing is named each grain has its defaults. Raises `InputError`."""
    kinds = [mechanism_of(m) for m in mechanisms]
    takers = {m.grain for m in kinds if m.takes_policy}
    named = DEFAULT_POLICIES if policies is None else policies
    if "page" not in {m.grain for m in kinds}:
        return [spec_of(p) for p in named], []
    if policies is None:
        named = named if "expert" in takers else ()
        return [parse(p) for p in named], [parse_phased(p) for p in DEFAULT_PAGE_POLICIES]
    experts: list[PolicySpec] = []
    pages: list[PhasedPolicy] = []
    for policy in policies:
        if page_grained(policy):
            pages.append(phased_of(policy))
        else:
            experts.append(spec_of(policy))
    for grain, found in (("page", pages), ("expert", experts)):
        if grain in takers and not found:
            lacking = [m for m, kind in zip(mechanisms, kinds, strict=True) if kind.grain == grain]
            raise InputError(
                f"{','.join(map(name_of, policies))}: none of them is for `mechanisms` "
                f"{', '.join(lacking)}; `uvmsim policies` lists those of {grain} grain",
                argument="policies",
            )
    if experts and "expert" not in takers:
        raise InputError(
            f"{experts[0].name}: decides about experts, and `mechanisms` {','.join(mechanisms)} "
            "about pages; add `mechanisms` expert-cache",
            argument="policies",
        )
    return experts, pages


def page_grained(policy: Any) -> bool:
    """Whether a policy is one of pages; `InputError` where neither grain knows its name."""
    if not isinstance(policy, str):
        first = policy[0] if isinstance(policy, tuple) and policy else policy
        if isinstance(first, str):
            return page_grained(first)
        known = isinstance(first, PagePolicy | PagePolicySpec | PhasedPolicy)
        return known or (isinstance(first, type) and issubclass(first, PagePolicy))
    if policy.startswith(PREFIX):
        return True
    try:
        parse_phased(policy)
    except InputError as pages:
        try:
            parse(policy)
        except InputError as experts:
            head = policy.split("+")[0].split(":")[0]
            near = difflib.get_close_matches(head, [*builtin_pages(), *builtin()], 1)
            better = pages if near and near[0] in builtin_pages() else experts
            raise better from None
        return False
    return True
