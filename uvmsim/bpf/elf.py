"""A compiled object as its ELF file has it: sections, symbols, relocations; pyelftools reads it.

The file may be anybody's: whatever pyelftools trips over is one line, and no size is believed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from traces.errors import InputError

BPF_MACHINE = 247
LARGEST = 16 << 20
"""Bytes of a file; gpu_ext's largest is under 1 MiB."""
ALLOCATED, EXECUTABLE, WRITABLE = 2, 4, 1
NO_BITS = 8


@dataclass(frozen=True)
class Symbol:
    """A name for a place in a section; ``section`` None: it lies elsewhere."""

    name: str
    section: str | None
    value: int
    size: int
    is_function: bool


@dataclass(frozen=True)
class Section:
    """A section with its relocations: place in bytes -> symbol."""

    name: str
    data: bytes
    flags: int
    relocations: dict[int, Symbol]

    @property
    def executable(self) -> bool:
        return bool(self.flags & EXECUTABLE)

    @property
    def allocated(self) -> bool:
        return bool(self.flags & ALLOCATED)


@dataclass(frozen=True)
class Elf:
    """Sections by name, and all symbols."""

    sections: dict[str, Section]
    symbols: tuple[Symbol, ...]


def read(path: str | Path) -> Elf:
    """Raises `InputError` for what is no little-endian eBPF object."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if file.stat().st_size > LARGEST:
            raise InputError(f"{path}: larger than {LARGEST >> 20} MiB; no eBPF object")
        data = file.read_bytes()
    except OSError as err:
        raise InputError(f"{path}: {err.strerror or err}") from err
    if data[:4] != b"\x7fELF":
        raise InputError(f"{path}: no ELF file; compile it with clang -O2 -g -target bpf -c")
    try:
        return _read(ELFFile(io.BytesIO(data)), len(data), str(path))
    except InputError:
        raise
    except Exception as err:  # pyelftools raises what its parsers happen to run into
        told = " ".join(str(err).split()) or type(err).__name__
        raise InputError(f"{path}: broken ELF file ({told[:120]})") from err


def _read(elf: ELFFile, n: int, path: str) -> Elf:
    if elf["e_machine"] not in ("EM_BPF", BPF_MACHINE):
        raise InputError(f"{path}: compiled for {elf['e_machine']}; use clang -target bpf")
    if not elf.little_endian or elf.elfclass != 64:
        raise InputError(f"{path}: not 64-bit little-endian; use clang -target bpfel")
    tables = [s for s in elf.iter_sections() if isinstance(s, SymbolTableSection)]
    if not tables:
        raise InputError(f"{path}: no symbols; do not strip the object")
    names = [s.name for s in elf.iter_sections()]
    symbols = []
    for y in tables[0].iter_symbols():
        at = y["st_shndx"]
        section = names[at] if isinstance(at, int) and at < len(names) else None
        is_function = y["st_info"]["type"] == "STT_FUNC"
        symbols.append(Symbol(y.name, section, y["st_value"], y["st_size"], is_function))
    sections: dict[str, Section] = {}
    for s in elf.iter_sections():
        if s["sh_type"] == "SHT_NOBITS":
            if s["sh_size"] > LARGEST:
                raise InputError(f"{path}: section {s.name} is larger than {LARGEST >> 20} MiB")
            data = bytes(s["sh_size"])
        else:
            if s["sh_offset"] + s["sh_size"] > n:
                raise InputError(f"{path}: section {s.name} runs past the end of the file")
            data = s.data()
        sections[s.name] = Section(s.name, data, s["sh_flags"], {})
    for s in elf.iter_sections():
        if isinstance(s, RelocationSection) and s["sh_info"] < len(names):
            rows = sections[names[s["sh_info"]]].relocations
            for r in s.iter_relocations():
                rows[r["r_offset"]] = symbols[r["r_info_sym"]]
    return Elf(sections, tuple(symbols))
