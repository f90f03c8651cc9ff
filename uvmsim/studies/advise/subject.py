"""The model that advice is asked for: a preset, a description, a GGUF file, dense ones included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from traces.errors import InputError
from uvmsim.machine.descriptions import find
from uvmsim.machine.model import KV_BYTES, Model
from uvmsim.machine.model_spec import TYPES

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""Types of the KV cache (llama.cpp b11549, common/arg.cpp, ``kv_cache_types``)."""
WEIGHTS = 256
"""A row's weights are a multiple of every type's block, so that bytes come out whole."""


def subject(spec: Any, notes: list[str]) -> tuple[Model, str]:
    """The model and the file to name on the command line. Raises `InputError` (one line)."""
    if isinstance(spec, Model):
        return spec, f"{spec.name}.gguf"
    path = find(str(spec), "models", "model", (".toml", ".gguf"))
    if path.suffix.lower() != ".gguf":
        return Model.load(str(spec)), f"{path.stem}.gguf"
    from traces.models.gguf import describe

    info = describe(path, need_experts=False)
    _check_architecture(str(spec), info.architecture, notes)
    model = Model.from_info(info, need_experts=False)
    if info.kv_bytes_per_token is None:
        notes.append(f"{path.name} does not say how large its KV cache is: counted as 0")
    if not model.moe_layers:
        notes.append("no experts: whole layers are placed, and every token reads all of them")
    return model, shown_path(spec, path)


def shown_path(spec: Any, path: Path) -> str:
    """The file as the user named it."""
    return str(spec) if Path(str(spec)).expanduser() == path else str(path)


def _check_architecture(spec: str, name: str, notes: list[str]) -> None:
    from gguf.constants import MODEL_ARCH_NAMES

    if name not in MODEL_ARCH_NAMES.values():
        raise InputError(
            f"{spec}: unknown architecture {name!r}; llama.cpp loads it only if it is newer than the "
            "gguf package here (pip install -U gguf), or convert the model again"
        )


def with_kv_type(model: Model, kv_type: str) -> Model:
    """The model with its KV cache stored as ``kv_type``. Raises `InputError`."""
    if kv_type not in KV_TYPES:
        raise InputError(f"{kv_type}: one of {', '.join(KV_TYPES)}", argument="kv_type")
    weights, size = TYPES[kv_type.upper()]
    scaled = model.kv_bytes_per_token * size * (WEIGHTS // weights) // (KV_BYTES * WEIGHTS)
    return replace(model, kv_bytes_per_token=scaled)
