"""Single tensors out of GGUF files, as float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.models.gguf import read_parts
from traces.models.gguf_header import TensorEntry


class GgufTensors:
    """The tensors of a model, split or not; each is read when it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self._where: dict[str, tuple[Path, TensorEntry]] = {
            entry.name: (part.path, entry)
            for part in read_parts(Path(path))
            for entry in part.tensors
        }

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(self, name: str) -> np.ndarray:
        """float32, outermost dimension first, dequantised where it is stored quantised.

        Raises `InputError` where the file has no such tensor or the gguf package cannot
        dequantise its type.
        """
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        if name not in self._where:
            raise InputError(f"the model has no tensor {name}; convert it again")
        path, entry = self._where[name]
        kind, shape = GGMLQuantizationType[entry.type], entry.shape[::-1]
        stored = np.fromfile(path, np.uint8, entry.n_bytes, offset=entry.offset)
        plain = {"F32": np.float32, "F16": np.float16}.get(entry.type)
        if plain is not None:
            return stored.view(plain).reshape(shape).astype(np.float32)
        try:
            values = dequantize(stored.reshape(quant_shape_to_byte_shape(shape, kind)), kind)
        except NotImplementedError:
            raise InputError(
                f"{path}: tensor {name} has the type {entry.type}, which the gguf package cannot "
                "dequantise; update it, or capture without --scores-next and --scores-pre"
            ) from None
        return np.asarray(values, np.float32).reshape(shape)
