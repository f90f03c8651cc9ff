"""Types of an object: BTF (the kernel's Documentation/bpf/btf.rst), of any file, also of a broken
one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from traces.errors import InputError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = 9, 10, 11, 12, 13, 14, 15
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 16, 17, 18, 19
NAMED_AGAIN = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})
"""Kinds that are another type under another name."""
DEEPEST = 32
"""Types within types; more is a circle in a broken file."""
SIGNED = 1
"""Bit of an integer's encoding."""


@dataclass(frozen=True)
class Member:
    """A field of a structure."""

    name: str
    type: int
    bit: int
    """Where it begins, in bits from the structure's start."""
    bits: int
    """Of a bit field: its width; else 0."""


@dataclass(frozen=True)
class Type:
    """One type; what its numbers mean depends on ``kind``."""

    name: str
    kind: int
    to: int
    """Size in bytes, or the type it leads to."""
    members: tuple[Member, ...] = ()
    """Of a structure or union; of a data section its variables, offsets in bits."""
    element: int = 0
    """Of an array."""
    count: int = 0
    encoding: int = 0
    """Of an integer."""


@dataclass(frozen=True)
class Place:
    """Where a field lies: bytes from the structure's start, its size; of a bit field its bits."""

    offset: int
    size: int
    bit: int = 0
    bits: int = 0
    type: int = 0


@dataclass
class Btf:
    """All types of an object, by number; 0 is void."""

    types: list[Type]
    strings: bytes
    where: str
    by_name: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, t in enumerate(self.types):
            if t.name:
                self.by_name.setdefault(t.name, []).append(i)

    def type(self, number: int) -> Type:
        """Raises `InputError` for a number that no type has."""
        if not 0 <= number < len(self.types):
            raise InputError(f"{self.where}: BTF names type {number} of {len(self.types)}")
        return self.types[number]

    def text(self, offset: int) -> str:
        """A string of the string section."""
        return _text(self.strings, offset, self.where)

    def plain(self, number: int) -> int:
        """The type without typedefs, const and volatile."""
        for _ in range(DEEPEST):
            t = self.type(number)
            if t.kind not in NAMED_AGAIN:
                return number
            number = t.to
        raise InputError(f"{self.where}: BTF type {number} is named after itself")

    def size(self, number: int) -> int:
        """Bytes of a type."""
        factor = 1
        for _ in range(DEEPEST):
            t = self.type(self.plain(number))
            if t.kind == PTR:
                return 8 * factor
            if t.kind == ARRAY:
                factor *= t.count
                number = t.element
                continue
            if t.kind == VAR:
                number = t.to
                continue
            if t.kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC):
                return t.to * factor
            return 0
        raise InputError(f"{self.where}: BTF type {number} contains itself")

    def signed(self, number: int) -> bool:
        """Whether an integer type has a sign."""
        t = self.type(self.plain(number))
        return t.kind == INT and bool(t.encoding & SIGNED)

    def structure(self, name: str) -> int | None:
        """The structure of a name or of a typedef's; without one, a flavour of it (``name___x``)."""
        flavours = [n for n in sorted(self.by_name) if n.partition("___")[0] == name]
        for wanted in (name, *flavours):
            for number in self.by_name.get(wanted, ()):
                plain = self.plain(number)
                if self.types[plain].kind in (STRUCT, UNION):
                    return plain
        return None

    def place(self, number: int, path: str) -> Place | None:
        """Where ``a.b.c`` lies in a structure; None where it has no such field."""
        at, bits, bit, whole = 0, 0, 0, number
        for name in path.split("."):
            found = next(self._named(number, name, 0), None)
            if found is None:
                return None
            m, base = found
            bit, bits = base + m.bit, m.bits
            at += bit // 8
            number = m.type
        size = self.size(number)
        base = at - bit // 8 if bits else at
        end = base + (bit + bits + 7) // 8 if bits else at + size
        if end > self.size(whole):
            raise InputError(f"{self.where}: BTF puts field {path!r} outside its structure")
        return Place(base, size, bit if bits else 0, bits, number)

    def _named(
        self, number: int, name: str, base: int, depth: int = 0
    ) -> Iterator[tuple[Member, int]]:
        """Members of a name, those of unnamed structures within included."""
        if depth > DEEPEST:
            raise InputError(f"{self.where}: BTF type {number} contains itself")
        for m in self.type(self.plain(number)).members:
            if m.name == name:
                yield m, base
            elif not m.name and self.type(self.plain(m.type)).kind in (STRUCT, UNION):
                yield from self._named(m.type, name, base + m.bit, depth + 1)


def parse(data: bytes, where: str) -> Btf:
    """A ``.BTF`` section; ``where`` begins the message of an error. Raises `InputError`."""
    try:
        return _parse(data, where)
    except (struct.error, IndexError, UnicodeDecodeError, RecursionError) as err:
        raise InputError(
            f"{where}: broken BTF ({err}); compile it with clang -g -target bpf"
        ) from err


def _parse(data: bytes, where: str) -> Btf:
    magic, _, _, header, type_at, type_n, text_at, text_n = struct.unpack_from("<HBBIIIII", data)
    if magic != 0xEB9F:
        raise InputError(f"{where}: no little-endian BTF; compile it with clang -g -target bpf")
    body = data[header + type_at : header + type_at + type_n]
    strings = data[header + text_at : header + text_at + text_n]
    types, at = [Type("void", 0, 0)], 0
    while at < len(body):
        t, at = _one(body, at, strings, where)
        types.append(t)
    return Btf(types, strings, where)


def _one(body: bytes, at: int, strings: bytes, where: str) -> tuple[Type, int]:
    """The type at a place, and where the next one begins."""
    name_at, info, to = struct.unpack_from("<III", body, at)
    kind, n, flag = (info >> 24) & 31, info & 0xFFFF, info >> 31
    name, at = _text(strings, name_at, where), at + 12
    if kind == INT:
        (word,) = struct.unpack_from("<I", body, at)
        return Type(name, kind, to, encoding=word >> 24), at + 4
    if kind == ARRAY:
        element, _, count = struct.unpack_from("<III", body, at)
        return Type(name, kind, 0, element=element, count=count), at + 12
    if kind in (STRUCT, UNION):
        rows = [struct.unpack_from("<III", body, at + 12 * i) for i in range(n)]
        members = tuple(
            Member(_text(strings, s, where), t, o & 0xFFFFFF if flag else o, o >> 24 if flag else 0)
            for s, t, o in rows
        )
        return Type(name, kind, to, members), at + 12 * n
    if kind == DATASEC:
        rows = [struct.unpack_from("<III", body, at + 12 * i) for i in range(n)]
        return Type(name, kind, to, tuple(Member("", t, 8 * o, 0) for t, o, _ in rows)), at + 12 * n
    sizes = {ENUM: 8 * n, FUNC_PROTO: 8 * n, ENUM64: 12 * n, VAR: 4, DECL_TAG: 4}
    simple = (PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG)
    if kind not in sizes and kind not in simple:
        raise InputError(f"{where}: BTF has a type of kind {kind}, which is not known")
    end = at + sizes.get(kind, 0)
    if end > len(body):
        raise InputError(f"{where}: BTF ends within type {name!r}")
    return Type(name, kind, to), end


def _text(strings: bytes, offset: int, where: str) -> str:
    if offset >= len(strings):
        raise InputError(f"{where}: BTF names a string at {offset} of {len(strings)} bytes")
    end = strings.find(b"\0", offset)
    if end < 0:
        raise InputError(f"{where}: BTF has a string without an end")
    return strings[offset:end].decode("utf-8", "replace")
