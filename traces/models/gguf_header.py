"""The head of a GGUF file: metadata and the list of tensors, without the weights.

`gguf.GGUFReader` turns every vocabulary string into NumPy arrays, which takes tens of seconds for a
vocabulary of 200,000; the vocabulary is not wanted here, so its strings are stepped over.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from traces.errors import InputError

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_KEPT_ITEMS = 4096
"""Arrays of numbers up to this length are kept (one number a layer); longer ones are vocabulary."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as stored. ``shape``: innermost dimension first (ggml's order); ``offset``: its first
    byte in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    n_bytes: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (vocabulary left out) and tensors, in file order."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]


def read_header(path: str | Path) -> GgufHeader:
    """Read the head of one GGUF file and check that the weights it lists are all there.

    Raises `InputError` where the file is missing, not GGUF, of an unknown version or cut off.
    """
    p = Path(path)
    if not p.is_file():
        raise InputError(f"{p}: no such file; give the path of a GGUF model")
    with p.open("rb") as f:
        if f.read(4) != b"GGUF":
            raise InputError(f"{p}: not a GGUF file (it does not start with 'GGUF')")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Parser(data, p).parse()
            except (struct.error, UnicodeDecodeError, IndexError, OverflowError):
                raise InputError(
                    f"{p}: cut off or damaged inside the header ({len(data):,} bytes); "
                    "download or export it again"
                ) from None


class _Parser:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 4

    def parse(self) -> GgufHeader:
        version = self._scalar("<I")
        if version not in (2, 3):
            raise InputError(
                f"{self._path}: GGUF version {version} is not supported (2 and 3 are); "
                "convert the model with a current llama.cpp on a little-endian machine"
            )
        n_tensors, n_entries = self._scalar("<Q"), self._scalar("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._string()
            value = self._value(self._scalar("<I"))
            if value is not None:
                metadata[key] = value
        listed = [self._tensor() for _ in range(n_tensors)]
        align = int(metadata.get("general.alignment", 32))
        start = -(-self._at // align) * align
        tensors = tuple(replace(entry, offset=start + entry.offset) for entry in listed)
        for entry in tensors:
            end = entry.offset + entry.n_bytes
            if end > len(self._data):
                raise InputError(
                    f"{self._path}: cut off: tensor {entry.name} ends at byte {end:,}, the file "
                    f"at {len(self._data):,}; download or export it again"
                )
        return GgufHeader(self._path, metadata, tensors)

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        n = self._scalar("<Q")
        end = self._at + n
        if end > len(self._data):
            raise IndexError
        text = self._data[self._at : end].decode("utf-8")
        self._at = end
        return text

    def _value(self, kind: int) -> Any:
        """A metadata value; None for an array that is stepped over."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(self._form(kind))
        item, n = self._scalar("<I"), self._scalar("<Q")
        if item == _STRING:
            self._skip_strings(n)
            return None
        if item == _ARRAY:
            for _ in range(n):
                self._value(_ARRAY)
            return None
        form = self._form(item)
        if n <= _KEPT_ITEMS:
            return [self._scalar(form) for _ in range(n)]
        self._at += n * struct.calcsize(form)
        if self._at > len(self._data):
            raise IndexError
        return None

    def _form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise IndexError
        return _SCALARS[kind]

    def _skip_strings(self, n: int) -> None:
        unpack, data, at = struct.Struct("<Q").unpack_from, self._data, self._at
        for _ in range(n):
            at += 8 + unpack(data, at)[0]
        self._at = at

    def _tensor(self) -> TensorEntry:
        """The next entry; its offset is still counted from the start of the weights."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        shape = tuple(self._scalar("<Q") for _ in range(self._scalar("<I")))
        kind, offset = self._scalar("<I"), self._scalar("<Q")
        try:
            quant = GGMLQuantizationType(kind)
        except ValueError:
            raise InputError(
                f"{self._path}: tensor {name} has the unknown type {kind}; update the gguf package"
            ) from None
        n = 1
        for extent in shape:
            n *= extent
        block, block_bytes = GGML_QUANT_SIZES[quant]
        return TensorEntry(name, shape, quant.name, n // block * block_bytes, offset)
