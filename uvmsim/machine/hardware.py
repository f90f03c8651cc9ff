"""Where a model runs: GPU memory, link, copy engines, CPU. Every quantity with its source.

A `Hardware` comes from a preset or a TOML file in which each quantity is
``{ value = "54.7 GB/s", source = "..." }``; a source that begins with ``estimate:`` marks a number
nobody measured. Durations are whole nanoseconds, rounded to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from traces.errors import InputError
from uvmsim.core import units

T = TypeVar("T")


def _parsed(parse: Callable[[Any], int]) -> BeforeValidator:
    def run(value: Any) -> int:
        try:
            return parse(value)
        except InputError as e:  # so that the message gets the file and the key in front
            raise ValueError(str(e)) from None

    return BeforeValidator(run)


Bytes = Annotated[int, _parsed(units.parse_bytes), Field(gt=0)]
Rate = Annotated[int, _parsed(units.parse_bandwidth)]
Time = Annotated[int, _parsed(units.parse_time)]
Flops = Annotated[int, _parsed(units.parse_flops)]
Share = Annotated[float, Field(gt=0, le=1)]


class Sourced(BaseModel, Generic[T]):
    """A value and where it comes from."""

    model_config = ConfigDict(extra="forbid")
    value: T
    source: Annotated[str, Field(min_length=1)]


class UvmSpec(BaseModel):
    """The paging driver's constants on a machine; the fields of `UvmCosts`, each with its source."""

    model_config = ConfigDict(extra="forbid")
    sm_count: Sourced[Annotated[int, Field(gt=0)]]
    ctas_per_sm: Sourced[Annotated[int, Field(gt=0)]]
    burst_pages: Sourced[Annotated[int, Field(gt=0)]]
    fault_sharing: Sourced[Annotated[int, Field(gt=0)]]
    batch_ns: Sourced[Time]
    page_ns: Sourced[Time]
    service_ns: Sourced[Time]
    map_ns: Sourced[Time]
    evict_ns: Sourced[Time]
    replay_ns: Sourced[Time]
    copy_ns: Sourced[Time]
    h2d_bytes_per_s: Sourced[Rate]
    d2h_bytes_per_s: Sourced[Rate]


class HardwareSpec(BaseModel):
    """A machine's TOML file; the fields of `Hardware`, each with its source."""

    model_config = ConfigDict(extra="forbid")
    name: str
    gpu: str
    summary: str
    vram_bytes: Sourced[Bytes]
    memory_bytes_per_s: Sourced[Rate]
    dense_bytes_per_s: Sourced[Rate] | None = None
    expert_tile_tokens: Sourced[Annotated[int, Field(gt=0)]] | None = None
    compute_flops: Sourced[Flops]
    dense_launch_ns: Sourced[Time]
    expert_launch_ns: Sourced[Time]
    h2d_bytes_per_s: Sourced[Rate]
    d2h_bytes_per_s: Sourced[Rate]
    copy_latency_ns: Sourced[Time]
    pageable_h2d_bytes_per_s: Sourced[Rate]
    pageable_d2h_bytes_per_s: Sourced[Rate]
    duplex: Sourced[bool]
    duplex_factor: Sourced[Share]
    zero_copy_bytes_per_s: Sourced[Rate]
    cpu_bytes_per_s: Sourced[Rate]
    cpu_sync_ns: Sourced[Time]
    decision_ns: Sourced[Time]
    pinned_alloc_bytes_per_s: Sourced[Rate] | None = None
    host_bytes: Sourced[Bytes] | None = None
    uvm: UvmSpec | None = None


@dataclass(frozen=True)
class UvmCosts:
    """What paging by the driver costs on a machine. Times in ns, rates in bytes a second."""

    sm_count: int
    """Streaming multiprocessors."""
    ctas_per_sm: int
    """Thread blocks of a decode kernel (128 threads) that an SM holds."""
    burst_pages: int
    """Pages of an SM's tile whose faults lie together in the fault buffer."""
    fault_sharing: int
    """Fault entries that arrive for a page beside one of each SM that reads a row in it."""
    batch_ns: int
    """Fixed cost of a fault batch: interrupt, fetch, sort, flush of the buffer."""
    page_ns: int
    """A distinct page that faulted."""
    service_ns: int
    """A block serviced: its lock, the residency decision, the prefetch region."""
    map_ns: int
    """Unmapping, DMA-mapping and mapping with one page table entry: a 64 KiB page, or a 4 KiB page of
    one that comes in parts."""
    evict_ns: int
    """Choosing and unmapping a victim."""
    replay_ns: int
    """Replaying the faults, until the warps run on."""
    copy_ns: int
    """Fixed part of one copy of a run of up to 64 KiB."""
    h2d_bytes_per_s: int
    """Migrating in, beside the fixed part."""
    d2h_bytes_per_s: int
    """Copying a victim's pages back."""


