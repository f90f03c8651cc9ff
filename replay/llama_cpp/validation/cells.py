"""The cells of a validation: one model in one mode of one size, with its contexts and tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from replay.llama_cpp.request import Context
from replay.llama_cpp.validation.config import LlamaValidation, NamedTest
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.moe_cache import expert_cache
from uvmsim.machine.llamacpp.placement import place
from uvmsim.machine.model import Model


@dataclass(frozen=True)
class Subject:
    """A model to be validated on."""

    path: str
    model: Model
    llama: LlamaModel

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @classmethod
    def load(cls, path: str) -> Subject:
        """Raises `InputError`."""
        return cls(path, Model.load(path), LlamaModel.load(path))


@dataclass(frozen=True)
class Cell:
    """One model, one mode, one size."""

    subject: Subject
    mode: str
    size: str
    """As in the file; empty where the mode has none."""
    ncmoe: int = 0
    cache_mib: int = 0
    tests: tuple[NamedTest, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.subject.name} {self.mode}" + (f" {self.size}" if self.size else "")

    @property
    def offload(self) -> bool:
        return self.mode in ("ncmoe", "cache", "cache-mapped")

    @property
    def no_mmap(self) -> bool:
        return self.mode == "cache"

    @property
    def unified(self) -> bool:
        return self.mode in ("managed", "preferred-host")

    def contexts(self, repetitions: int) -> dict[int, Context]:
        """By micro-batch: a context with its tests, in the order of the file."""
        by: dict[int, list[NamedTest]] = {}
        for t in self.tests:
            by.setdefault(t.ubatch, []).append(t)
        return {
            ubatch: Context(
                tuple(t.test(repetitions) for t in tests), n_ubatch=ubatch,
                moe_cache_mib=self.cache_mib, on_host=self.mode == "preferred-host",
            )
            for ubatch, tests in by.items()
        }  # fmt: skip

    def config(self, context: Context, *, gpu: bool, flash: bool) -> LlamaConfig:
        """llama.cpp's flags for one of its contexts."""
        return LlamaConfig(
            n_cpu_moe=self.ncmoe, n_ctx=context.context_tokens(),
            n_batch=max(context.n_batch, context.n_ubatch), n_ubatch=context.n_ubatch,
            moe_cache_mib=self.cache_mib, mmap=not self.no_mmap, unified_memory=self.unified,
            gpu=gpu, flash_kernels=flash,
        )  # fmt: skip

    @cached_property
    def slots(self) -> int:
        """Slots of llama.cpp's expert cache."""
        config = LlamaConfig(n_cpu_moe=self.ncmoe, moe_cache_mib=self.cache_mib)
        cache = expert_cache(self.subject.llama, config, place(self.subject.llama, config))
        return max((g.slots for g in cache.groups), default=0)


def cells_of(config: LlamaValidation, subjects: list[Subject]) -> list[Cell]:
    """All cells, model by model in the order of the file."""
    out = []
    for subject in subjects:
        blocks = len(subject.model.moe_layers)
        experts = blocks * subject.model.n_experts
        first = subject.model.moe_layers[0]
        for mode, entry in config.modes.items():
            tests = tuple(entry.tests or config.tests)
            for at in entry.at or [""]:
                ncmoe = cache = 0
                if mode == "ncmoe":
                    ncmoe = first + max(1, round(_of(at, blocks)))
                elif mode in ("cache", "cache-mapped"):
                    ncmoe = subject.model.n_layers
                    cache = int(at) if isinstance(at, int) else _mib(subject, _of(at, experts))
                out.append(Cell(subject, mode, str(at), ncmoe, cache, tests))
    return out


def _of(at: str | int, whole: int) -> float:
    return whole * float(at.rstrip("%")) / 100 if isinstance(at, str) else min(at, whole)


def _mib(subject: Subject, slots: float) -> int:
    each = max(subject.model.expert_bytes)
    return -(-each * (max(round(slots), subject.model.top_k) + 1) // (1 << 20)) + 1
