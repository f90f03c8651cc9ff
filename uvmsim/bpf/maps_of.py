"""Maps that an object declares in ``.maps``, from its types."""

from __future__ import annotations

from dataclasses import dataclass

from traces.errors import InputError
from uvmsim.bpf import btf as b
from uvmsim.bpf.names import ARRAYS, RINGBUF, SUPPORTED_MAPS, map_type

LARGEST = 1 << 30
"""Bytes of one map."""
LONGEST_KEY = 512


@dataclass(frozen=True)
class MapSpec:
    """A map's shape; sizes in bytes, and the types of key and value where they are told."""

    name: str
    offset: int
    """In ``.maps``."""
    type: int
    key: int
    value: int
    entries: int
    key_type: int | None
    value_type: int | None


def maps_of(btf: b.Btf, places: dict[str, int]) -> list[MapSpec]:
    """All of them. ``places``: where each lies in ``.maps``. Raises `InputError` for a type of map
    that does not run, or a size without end."""
    found = []
    for section in btf.types:
        if section.kind == b.DATASEC and section.name == ".maps":
            for m in section.members:
                variable = btf.type(m.type)
                found.append(_one(btf, variable, places.get(variable.name, -1)))
    return found


def _one(btf: b.Btf, variable: b.Type, offset: int) -> MapSpec:
    where = f"{btf.where}: map {variable.name!r}"
    numbers = {"type": 0, "max_entries": 0, "key_size": 0, "value_size": 0, "map_flags": 0}
    types: dict[str, int] = {}
    for m in btf.type(btf.plain(variable.to)).members:
        pointer = btf.type(btf.plain(m.type))
        if pointer.kind != b.PTR:
            raise InputError(f"{where}: {m.name!r} is no __uint or __type")
        if m.name in numbers:
            numbers[m.name] = btf.type(btf.plain(pointer.to)).count
        elif m.name in ("key", "value"):
            types[m.name] = pointer.to
        elif m.name != "pinning":
            raise InputError(f"{where}: attribute {m.name!r} is not supported")
    kind, n = numbers["type"], numbers["max_entries"]
    if kind not in SUPPORTED_MAPS:
        raise InputError(f"{where}: BPF_MAP_TYPE_{map_type(kind)} is not supported")
    key = btf.size(types["key"]) if "key" in types else numbers["key_size"]
    value = btf.size(types["value"]) if "value" in types else numbers["value_size"]
    if kind == RINGBUF:
        key = value = 0
    elif not key or not value:
        raise InputError(f"{where}: no size of its key or its value")
    if kind in ARRAYS and key != 4:
        raise InputError(f"{where}: keys of an array have 4 bytes, not {key}")
    room = n if kind == RINGBUF else n * (key + value + 16)
    if n < 1 or room > LARGEST or key > LONGEST_KEY:
        raise InputError(
            f"{where}: {n} entries of {key} + {value} bytes; at most {LARGEST >> 20} MiB"
        )
    return MapSpec(variable.name, offset, kind, key, value, n, types.get("key"), types.get("value"))
