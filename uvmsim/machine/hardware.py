"""Where a model runs: GPU memory, link, copy engines, CPU, the paging driver. Every quantity with
its source.

A `Hardware` comes from a preset or a TOML file (`uvmsim.machine.quantities`) and holds what a datasheet
or a bandwidth test knows. What one program makes of it is its ``engine``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from traces.errors import InputError
from uvmsim.core import units
from uvmsim.machine.bases import as_toml, in_full, written
from uvmsim.machine.descriptions import beside, checked, find, preset_paths, read
from uvmsim.machine.detect import AUTO, detected
from uvmsim.machine.disk import DiskSpec
from uvmsim.machine.engine import SPEEDS, EngineProfile, Reach, engine_spec
from uvmsim.machine.hardware_spec import (
    OLD_ENGINE_KEYS,
    OLD_SUMMARY,
    HardwareSpec,
    UvmSpec,
    from_old,
    note_once,
)
from uvmsim.machine.parts import fitted, split
from uvmsim.machine.policy_times import PolicyTimes, plain, rows
from uvmsim.machine.quantities import duration_ns, parts, shown
from uvmsim.machine.reports import System

__all__ = ["OLD_ENGINE_KEYS", "Hardware", "HardwareSpec", "UvmCosts", "UvmSpec"]


@dataclass(frozen=True)
class UvmCosts:
    """What paging by the driver costs on a machine. Times in ns, rates in bytes a second."""

    sm_count: int
    """Streaming multiprocessors."""
    ctas_per_sm: int
    """Thread blocks of a decode kernel (128 threads) that an SM holds."""
    batch_ns: int
    """A fault batch, whatever is in it: interrupt, flush, replay, until the warps run on."""
    entry_ns: int
    """An entry of the fault buffer, duplicates included: fetched, sorted, its page mapped."""
    first_touch_ns: int
    """A 2 MiB block whose host pages the GPU's copy engines never saw: mapping them, once."""
    evict_ns: int
    """Choosing and unmapping a victim, beside copying it back."""
    copy_ns: int
    """Fixed part of one copy of a run of up to 64 KiB."""
    h2d_bytes_per_s: int
    """Migrating in, beside the fixed part."""
    d2h_bytes_per_s: int
    """Copying a victim's pages back."""
    duplex: bool
    """Copies in and copies out run side by side while the driver evicts, each at
    `Hardware.duplex_factor` of its speed; false: one at a time."""
    service_ns: int = 0
    """A 2 MiB block served in a batch, beside its pages."""
    push_ns: int = 0
    """A 4 KiB page that comes in: the handler's part in copying and mapping it."""
    look_entries: int = 0
    """Entries of the fault buffer that are there when the handler looks, while warps go on faulting;
    0: not measured, and kernels have numbers of their own."""


UNSAID = ("service_ns", "push_ns", "look_entries")
"""Constants of paging that a machine may leave out, which then are 0."""


