"""What an object says beside its types: kernel fields it reads (CO-RE), and source lines
(``.BTF.ext``)."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from traces.errors import InputError
from uvmsim.bpf.btf import ARRAY, STRUCT, UNION, Btf

FIELD_OFFSET, LAST_OF_FIELDS = 0, 5
"""Kinds of relocation that are about a field (enum bpf_core_relo_kind)."""


@dataclass(frozen=True)
class Access:
    """One CO-RE relocation."""

    section: str
    instruction: int
    """Number within the section."""
    structure: str
    path: str
    """``va_range.va_space``; empty where it is about the type itself."""
    kind: int
    type: int
    """BTF number of the structure."""


@dataclass
class Notes:
    """Relocations and lines of all sections."""

    accesses: list[Access] = field(default_factory=list)
    lines: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By section: (instruction, line), ascending."""

    def line(self, section: str, instruction: int) -> int | None:
        """Source line of an instruction."""
        rows = self.lines.get(section, [])
        at = bisect_right(rows, (instruction, 1 << 32)) - 1
        return rows[at][1] if at >= 0 else None


def parse(data: bytes, btf: Btf) -> Notes:
    """A ``.BTF.ext`` section. Raises `InputError`."""
    try:
        return _parse(data, btf)
    except (struct.error, ValueError, IndexError) as err:
        raise InputError(f"{btf.where}: broken .BTF.ext ({err})") from err


def _parse(data: bytes, btf: Btf) -> Notes:
    magic, _, _, header = struct.unpack_from("<HBBI", data)
    if magic != 0xEB9F:
        raise InputError(f"{btf.where}: no little-endian .BTF.ext")
    words = struct.unpack_from(f"<{min((header - 8) // 4, 6)}I", data, 8)
    notes = Notes()
    if len(words) >= 4:
        for section, row in _rows(data, header + words[2], words[3], btf):
            at, _, _, place = struct.unpack_from("<IIII", row)
            notes.lines.setdefault(section, []).append((at // 8, place >> 10))
    for rows in notes.lines.values():
        rows.sort()
    if len(words) >= 6:
        for section, row in _rows(data, header + words[4], words[5], btf):
            at, number, text, kind = struct.unpack_from("<IIII", row)
            names = _path(btf, number, btf.text(text)) if kind <= LAST_OF_FIELDS else ""
            name = btf.type(number).name or btf.type(btf.plain(number)).name
            notes.accesses.append(Access(section, at // 8, name, names, kind, number))
    return notes


def _rows(data: bytes, at: int, n: int, btf: Btf) -> Iterator[tuple[str, bytes]]:
    """Records of a sub-section with the name of the section each is about."""
    if n < 4:
        return
    end = at + n
    (size,) = struct.unpack_from("<I", data, at)
    at += 4
    if size < 8:
        raise InputError(f"{btf.where}: .BTF.ext has records of {size} bytes")
    while at < end:
        name, count = struct.unpack_from("<II", data, at)
        at += 8
        if at + size * count > min(end, len(data)):
            raise InputError(f"{btf.where}: .BTF.ext ends within its records")
        section = btf.text(name)
        for _ in range(count):
            yield section, data[at : at + size]
            at += size


def _path(btf: Btf, number: int, text: str) -> str:
    """``0:3:1`` as names of fields; the first number goes over an array of the structure."""
    names = []
    for step in text.split(":")[1:]:
        t = btf.type(btf.plain(number))
        at = int(step)
        if t.kind in (STRUCT, UNION) and at < len(t.members):
            if t.members[at].name:
                names.append(t.members[at].name)
            number = t.members[at].type
        elif t.kind == ARRAY:
            number = t.element
        else:
            raise InputError(f"{btf.where}: a relocation asks for field {at} of {t.name!r}")
    return ".".join(names)
