"""What built-in policies say they read of the pool is what their hooks, and all these call, name."""

from __future__ import annotations

import pytest

from uvmsim.core.globals_of import global_paths, lookup, plain
from uvmsim.experts.bind import read_by
from uvmsim.policies.base import Eviction
from uvmsim.policies.registry import builtin

HOOKS = ("on_event", "bypasses", "on_access", "on_insert", "on_evict", "victim")
MEANS = {"clock": "clock", "slot_of": "slots", "expert_in": "slots"}


def named(f: object, seen: set[int]) -> set[str]:
    """Attributes and globals in the code of a function and of all it reaches."""
    f = plain(f)
    if not hasattr(f, "__code__") or id(f) in seen:
        return set()
    seen.add(id(f))
    found = set(f.__code__.co_names)
    for path in global_paths(f):
        found |= named(lookup(f, path[0]), seen)
    return found


@pytest.mark.parametrize(
    "name", sorted(n for n, cls in builtin().items() if issubclass(cls, Eviction))
)
def test_a_policy_reads_what_it_says(name):
    cls = builtin()[name]
    used = set().union(*(named(getattr(cls, hook), set()) for hook in HOOKS))
    assert {MEANS[n] for n in used & MEANS.keys()} == set(read_by(cls))


def test_a_derived_class_is_not_held_to_what_its_base_says():
    lru = builtin()["lru"]
    assert read_by(lru) == frozenset()
    assert read_by(type("Mine", (lru,), {})) == {"clock", "slots"}
