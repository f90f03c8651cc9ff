"""What runs the model on a machine: a program with its launch costs, its waits, its kernels.

An `EngineProfile` comes from a preset (``presets/engines/``, found by its presence) or a TOML file.
What a datasheet or a bandwidth test knows of the machine is in `uvmsim.machine.hardware`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from uvmsim.machine.cpu_experts import CpuExpertsSpec
from uvmsim.machine.descriptions import beside, find, preset_paths, read
from uvmsim.machine.engine_terms import Terms, TermsSpec
from uvmsim.machine.llama_terms import QUANTITIES, term_of
from uvmsim.machine.quantities import Count, Flops, Rate, Sourced, Time, parts, shown

SPEEDS = {
    "expert_bytes_per_s": "memory_bytes_per_s",
    "dense_bytes_per_s": "memory_bytes_per_s",
    "compute_flops": "compute_flops",
    "cpu_bytes_per_s": "cpu_bytes_per_s",
}
"""What a program's kernels reach: field of the profile -> what the machine itself reaches."""


LLAMA_CPP = "default: as llama.cpp does"


class EngineSpec(BaseModel):
    """An engine's TOML file; the fields of `EngineProfile`, each quantity with its source."""

    model_config = ConfigDict(extra="forbid")
    name: str
    summary: str
    machine: str | None = None
    dense_launch_ns: Sourced[Time]
    expert_launch_ns: Sourced[Time]
    decision_ns: Sourced[Time]
    cpu_sync_ns: Sourced[Time]
    expert_bytes_per_s: Sourced[Rate] | None = None
    dense_bytes_per_s: Sourced[Rate] | None = None
    compute_flops: Sourced[Flops] | None = None
    cpu_bytes_per_s: Sourced[Rate] | None = None
    expert_tile_tokens: Sourced[Count] | None = None
    row_kernel_tokens: Sourced[Count] = Sourced(
        value=8, source=f"{LLAMA_CPP} (ggml-cuda, MMVQ_MAX_BATCH_SIZE)"
    )
    offload_tokens: Sourced[Count] = Sourced(
        value=32, source=f"{LLAMA_CPP} (ggml-cuda.cu, offload of MUL_MAT_ID)"
    )
    maps_weights: Sourced[bool] = Sourced(value=True, source=f"{LLAMA_CPP}, which maps the file")
    build: Sourced[Count] | None = None
    terms: TermsSpec | None = None
    cpu_experts: dict[str, CpuExpertsSpec] | None = None


class Speeds(Protocol):
    """What a machine itself reaches (`uvmsim.machine.hardware.Hardware`)."""

    @property
    def memory_bytes_per_s(self) -> int: ...
    @property
    def compute_flops(self) -> int: ...
    @property
    def cpu_bytes_per_s(self) -> int: ...


class Reach(NamedTuple):
    """What kernels reach on a machine; bytes (operations) a second."""

    expert_bytes_per_s: int
    dense_bytes_per_s: int
    compute_flops: int
    cpu_bytes_per_s: int


