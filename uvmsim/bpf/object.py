"""An eBPF object: its functions, hooks, maps and data, with what refers to what resolved (libbpf.c)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from traces.errors import InputError
from uvmsim.bpf import btf as b
from uvmsim.bpf import btf_ext, elf
from uvmsim.bpf.instructions import (
    LDX,
    ST,
    STX,
    WIDE,
    Data,
    Function,
    Instruction,
    Kernel,
    Map,
    decode,
)
from uvmsim.bpf.maps_of import MapSpec, maps_of

STRUCT_OPS = (".struct_ops", ".struct_ops.link")
DATA = (".rodata", ".data", ".bss")


@dataclass(frozen=True)
class Code:
    """A function."""

    number: int
    name: str
    section: str
    start: int
    """Bytes from the section's start."""
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Variable:
    """A global variable of a data section."""

    name: str
    section: str
    offset: int
    type: int


@dataclass
class Object:
    """What was compiled. ``path`` is what the user called it."""

    path: str
    digest: str
    """Of the file's bytes."""
    btf: b.Btf
    notes: btf_ext.Notes
    functions: list[Code]
    maps: list[MapSpec]
    data: dict[str, bytes]
    """Data sections by name."""
    variables: list[Variable]
    hooks: dict[str, int] = field(default_factory=dict)
    """Member of the structure of operations -> function."""
    operations: str | None = None
    """Type of that structure: ``gpu_mem_ops``."""
    license: str = ""

    def attached(self, kind: str) -> list[Code]:
        """Functions of sections ``kind/...``."""
        return [f for f in self.functions if f.section.partition("/")[0] == kind]

    def place(self, function: Code, at: int) -> str:
        """``x.bpf.o: on_fault, instruction 7 (line 31)``."""
        line = self.notes.line(function.section, function.start // 8 + at)
        told = f" (source line {line})" if line else ""
        return f"{self.path}: {function.name}, instruction {at}{told}"


def load(path: str | Path) -> Object:
    """Read an object. Raises `InputError`, one line."""
    try:
        return _load(path)
    except (ArithmeticError, LookupError, ValueError, RecursionError, struct.error) as err:
        # A file that contradicts itself in a way that nothing above has looked for.
        raise InputError(f"{path}: broken object ({type(err).__name__}: {err})") from err


def _load(path: str | Path) -> Object:
    name = str(path)
    file = elf.read(path)
    sections = file.sections
    if ".BTF" not in sections:
        raise InputError(f"{name}: no BTF; compile it with clang -g -O2 -target bpf")
    btf = b.parse(sections[".BTF"].data, name)
    notes = (
        btf_ext.parse(sections[".BTF.ext"].data, btf) if ".BTF.ext" in sections else btf_ext.Notes()
    )
    if "maps" in sections and sections["maps"].data:
        raise InputError(f'{name}: maps of libbpf before 1.0; declare them in SEC(".maps")')
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    data = {
        s.name: s.data
        for s in sections.values()
        if s.allocated and s.name.startswith(DATA) and s.data
    }
    # Offsets in the types of data sections are for libbpf to fill in, from the symbols.
    places = {(s.section, s.name): s.value for s in file.symbols if s.name}
    variables = _variables(btf, data, places)
    maps = maps_of(btf, {name: at for (section, name), at in places.items() if section == ".maps"})
    made = Object(name, digest, btf, notes, [], maps, data, variables)
    made.license = sections["license"].data.split(b"\0")[0].decode("ascii", "replace") if (
        "license" in sections
    ) else ""  # fmt: skip
    _functions(made, file)
    _hooks(made, file)
    return made


def _variables(
    btf: b.Btf, data: dict[str, bytes], places: dict[tuple[str | None, str], int]
) -> list[Variable]:
    found = []
    for t in btf.types:
        if t.kind == b.DATASEC and t.name in data:
            for m in t.members:
                v = btf.type(m.type)
                at = places.get((t.name, v.name))
                if at is not None and at + btf.size(v.to) <= len(data[t.name]):
                    found.append(Variable(v.name, t.name, at, v.to))
    return found


def _functions(made: Object, file: elf.Elf) -> None:
    """Every function, its references resolved."""
    symbols = [
        s for s in file.symbols
        if s.is_function and s.section in file.sections and file.sections[s.section].executable
    ]  # fmt: skip
    at = {(s.section, s.value // 8): i for i, s in enumerate(symbols)}
    todo: list[Callable[[], Code]] = []
    for i, s in enumerate(symbols):
        section = file.sections[s.section or ""]
        code = section.data[s.value : s.value + s.size]
        if len(code) != s.size or s.value % 8:
            raise InputError(f"{made.path}: function {s.name} runs past its section")
        found = _Resolver(made, at, section, s.value // 8)
        todo.append(partial(_code, made, i, s, section.name, code, found))
    for make in todo:
        made.functions.append(relocated(made, make()))


def _code(made: Object, i: int, s: elf.Symbol, section: str, code: bytes, found: _Resolver) -> Code:
    where = Code(i, s.name, section, s.value, ())
    found.where = lambda at: made.place(where, at)
    return Code(i, s.name, section, s.value, decode(code, found.where, found))


def relocated(made: Object, code: Code) -> Code:
    """A function whose reads of flavours (``uvm_va_block_struct___v2``) go to where the structure
    itself has the field: structures are laid out once. Raises `InputError` where it has none."""
    moved: dict[int, int] = {}
    for a in made.notes.accesses:
        at = a.instruction - code.start // 8
        if a.section != code.section or a.kind != btf_ext.FIELD_OFFSET or "___" not in a.structure:
            continue
        name = a.structure.partition("___")[0]
        number = made.btf.structure(name)
        place = made.btf.place(number, a.path) if number is not None and a.path else None
        if place is None:
            raise InputError(f"{made.place(code, at)}: struct {name} has no field {a.path!r}")
        moved[at] = place.offset
    if not moved:
        return code
    told = tuple(_moved(i, moved[i.at]) if i.at in moved else i for i in code.instructions)
    return replace(code, instructions=told)


def _moved(i: Instruction, offset: int) -> Instruction:
    """An instruction with another field's offset: in a load or store its own, else its constant."""
    accesses = i.kind in (LDX, ST, STX)
    return replace(i, off=offset) if accesses else replace(i, imm=offset)


class _Resolver:
    """What the relocations of a function's section say."""

    def __init__(
        self, made: Object, at: dict[tuple[str | None, int], int], section: elf.Section, start: int
    ):
        self._made, self._at, self._section, self._start = made, at, section, start
        self.where: Callable[[int], str] = str

    def __call__(self, at: int, op: int, src: int, imm: int) -> Any:
        symbol = self._section.relocations.get(8 * (self._start + at))
        if op == WIDE:
            return self._constant(at, symbol, imm) if symbol else None
        if src == 0 and symbol is None:
            return None  # a helper
        if symbol is not None and symbol.section is None:
            return Kernel(symbol.name)
        if src != 1:
            raise InputError(f"{self.where(at)}: calls a kernel function without its name")
        key: tuple[str | None, int]
        if symbol is None:
            key = (self._section.name, self._start + at + 1 + imm)
        else:
            key = (symbol.section, symbol.value // 8 + imm + 1)
        return self._function(at, key)

    def _function(self, at: int, key: tuple[str | None, int]) -> Function:
        if key not in self._at:
            raise InputError(f"{self.where(at)}: refers to code that no function begins with")
        return Function(self._at[key])

    def _constant(self, at: int, symbol: elf.Symbol, imm: int) -> Any:
        if symbol.section is None:
            raise InputError(f"{self.where(at)}: needs {symbol.name!r} of the kernel")
        place = symbol.value + (imm & 0xFFFFFFFF)
        if symbol.section == ".maps":
            for i, m in enumerate(self._made.maps):
                if m.offset == place:
                    return Map(i)
            raise InputError(f"{self.where(at)}: refers to a map that is not declared")
        if symbol.section in self._made.data:
            if place > len(self._made.data[symbol.section]):
                raise InputError(f"{self.where(at)}: a place outside {symbol.section}")
            return Data(symbol.section, place)
        return self._function(at, (symbol.section, place // 8))


def _hooks(made: Object, file: elf.Elf) -> None:
    """What each member of the structure of operations points to."""
    by_place = {(f.section, f.start): f.number for f in made.functions}
    for name in STRUCT_OPS:
        section = file.sections.get(name)
        where = next((t for t in made.btf.types if t.kind == b.DATASEC and t.name == name), None)
        if section is None or where is None:
            continue
        if made.operations is not None or len(where.members) != 1:
            raise InputError(f"{made.path}: several structures of operations; the driver takes one")
        variable = made.btf.type(where.members[0].type)
        operations = made.btf.type(made.btf.plain(variable.to))
        made.operations = operations.name
        members = {m.bit // 8: m.name for m in operations.members}
        base = next((s.value for s in file.symbols if s.section == name and s.name), 0)
        for at, symbol in section.relocations.items():
            number = by_place.get((symbol.section or "", symbol.value))
            if number is not None and at - base in members:
                made.hooks[members[at - base]] = number
    if made.operations is None:
        for f in made.attached("struct_ops"):
            made.hooks[f.section.partition("/")[2]] = f.number
