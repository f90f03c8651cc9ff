"""The model that advice is asked for: a preset, a description, a GGUF file, dense ones included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from traces.errors import InputError
from uvmsim.machine.descriptions import find
from uvmsim.machine.llamacpp import LlamaModel
from uvmsim.machine.model import Model
from uvmsim.studies.advise.candidate import FUSED_PROJECTIONS, PROJECTIONS
from uvmsim.studies.advise.needs import Memory


@dataclass(frozen=True)
class Subject:
    """A model as it is simulated, and as llama.cpp sees it."""

    model: Model
    llama: LlamaModel
    file: str
    """To name on the command line."""

    @cached_property
    def memory(self) -> Memory:
        return Memory(self.llama)

    @property
    def ends(self) -> list[int]:
        """Numbers for ``-ncmoe`` that differ in what they do: each ends behind a MoE layer."""
        return [b + 1 for b in self.model.moe_layers]

    def moe_below(self, block: int) -> int:
        """MoE layers among the first ``block`` blocks."""
        return sum(b < block for b in self.model.moe_layers)

    @property
    def projections(self) -> tuple[tuple[str, ...], ...]:
        """What can be taken apart in a block's experts."""
        fused = any(".ffn_gate_up_exps." in t.name for t in self.llama.tensors)
        return FUSED_PROJECTIONS if fused else PROJECTIONS

    def share_of(self, block: int, projections: tuple[str, ...]) -> float:
        """Share of a block's expert bytes in some projections."""
        sizes = {
            t.name: t.n_bytes for t in self.llama.tensors if t.name.startswith(f"blk.{block}.")
        }
        experts = {k: n for k, n in sizes.items() if "_exps." in k}
        names = tuple(f"blk.{block}.ffn_{p}_exps" for p in projections)
        found = sum(n for k, n in experts.items() if k.startswith(names))
        return found / max(sum(experts.values()), 1)


def subject(spec: Any, notes: list[str], kv_type: str = "f16") -> Subject:
    """The model that is named. Raises `InputError` (one line)."""
    made = _subject(spec, notes)
    made = replace(made, model=made.model.with_kv(kv_type))
    notes += made.llama.notes
    return made


def _subject(spec: Any, notes: list[str]) -> Subject:
    if isinstance(spec, Model):
        if not spec.described_by:
            raise InputError(
                f": {spec.name} has sizes but no tensors to place; name a preset, a .gguf or a .toml "
                "file", argument="model",
            )  # fmt: skip
        return Subject(spec, LlamaModel.load(spec.described_by), f"{spec.name}.gguf")
    path = find(str(spec), "models", "model", (".toml", ".gguf"))
    if path.suffix.lower() != ".gguf":
        return Subject(Model.load(str(spec)), LlamaModel.load(str(spec)), f"{path.stem}.gguf")
    from traces.models.gguf import describe

    info = describe(path, need_experts=False)
    _check_architecture(str(spec), info.architecture)
    model = replace(Model.from_info(info, need_experts=False), described_by=str(path))
    if not model.moe_layers:
        notes.append("no experts: whole layers are placed, and every token reads all of them")
    return Subject(model, LlamaModel.load(path), shown_path(spec, path))


def shown_path(spec: Any, path: Path) -> str:
    """The file as the user named it."""
    return str(spec) if Path(str(spec)).expanduser() == path else str(path)


def _check_architecture(spec: str, name: str) -> None:
    from gguf.constants import MODEL_ARCH_NAMES

    if name not in MODEL_ARCH_NAMES.values():
        raise InputError(
            f"{spec}: unknown architecture {name!r}; llama.cpp loads it only if it is newer than the "
            "gguf package here (pip install -U gguf), or convert the model again"
        )