def duration_ns(amount: int, per_second: int) -> int:
    """Nanoseconds for ``amount`` (bytes or operations), to the nearest, ties to even: the same
    float64 expression as ``np.rint(amount / per_second * 1e9)``, hence the same nanosecond.
    """
    return round(amount / per_second * 1e9)


@dataclass(frozen=True)
class Hardware:
    """One machine. Rates are bytes (operations) a second, times nanoseconds."""

    name: str
    gpu: str
    summary: str
    vram_bytes: int
    """Device memory a program can use."""
    memory_bytes_per_s: int
    """Reading weights from device memory, as achieved by a kernel."""
    compute_flops: int
    """Matrix operations a second, as achieved by large products."""
    dense_launch_ns: int
    """Fixed cost of a block's dense part: its kernels' launches and gaps."""
    expert_launch_ns: int
    """Fixed cost of one expert call: the kernels that compute a layer's chosen experts together."""
    h2d_bytes_per_s: int
    """Host to device from pinned memory, large copies."""
    d2h_bytes_per_s: int
    copy_latency_ns: int
    """Fixed cost of a copy in a queue of copies: time = latency + bytes / bandwidth."""
    pageable_h2d_bytes_per_s: int
    """The same from memory that is not pinned (a file mapped by llama.cpp, plain PyTorch)."""
    pageable_d2h_bytes_per_s: int
    duplex: bool
    """Both directions run at the same time (two copy engines)."""
    duplex_factor: float
    """Share of its bandwidth that each direction keeps while both run."""
    zero_copy_bytes_per_s: int
    """A kernel reading pinned host memory across the link."""
    cpu_bytes_per_s: int
    """Expert weights read by the CPU's own expert kernels."""
    cpu_sync_ns: int
    """GPU to CPU and back, once a layer whose experts run on the CPU."""
    decision_ns: int
    """Router ids to the host, the policy's decision, and back, once a layer with a cache."""
    pinned_alloc_bytes_per_s: int | None = None
    """Allocating and page-locking fresh host memory; None where unknown."""
    host_bytes: int | None = None
    """Host memory; None where unknown."""
    expert_tile_tokens: int | None = None
    """Tokens a prefill kernel computes at a time for one expert, however few there are; None: 1."""
    dense_bytes_per_s: int | None = None
    """Reading dense weights, where that is another speed than the experts' (dequantisation);
    None: ``memory_bytes_per_s``."""
    sources: dict[str, str] = field(default_factory=dict)
    """Field name -> where its value comes from."""
    uvm: UvmCosts | None = None
    """The paging driver's constants; None where nobody measured or fitted them."""

    # ---- where a description comes from --------------------------------------------------------

    @classmethod
    def load(cls, spec: str) -> Hardware:
        """A preset name or a ``.toml`` file; `InputError` (one line) where it is neither."""
        from uvmsim.machine.descriptions import find, read

        return cls.from_spec(read(find(spec, "hardware", "hardware", (".toml",)), HardwareSpec))

    @classmethod
    def list_presets(cls) -> dict[str, str]:
        """Preset name -> one line saying what it is."""
        from uvmsim.machine.descriptions import preset_paths, read

        paths = preset_paths("hardware")
        return {name: read(p, HardwareSpec).summary for name, p in paths.items()}

    @classmethod
    def from_spec(cls, spec: HardwareSpec) -> Hardware:
        given = {k: getattr(spec, k) for k in HardwareSpec.model_fields}
        sourced = {k: v for k, v in given.items() if isinstance(v, Sourced)}
        plain = {k: v for k, v in given.items() if k not in sourced and k != "uvm"}
        sources = {k: v.source for k, v in sourced.items()}
        uvm = None
        if spec.uvm is not None:
            parts = {k: getattr(spec.uvm, k) for k in UvmSpec.model_fields}
            uvm = UvmCosts(**{k: v.value for k, v in parts.items()})
            sources |= {f"uvm.{k}": v.source for k, v in parts.items()}
        return cls(**plain, **{k: v.value for k, v in sourced.items()}, sources=sources, uvm=uvm)

    def with_(self, *, vram: str | int | None = None, link: str | int | None = None) -> Hardware:
        """The same machine with another memory size or link (``--vram 24GiB``, ``--link 28GB/s``).

        ``link`` becomes the pinned bandwidth of both directions. Zero-copy reads, bound by the
        link, scale with it; pageable copies, bound by the CPU, are only capped by it.
        """
        new: dict[str, Any] = {}
        if vram is not None:
            new["vram_bytes"] = units.parse_bytes(vram)
            if new["vram_bytes"] == 0:
                raise InputError("a GPU with no memory cannot run anything; give --vram above 0")
        if link is not None:
            rate = units.parse_bandwidth(link)
            new |= {"h2d_bytes_per_s": rate, "d2h_bytes_per_s": rate}
            zero_copy = self.zero_copy_bytes_per_s * rate // self.h2d_bytes_per_s
            new["zero_copy_bytes_per_s"] = max(1, zero_copy)
            for key in ("pageable_h2d_bytes_per_s", "pageable_d2h_bytes_per_s"):
                new[key] = min(getattr(self, key), rate)
        note = {k: f"given by the user (preset: {self._shown(k)})" for k in new}
        if link is not None and self.uvm is not None:
            scaled = {
                k: max(1, getattr(self.uvm, k) * rate // self.h2d_bytes_per_s)
                for k in ("h2d_bytes_per_s", "d2h_bytes_per_s")
            }
            new["uvm"] = replace(self.uvm, **scaled)
            note |= {f"uvm.{k}": "scaled with the link given by the user" for k in scaled}
        return replace(self, **new, sources=self.sources | note)

    # ---- durations -----------------------------------------------------------------------------

    def link_bytes_per_s(
        self, direction: str = "h2d", *, pinned: bool = True, both_ways: bool = False
    ) -> int:
        """Bytes a second of a large copy, ``direction`` ``"h2d"`` or ``"d2h"``.

        ``both_ways``: while the other direction is busy too. Without two copy engines the
        directions then take turns, and each gets half.
        """
        if direction not in ("h2d", "d2h"):
            raise ValueError(f"direction is 'h2d' or 'd2h', not {direction!r}")
        rate: int = getattr(self, f"{'' if pinned else 'pageable_'}{direction}_bytes_per_s")
        if both_ways:
            rate = int(rate * (self.duplex_factor if self.duplex else 0.5))
        return rate

    def copy_ns(self, nbytes: int, direction: str = "h2d", pinned: bool = True) -> int:
        """One copy that has its direction of the link to itself; nothing to copy takes no time."""
        if nbytes == 0:
            return 0
        return self.copy_latency_ns + duration_ns(
            nbytes, self.link_bytes_per_s(direction, pinned=pinned)
        )

    def read_ns(self, nbytes: int) -> int:
        """Reading ``nbytes`` of weights from device memory."""
        return duration_ns(nbytes, self.memory_bytes_per_s)

    def zero_copy_ns(self, nbytes: int) -> int:
        """Reading ``nbytes`` of weights from host memory by a kernel."""
        return duration_ns(nbytes, self.zero_copy_bytes_per_s)

    def cpu_ns(self, nbytes: int) -> int:
        """The CPU reading (and using) ``nbytes`` of expert weights."""
        return duration_ns(nbytes, self.cpu_bytes_per_s)

    def roofline_ns(self, nbytes: int, flops: int) -> int:
        """The longer of reading the weights and computing with them; launches not included."""
        return max(self.read_ns(nbytes), duration_ns(flops, self.compute_flops))

    # ---- output --------------------------------------------------------------------------------

    def quantities(self) -> list[tuple[str, str, str]]:
        """``(field, value as people write it, source)`` of every quantity, in file order."""
        rows = [(k, self._shown(k), self.sources.get(k, "")) for k in self._quantity_names()]
        for k, value in vars(self.uvm).items() if self.uvm else ():
            key = f"uvm.{k}"
            rows.append((key, _shown(k, value), self.sources.get(key, "")))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: every field, sources included."""
        d = {k: getattr(self, k) for k in self.__dataclass_fields__}
        return d | {"uvm": vars(self.uvm) if self.uvm else None}

    def _quantity_names(self) -> list[str]:
        words = ("name", "gpu", "summary", "uvm")
        names = [k for k in HardwareSpec.model_fields if k not in words]
        return [k for k in names if getattr(self, k) is not None]

    def _shown(self, key: str) -> str:
        return _shown(key, getattr(self, key))


def _shown(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_ns"):
        return units.format_ns(value)
    if key.endswith("_flops"):
        return units.format_flops(value)
    if key.endswith("_bytes_per_s"):
        return units.format_rate(value)
    if key.endswith("_bytes"):
        return units.format_bytes(value, binary=True)
    return f"{value:g}"