@dataclass(frozen=True)
class EngineProfile:
    """One program. Rates are bytes (operations) a second, times nanoseconds."""

    name: str
    summary: str
    dense_launch_ns: int
    """Fixed cost of a block's dense part: its kernels' launches and gaps."""
    expert_launch_ns: int
    """Fixed cost of one expert call: the kernels that compute a layer's chosen experts together."""
    decision_ns: int
    """Router ids to the host, the policy's decision, and back, once a layer with a cache."""
    cpu_sync_ns: int
    """GPU to CPU and back, once a layer whose experts run on the CPU."""
    machine: str | None = None
    """The hardware its speeds were found on; None: whatever it is paired with."""
    expert_bytes_per_s: int | None = None
    """Reading experts from device memory; None: as fast as the machine reads."""
    dense_bytes_per_s: int | None = None
    """Reading dense weights, where that is another speed (dequantisation); None: as experts."""
    compute_flops: int | None = None
    """Matrix operations a second; None: what the machine's large products reach."""
    cpu_bytes_per_s: int | None = None
    """Expert weights read by its CPU kernels; None: as fast as the machine's CPU reads."""
    expert_tile_tokens: int | None = None
    """Tokens a prefill kernel computes at a time for one expert, however few there are; None: 1."""
    row_kernel_tokens: int = 8
    """Tokens up to which it multiplies row by row, without tiles."""
    offload_tokens: int = 32
    """Tokens from which it copies weights that lie with the CPU to the GPU and computes there; fewer
    are computed where the weights are."""
    maps_weights: bool = True
    """Whether weights that lie with the CPU are a mapped file, which is not page-locked."""
    build: int = 0
    """Build of llama.cpp whose kernels page (`uvmsim.paging.touches.IN_ORDER_BUILD`); 0: not said, as
    7099, which the published rows ran."""
    terms: Terms | None = None
    """Constants kernel by kernel (llama.cpp); where they and the model's graph are known, they take the
    place of the launch costs and speeds above."""
    cpu_experts: dict[str, CpuExpertsSpec] | None = None
    """Experts on the CPU by the type of their weights (`uvmsim.machine.cpu_experts`); None: not
    measured."""
    sources: dict[str, str] = field(default_factory=dict)
    """Field name -> where its value comes from."""

    # ---- where a profile comes from ------------------------------------------------------------

    @classmethod
    def load(cls, spec: str) -> EngineProfile:
        """A preset name or a ``.toml`` file; `InputError` (one line) where it is neither."""
        return cls.from_spec(engine_spec(spec))

    @classmethod
    def list_presets(cls) -> dict[str, str]:
        """Preset name -> one line saying what it is."""
        paths = preset_paths("engines")
        return {name: read(p, EngineSpec).summary for name, p in paths.items()}

    @classmethod
    def from_spec(cls, spec: EngineSpec) -> EngineProfile:
        values, sources = parts(spec)
        terms = Terms.from_spec(spec.terms) if spec.terms else None
        if terms:
            sources["terms"] = terms.source
        return cls(
            spec.name, spec.summary, machine=spec.machine, **values, terms=terms,
            cpu_experts=spec.cpu_experts, sources=sources,
        )  # fmt: skip

    def found_on(self, home: dict[str, int]) -> EngineProfile:
        """The profile with its terms tied to what a machine reaches, unless they say themselves."""
        if self.terms is None or self.terms.home:
            return self
        return replace(self, terms=replace(self.terms, home={q: home[q] for q in QUANTITIES}))

    # ---- on a machine --------------------------------------------------------------------------

    def reach(self, hw: Speeds) -> Reach:
        """What its kernels reach on a machine: its own speeds, else the machine's."""
        expert = self.expert_bytes_per_s or hw.memory_bytes_per_s
        return Reach(
            expert,
            self.dense_bytes_per_s or expert,
            self.compute_flops or hw.compute_flops,
            self.cpu_bytes_per_s or hw.cpu_bytes_per_s,
        )

    def moved(self, home: dict[str, int], to: Speeds) -> EngineProfile:
        """The program on another machine: a kernel keeps its share of what the machine reaches.

        ``home`` is what the machine of its speeds reaches, by field of `Hardware`.
        """
        new: dict[str, Any] = {}
        for own, of_machine in SPEEDS.items():
            rate, there = getattr(self, own), getattr(to, of_machine)
            if rate is not None and there != home[of_machine]:
                new[own] = max(1, rate * there // home[of_machine])
        note = {
            k: f"scaled from {shown(k, getattr(self, k))} on {self.machine} ({self.sources[k]})"
            for k in new
        }
        home_now = None if new else self.machine
        return replace(
            self, **new, machine=home_now, sources=self.sources | note,
            cpu_experts=self._experts_on(to.cpu_bytes_per_s, home["cpu_bytes_per_s"]),
        )  # fmt: skip

    def with_ram(self, rate: int, before: int) -> EngineProfile:
        """The program on a CPU that reads at another rate than before."""
        return replace(self, cpu_experts=self._experts_on(rate, before))

    def _experts_on(self, rate: int, home: int) -> dict[str, CpuExpertsSpec] | None:
        """The CPU's experts where it reads at another rate."""
        if self.cpu_experts is None or rate == home:
            return self.cpu_experts
        return {
            kind: x.model_copy(update={
                "bytes_per_s": max(1, x.bytes_per_s * rate // home),
                "flops": max(1, x.flops * rate // home),
                "source": f"scaled with the host memory ({x.source})",
            })
            for kind, x in self.cpu_experts.items()
        }  # fmt: skip

    # ---- output --------------------------------------------------------------------------------

    def quantities(self) -> list[tuple[str, str, str]]:
        """``(field, value as people write it, source)`` of every quantity, in file order."""
        words = ("name", "summary", "machine", "terms", "cpu_experts")
        given = {k: getattr(self, k) for k in EngineSpec.model_fields if k not in words}
        given["build"] = self.build or None
        rows = [
            (k, shown(k, v), self.sources.get(k, "")) for k, v in given.items() if v is not None
        ]
        for kind, x in (self.cpu_experts or {}).items():
            rows += [
                (f"cpu_experts.{kind}.{k}", shown(k, getattr(x, k)), x.source)
                for k in ("bytes_per_s", "flops", "wave_ns")
            ]
        for key, ns in self.terms.ns.items() if self.terms else ():
            term = term_of(key)
            assert term is not None
            rows.append((f"terms.{key}", f"{ns:.4g} ns a {term.unit}", term.meaning))
        return rows

    def numbers(self) -> dict[str, Any]:
        """What a run depends on beside `reach`; of what has a default only what differs from it, so
        that a new one leaves the keys of kept results as they are."""
        words = ("name", "summary", "machine", "sources", *SPEEDS)
        usual = {f.name: f.default for f in fields(self)}
        own = {k: v for k, v in vars(self).items() if k not in words}
        kept = {k: v for k, v in own.items() if usual[k] in (MISSING, None) or v != usual[k]}
        if self.cpu_experts is None:
            kept.pop("cpu_experts")
        else:
            kept["cpu_experts"] = {
                kind: {k: v for k, v in x.items() if k != "source"}
                for kind, x in self._experts_json().items()
            }
        if self.terms is None:
            kept.pop("terms")
        else:
            kept["terms"] = self.terms.to_json()
        return kept | {"dense_bytes_per_s": self.dense_bytes_per_s}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: every field, sources included."""
        made = {k: getattr(self, k) for k in self.__dataclass_fields__}
        terms, experts = made.pop("terms"), made.pop("cpu_experts")
        made |= {"cpu_experts": self._experts_json()} if experts else {}
        if not self.build:
            made.pop("build")
        return made | ({"terms": terms.to_json()} if terms else {})

    def _experts_json(self) -> dict[str, dict[str, Any]]:
        return {kind: x.model_dump() for kind, x in (self.cpu_experts or {}).items()}


def engine_spec(spec: str, home: Path | None = None) -> EngineSpec:
    """The checked description that ``spec`` names; a path is relative to ``home``, and so is a path
    that it names itself."""
    path = find(beside(spec, home), "engines", "engine", (".toml",))
    made = read(path, EngineSpec)
    if made.machine is not None:
        made.machine = beside(made.machine, path.parent)
    return made