@dataclass(frozen=True)
class Hardware:
    """One machine. Rates are bytes (operations) a second, times nanoseconds."""

    name: str
    gpu: str
    summary: str
    engine: EngineProfile
    """The program that runs on it."""
    vram_bytes: int
    """Device memory a program can use."""
    memory_bytes_per_s: int
    """Reading device memory, as achieved by a kernel that does nothing else."""
    compute_flops: int
    """Matrix operations a second, as achieved by a library's large products."""
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
    """Weights read by the CPU."""
    pinned_alloc_bytes_per_s: int | None = None
    """Allocating and page-locking fresh host memory; None where unknown."""
    host_bytes: int | None = None
    """Host memory; None where unknown."""
    reserve_bytes: int | None = None
    """Device memory that something else uses (a desktop, another program); None: nothing."""
    peer_bytes_per_s: int | None = None
    """Copies from another card of this kind; None where there is none, or nobody measured."""
    peer_latency_ns: int | None = None
    """From an event on one card until a copy of a few bytes has come to the other."""
    sources: dict[str, str] = field(default_factory=dict)
    """Field name -> where its value comes from."""
    uvm: UvmCosts | None = None
    """The paging driver's constants; None where nobody measured or fitted them."""
    policy_ns: PolicyTimes | None = None
    """What policies' hooks cost the host; None where nobody measured them: nothing."""
    disk: DiskSpec | None = None
    """The disk that experts may be read from; None where nobody measured one."""

    # ---- where a description comes from --------------------------------------------------------

    @classmethod
    def load(cls, spec: str, program: str | None = None) -> Hardware:
        """A preset name or a ``.toml`` file, perhaps with parts (``rtx3090+pcie3+ddr4-3200``), or
        ``auto``: this machine. `InputError` (one line) where it is none of them.

        ``program`` names another engine than the description does: a preset, or a ``.toml`` file.
        """
        base, parts_of_it = split(spec)
        if base == AUTO:
            made = cls.detect()
        else:
            made = cls.from_spec(_hardware_spec(find(base, "hardware", "hardware", (".toml",))))
        for part in parts_of_it:
            made = fitted(made, part)
        return made.running(EngineProfile.load(program)) if program else made

    @classmethod
    def detect(cls, system: System | None = None) -> Hardware:
        """This machine, from what it reports (`uvmsim.machine.detect`); `InputError` where no GPU does.

        ``system`` runs commands and reads files; None: the real ones.
        """
        found = detected(system)
        made = cls.load(found.base)
        for part, told_by in found.parts:
            made = fitted(made, part, told_by)
        data = in_full(found.own, written(made))
        return cls.from_spec(checked(data, HardwareSpec, AUTO))

    @classmethod
    def list_presets(cls) -> dict[str, str]:
        """Preset name -> one line saying what it is."""
        return {name: _hardware_spec(p).summary for name, p in preset_paths("hardware").items()}

    @classmethod
    def from_spec(cls, spec: HardwareSpec) -> Hardware:
        values, sources = parts(spec)
        uvm = None
        if spec.uvm is not None:
            constants, from_where = parts(spec.uvm)
            uvm = UvmCosts(**constants)
            sources |= {f"uvm.{k}": v for k, v in from_where.items()}
        engine = EngineProfile.from_spec(spec.engine)
        made = cls(
            spec.name, spec.gpu, spec.summary, engine, **values, sources=sources, uvm=uvm,
            policy_ns=spec.policy_ns,
            disk=spec.disk,
        )  # fmt: skip
        return made.running(engine)

    def running(self, engine: EngineProfile) -> Hardware:
        """The machine with another program; speeds found on another machine are moved to this one.

        Raises `InputError` where the profile names a machine that is none.
        """
        values = vars(self)
        if engine.machine is not None:
            home = _hardware_spec(find(engine.machine, "hardware", "hardware", (".toml",)))
            values, _ = parts(home)
            engine = engine.moved({k: values[k] for k in SPEEDS.values()}, self)
        return replace(self, engine=engine.found_on(values))

    def with_(
        self, *, vram: str | int | None = None, link: str | int | None = None,
        ram: str | int | None = None, reserve: str | int | None = None,
    ) -> Hardware:  # fmt: skip
        """The same machine with another memory size, link or host memory (``--vram 24GiB``,
        ``--link 28GB/s``, ``--ram-bandwidth 60GB/s``, ``--reserve 1GiB``).

        ``link`` becomes the pinned bandwidth of both directions. Zero-copy reads, bound by the
        link, scale with it; pageable copies, bound by the CPU, are only capped by it. ``ram`` is
        what the CPU reads weights with; an engine's own CPU kernels keep their share of it, and
        pageable copies are capped by half of it, since each byte is read and written once more.
        """
        new: dict[str, Any] = {}
        if vram is not None:
            new["vram_bytes"] = units.parse_bytes(vram)
            if new["vram_bytes"] == 0:
                raise InputError("a GPU with no memory cannot run anything; give `vram` above 0")
        if link is not None:
            rate = units.parse_bandwidth(link)
            new |= {"h2d_bytes_per_s": rate, "d2h_bytes_per_s": rate}
            zero_copy = self.zero_copy_bytes_per_s * rate // self.h2d_bytes_per_s
            new["zero_copy_bytes_per_s"] = max(1, zero_copy)
            for key in ("pageable_h2d_bytes_per_s", "pageable_d2h_bytes_per_s"):
                new[key] = min(getattr(self, key), rate)
        if ram is not None:
            read = new["cpu_bytes_per_s"] = units.parse_bandwidth(ram)
            most = max(1, read // PAGEABLE_PASSES)
            for key in ("pageable_h2d_bytes_per_s", "pageable_d2h_bytes_per_s"):
                if new.get(key, getattr(self, key)) > most:
                    new[key] = most
            own = self.engine.cpu_bytes_per_s
            if own is not None and read != self.cpu_bytes_per_s:
                scaled_cpu = max(1, own * read // self.cpu_bytes_per_s)
                told = self.engine.sources | {"cpu_bytes_per_s": "scaled with the host memory"}
                new["engine"] = replace(
                    self.engine, cpu_bytes_per_s=scaled_cpu, machine=None, sources=told
                )
            if self.engine.cpu_experts is not None:
                new["engine"] = new.get("engine", self.engine).with_ram(read, self.cpu_bytes_per_s)
        if reserve is not None:
            new["reserve_bytes"] = units.parse_bytes(reserve)
        note = {
            k: f"given by the user (preset: {_or_none(k, getattr(self, k))})"
            for k in new
            if k != "engine"
        }
        if link is not None and self.uvm is not None:
            scaled = {
                k: max(1, getattr(self.uvm, k) * rate // self.h2d_bytes_per_s)
                for k in ("h2d_bytes_per_s", "d2h_bytes_per_s")
            }
            new["uvm"] = replace(self.uvm, **scaled)
            note |= {f"uvm.{k}": "scaled with the link given by the user" for k in scaled}
        return replace(self, **new, sources=self.sources | note)

    @property
    def free_bytes(self) -> int:
        """Device memory that is left for the run: all but the reserve, at least none."""
        return max(0, self.vram_bytes - (self.reserve_bytes or 0))

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

    # ---- what the engine makes of it -----------------------------------------------------------

    @property
    def reach(self) -> Reach:
        """What the engine's kernels reach here."""
        return self.engine.reach(self)

    def cpu_ns(self, nbytes: int) -> int:
        """The CPU reading (and using) ``nbytes`` of expert weights."""
        return duration_ns(nbytes, self.reach.cpu_bytes_per_s)

    def roofline_ns(self, nbytes: int, flops: int) -> int:
        """The longer of reading expert weights and computing with them, launches not included."""
        reach = self.reach
        read = duration_ns(nbytes, reach.expert_bytes_per_s)
        return max(read, duration_ns(flops, reach.compute_flops))

    # ---- output --------------------------------------------------------------------------------

    def to_toml(self) -> str:
        """A complete description with its engine, which `load` reads back as the same numbers."""
        return as_toml(self)

    def quantities(self) -> list[tuple[str, str, str]]:
        """``(field, value as people write it, source)`` of every quantity of the machine, in file
        order; the engine has its own."""
        words = ("name", "gpu", "summary", "engine", "uvm", "disk", "policy_ns")
        given = {k: getattr(self, k) for k in HardwareSpec.model_fields if k not in words}
        told = [(k, k, v) for k, v in given.items() if v is not None]
        told += [(k, f"uvm.{k}", v) for k, v in self.paging_constants().items()]
        made = [(key, shown(k, v), self.sources.get(key, "")) for k, key, v in told]
        return made + rows(self.policy_ns)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: every field, sources included."""
        d = {k: getattr(self, k) for k in self.__dataclass_fields__}
        for key in ("reserve_bytes", "peer_bytes_per_s", "peer_latency_ns"):
            if d[key] is None:
                del d[key]
        times = d.pop("policy_ns")
        d |= {"policy_ns": plain(times)} if times else {}
        if d.pop("disk") is not None:
            assert self.disk is not None
            d["disk"] = self.disk.to_spec()
        return d | {"uvm": self.paging_constants() or None, "engine": self.engine.to_json()}

    def paging_constants(self) -> dict[str, Any]:
        """The paging driver's constants by name, those that are said; empty where there are none."""
        found = vars(self.uvm) if self.uvm else {}
        return {k: v for k, v in found.items() if v or k not in UNSAID}

    def numbers(self) -> dict[str, Any]:
        """Every number a run depends on, one name each: the engine's where it has one.

        It does not matter who a number belongs to, nor where it comes from: what has the same
        numbers gives the same results.
        """
        words = ("sources", "summary", "gpu", "engine")
        mine = {k: v for k, v in self.to_json().items() if k not in words}
        if not self.reserve_bytes:  # nothing kept is what there was before one could keep any
            mine.pop("reserve_bytes", None)
        if self.policy_ns:
            mine["policy_ns"] = plain(self.policy_ns, sources=False)
        engine = self.engine.numbers()
        reach = self.reach
        return mine | engine | {
            "memory_bytes_per_s": reach.expert_bytes_per_s,
            "compute_flops": reach.compute_flops,
            "cpu_bytes_per_s": reach.cpu_bytes_per_s,
        }  # fmt: skip


# ---- files --------------------------------------------------------------------------------------


def _hardware_spec(path: Path, above: tuple[Path, ...] = ()) -> HardwareSpec:
    """The checked description at ``path`` with its engine: named, or a table of the same file.

    What a file with a ``base`` does not say is the base's. ``above``: files whose base this is.
    """

    def prepare(data: dict[str, Any]) -> dict[str, Any]:
        if isinstance(data.get("engine"), str):
            try:
                data = data | {"engine": engine_spec(data["engine"], path.parent)}
            except InputError as err:
                data = data | {"engine": err}
        if "base" not in data:
            return from_old(data)
        base = _base(data["base"], path, (*above, path.resolve()))
        return in_full({k: v for k, v in data.items() if k != "base"}, written(base), path.stem)

    hint = '; or say base = "PRESET" and only what differs'
    made = read(path, HardwareSpec, prepare, hint)
    if made.engine.summary == OLD_SUMMARY:
        note_once(
            f"{path}: engine costs stand among the machine's; read as an [engine] table "
            "(`uvmsim calibrate` writes one)"
        )
    return made


def _base(spec: Any, path: Path, above: tuple[Path, ...]) -> Hardware:
    """The machine that ``base`` of the file at ``path`` names; paths are relative to the file."""
    if not isinstance(spec, str):
        raise InputError(f"{path}: base: must be the name of a preset, or a file, in quotes")
    try:
        name, parts_of_it = split(spec)
        if name == AUTO:
            made = Hardware.detect()
        else:
            file = find(beside(name, path.parent), "hardware", "hardware", (".toml",))
            if file.resolve() in above:
                raise InputError(f"{spec} is based on this file itself; name a preset")
            made = Hardware.from_spec(_hardware_spec(file, above))
        for part in parts_of_it:
            made = fitted(made, part)
    except InputError as err:
        raise InputError(f"{path}: base: {err}") from None
    return made


PAGEABLE_PASSES = 2
"""Times that a byte of a pageable copy crosses host memory at least: read, then written to (or read
from) the driver's pinned buffer."""


def _or_none(key: str, value: Any) -> str:
    return "none" if value is None else shown(key, value)
