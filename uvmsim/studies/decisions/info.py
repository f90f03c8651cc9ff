"""What is in a compiled object."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from uvmsim.bpf.instructions import CALL, JMP, Function, Kernel
from uvmsim.bpf.layout import fields_read
from uvmsim.bpf.names import helper_name, map_type
from uvmsim.bpf.object import Object
from uvmsim.policies.bpf.policy import load
from uvmsim.studies.decisions.parting import resembling


@dataclass(frozen=True)
class Info:
    """One object."""

    path: str
    license: str
    operations: str | None
    programs: list[dict[str, Any]]
    """``name``, ``section``, ``instructions``, ``called`` (by what; None: never)."""
    maps: list[dict[str, Any]]
    variables: list[dict[str, Any]]
    helpers: dict[str, int]
    """Name -> places that call it; kernel functions too."""
    fields: dict[str, bool]
    """Kernel fields that are read -> whether the model has them."""
    resembles: list[dict[str, Any]] = field(default_factory=list)
    """Built-in policies, the nearest first: ``policy``, ``share`` of equal answers."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(vars(self))


def info(path: str, resemblance: bool = True) -> Info:
    """Read an object; with ``resemblance`` run it beside every built-in policy. Raises `InputError`."""
    head, *settings = path.split(":")
    policy = load(head, settings)
    made = policy.object
    called = {n: _called(group) for group, numbers in policy.attached.items() for n in numbers}
    called |= dict.fromkeys(policy.translated.works, "work queue")
    called |= {n: "by others" for n in policy.translated.functions if n not in called}
    programs = [
        {
            "name": f.name, "section": f.section, "called": called.get(f.number),
            "instructions": sum(i.width for i in f.instructions),
        }
        for f in made.functions
    ]  # fmt: skip
    maps = [
        {"name": m.name, "type": map_type(m.type), "key": m.key, "value": m.value, "entries": m.entries}
        for m in made.maps
    ]  # fmt: skip
    variables = [
        {"name": v.name, "section": v.section, "bytes": made.btf.size(v.type)}
        for v in made.variables
    ]
    near = resembling(policy) if resemblance else []
    return Info(
        head, made.license, made.operations, programs, maps, variables, _helpers(made),
        fields_read(made), [{"policy": name, "share": share} for name, share in near],
    )  # fmt: skip


def _called(group: str) -> str:
    return "kprobe" if group.startswith("probe_") else group


def _helpers(made: Object) -> dict[str, int]:
    found: Counter[str] = Counter()
    for f in made.functions:
        for i in f.instructions:
            if i.kind == JMP and i.code == CALL and not isinstance(i.ref, Function):
                found[i.ref.name if isinstance(i.ref, Kernel) else helper_name(i.imm)] += 1
    return dict(sorted(found.items(), key=lambda x: (-x[1], x[0])))
