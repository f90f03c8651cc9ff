"""Which policies are meant, and for which mechanisms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from traces.errors import InputError
from uvmsim.mechanisms import mechanism
from uvmsim.policies.kinds import EXPERTS, PolicyKind, Spec, kind_of
from uvmsim.studies.scenario import name_of

Chosen = Mapping[str, list[Spec]]
"""Policies by the noun of their kind."""


def policies_for(mechanisms: Sequence[str], policies: Sequence[Any] | None) -> Chosen:
    """What the user names goes to the kind that knows it; where nothing is named each kind that a
    mechanism takes has its defaults. Raises `InputError` where a policy is for none of the mechanisms,
    or a mechanism gets none."""
    takes = {m: mechanism(m).decides for m in mechanisms}
    kinds: dict[str, PolicyKind] = {kind.noun: kind for kind in takes.values() if kind}
    if policies is None:
        # A name that can mean nothing is refused even where no policy is taken.
        return {k.noun: [k.of(p) for p in k.defaults] for k in kinds.values() or (EXPERTS,)}
    if not kinds.keys() - {EXPERTS.noun}:
        return {EXPERTS.noun: [EXPERTS.of(p) for p in policies]}
    chosen: dict[str, list[Spec]] = {}
    for policy in policies:
        kind = kind_of(policy)
        chosen.setdefault(kind.noun, []).append(kind.of(policy))
    for noun in kinds:
        if noun not in chosen:
            lacking = [m for m, kind in takes.items() if kind and kind.noun == noun]
            raise InputError(
                f"{','.join(map(name_of, policies))}: none of them is for `mechanisms` "
                f"{', '.join(lacking)}; `uvmsim policies` lists those of {noun} grain",
                argument="policies",
            )
    idle = [p for noun, found in chosen.items() if noun not in kinds for p in found]
    if idle:
        raise InputError(
            f"{idle[0].name}: decides about experts, and `mechanisms` {','.join(mechanisms)} "
            "about pages; add `mechanisms` expert-cache",
            argument="policies",
        )
    return chosen
