"""``NAME=VALUE`` of an object: a global variable, or what a map holds when a run begins.

Forms: ``threshold=3`` (a variable in .rodata, .data or .bss, or element 0 of a map), ``values[2]=7``
(an element of an array, the entry of a hash under the key 2, an element of a variable that is an
array), ``config.high=40`` and ``config[1].high=40`` (a field). Values are whole numbers, 0x for
hexadecimal.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from uvmsim.bpf import btf as b
from uvmsim.bpf.entries import entry
from uvmsim.bpf.names import ARRAYS, HASHES, RINGBUF
from uvmsim.bpf.object import Object
from uvmsim.bpf.room import plan_of
from uvmsim.bpf.state import SEGMENT, START, STRIDE, VALUE_AT, State

FORM = re.compile(r"(\w+)(?:\[(\w+)\])?((?:\.\w+)*)=(-?\w+)")


@dataclass(frozen=True)
class Setting:
    """One, checked against the object."""

    variable: int | None
    """Which variable; None: a map."""
    map: int
    """Which map; -1: a variable."""
    key: int
    offset: int
    """Bytes into the variable's section, or into the map's value."""
    data: bytes


def parse(made: Object, text: str) -> Setting:
    """Raises `InputError`, which names what there is."""
    match = FORM.fullmatch(text)
    where = f"{made.path}: {text!r}"
    if not match:
        raise InputError(f"{where}: expected NAME=NUMBER, NAME[KEY]=NUMBER or NAME.FIELD=NUMBER")
    name, key, path, value = match[1], match[2], match[3][1:], match[4]
    number = _number(where, value)
    index = _number(where, key) if key is not None else None
    for i, v in enumerate(made.variables):
        if v.name == name:
            at, t = _inside(made.btf, where, v.type, index, path)
            return Setting(i, -1, 0, v.offset + at, _bytes(made.btf, where, t, number))
    for i, m in enumerate(made.maps):
        if m.name == name:
            if m.type == RINGBUF:
                raise InputError(f"{where}: a ring buffer has no values")
            if m.type in ARRAYS and not 0 <= (index or 0) < m.entries:
                raise InputError(f"{where}: {name} has elements 0 to {m.entries - 1}")
            if m.value_type is None:
                at, data = 0, _whole(where, number, m.value, number < 0)
            else:
                at, t = _inside(made.btf, where, m.value_type, None, path)
                data = _bytes(made.btf, where, t, number)
            return Setting(None, i, index or 0, at, data)
    known = [v.name for v in made.variables] + [m.name for m in made.maps if m.type != RINGBUF]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"{where}: no variable or map {name!r}{hint} (it has: {', '.join(known) or 'none'})"
    )


def _number(where: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise InputError(f"{where}: {text!r} is not a whole number") from None


def _inside(btf: b.Btf, where: str, number: int, index: int | None, path: str) -> tuple[int, int]:
    """Bytes to an element and a field, and the type found there."""
    at, number = 0, btf.plain(number)
    t = btf.type(number)
    if t.kind == b.ARRAY:
        if not 0 <= (index or 0) < t.count:
            raise InputError(f"{where}: it has elements 0 to {t.count - 1}")
        at, number = (index or 0) * btf.size(t.element), btf.plain(t.element)
    elif index:
        raise InputError(f"{where}: not an array")
    if path:
        place = btf.place(number, path)
        if place is None or place.bits:
            raise InputError(f"{where}: no field {path!r} that is a number")
        at, number = at + place.offset, btf.plain(place.type)
    return at, number


def _bytes(btf: b.Btf, where: str, number: int, value: int) -> bytes:
    t = btf.type(btf.plain(number))
    if t.kind not in (b.INT, b.ENUM, b.ENUM64):
        fields = ", ".join(m.name for m in t.members if m.name)
        hint = f"; name a field: {fields}" if fields else ""
        raise InputError(f"{where}: not a number{hint}")
    return _whole(where, value, t.to, btf.signed(number) or value < 0)


def _whole(where: str, value: int, size: int, signed: bool) -> bytes:
    try:
        return value.to_bytes(size, "little", signed=signed)
    except OverflowError:
        raise InputError(f"{where}: {value} does not fit into {size} bytes") from None


def apply(made: Object, s: State, setting: Setting) -> None:
    """Put it into a state at rest."""
    n = len(setting.data)
    data = np.frombuffer(setting.data, np.uint8)
    if setting.variable is not None:
        section = made.variables[setting.variable].section
        start = s.seg[plan_of(made).data[section], START] + setting.offset
        s.mem[start : start + n] = data
        return
    m = made.maps[setting.map]
    row = s.maps[setting.map]
    element = setting.key
    if m.type in HASHES:
        element = _entry(made, s, setting)
    start = s.seg[row[SEGMENT], START] + element * row[STRIDE] + row[VALUE_AT] + setting.offset
    s.mem[start : start + n] = data


def _entry(made: Object, s: State, setting: Setting) -> int:
    """The entry of a hash under a whole number, made if need be."""
    m = made.maps[setting.map]
    where = f"{made.path}: map {m.name!r}"
    i = entry(s, setting.map, _whole(where, setting.key, m.key, setting.key < 0))
    if i < 0:
        raise InputError(f"{where}: more settings than its {m.entries} entries")
    return i
