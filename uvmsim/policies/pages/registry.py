"""Names to page policies: every module of this folder, plug-ins, and users' own files.

`parse_pages` reads ``POLICY[:key=value...]``, or two joined by ``+``: one that widens faults and one
that orders evictions. Each may be ``./mine.py:MyPolicy``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traces.errors import InputError
from uvmsim.policies.pages.base import PagePolicy
from uvmsim.policies.registry import Kind, discover, made_of, name_of

PREFETCH_HOOKS = ("page_prefetch", "page_prefetch_iter")
ORDER_HOOKS = ("block_activate", "block_access", "evict_prepare")
WORK_HOOKS = ("after_batch",)
HOOKS = PREFETCH_HOOKS + ORDER_HOOKS + WORK_HOOKS


@dataclass(frozen=True)
class PagePolicySpec:
    """One program, or the prefetch hooks of one and the list hooks of another."""

    name: str
    prefetch: PagePolicy
    """Whose `PREFETCH_HOOKS` are called."""
    order: PagePolicy
    """Whose `ORDER_HOOKS` are called; the same object as ``prefetch`` where it is one program, and
    the two share one state then."""
    files: tuple[str, ...] = ()
    """Users' own files among them."""

    @property
    def migrates(self) -> bool:
        return self.prefetch.migrates or self.order.migrates


@functools.cache
def builtin_pages() -> dict[str, type[PagePolicy]]:
    """All named page policies, found by looking."""
    return discover(
        importlib.import_module("uvmsim.policies.pages"),
        "uvmsim.page_policies",
        PagePolicy,
        ("base", "registry"),
    )


def hooks_of(cls: type[PagePolicy]) -> tuple[str, ...]:
    """Hooks a class has of its own or by inheritance; the others do what the driver does."""
    return tuple(h for h in HOOKS if getattr(cls, h) is not getattr(PagePolicy, h))


def parse_pages(text: str) -> PagePolicySpec:
    """The page policies named by ``text``; raises `InputError` with the nearest name that exists."""
    parts = text.split("+")
    if len(parts) > 2 or not all(parts):
        raise InputError(f"page policy {text!r}: expected POLICY or PREFETCH+EVICTION")
    return _join(text, parts)


def pages_of(policy: Any) -> PagePolicySpec:
    """The page policies meant by a name (as for `parse_pages`), a class, an instance with its
    parameters set, or a pair of these. Raises `InputError`."""
    if isinstance(policy, PagePolicySpec):
        return policy
    if isinstance(policy, str):
        return parse_pages(policy)
    return _join(None, policy if isinstance(policy, tuple) else (policy,))


def _join(name: str | None, parts: Sequence[Any]) -> PagePolicySpec:
    """One policy or two; ``name`` None: made of theirs."""
    kind = Kind("page policy", (PagePolicy,), {PagePolicy: HOOKS}, builtin_pages())
    made = [made_of(part, kind) for part in parts]
    text = "+".join(name_of(p) for p, _ in made) if name is None else name
    if not 1 <= len(parts) <= 2:
        raise InputError(
            f"page policy {text!r}: give one, or one that prefetches and one that evicts"
        )
    files = tuple(file for _, file in made if file)
    first, last = made[0][0], made[-1][0]
    if first is last:
        return PagePolicySpec(text, first, last, files)
    mine, theirs = set(hooks_of(type(first))), set(hooks_of(type(last)))
    both = [
        hook
        for hooks in (PREFETCH_HOOKS, ORDER_HOOKS, WORK_HOOKS)
        for hook in hooks
        if mine & set(hooks) and theirs & set(hooks) and hook in mine | theirs
    ]
    if both:
        raise InputError(
            f"page policy {text!r}: both parts decide in {', '.join(both)}; the driver takes one "
            "program at a time: combine one that prefetches with one that orders evictions"
        )
    prefetch = last if theirs & set(PREFETCH_HOOKS) else first
    order = first if mine & set(ORDER_HOOKS) else last
    return PagePolicySpec(text, prefetch, order, files)
