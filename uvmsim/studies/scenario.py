"""The question that all studies share: which trace, which model on which machine, which policies."""

from __future__ import annotations

import copy
import difflib
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from traces.errors import InputError
from uvmsim.clocks import CLOCKS
from uvmsim.runs.splits import SPLITS

if TYPE_CHECKING:
    from traces.routing import RoutingTrace
    from uvmsim.machine.hardware import Hardware
    from uvmsim.machine.model import Model
    from uvmsim.policies.base import Policy
    from uvmsim.policies.pages.phases import PhasedPolicy
    from uvmsim.policies.registry import PolicySpec

    Machine: TypeAlias = str | os.PathLike[str] | Hardware
    AnyPolicy: TypeAlias = str | Policy | type[Policy] | PolicySpec | PhasedPolicy | tuple[Any, Any]

Progress = Callable[[int, int, str], None]
"""Called with (runs done, runs in all, what runs next)."""

Size = str | int | float

DEFAULT_HARDWARE = "rtx5090"
MOST_GPUS = 16
POOLS, UNITS, RESETS = ("global", "per-layer"), ("event", "access"), ("never", "sequence")


@dataclass(frozen=True, eq=False, repr=False)
class Scenario:
    """What is asked. Every field may be left out; None stands for the study's own default.

    Nothing is read and nothing is run before a study is asked for (`compare`, `mrc`, `replay`,
    `sweep`, `llama_bench`, `microbench`); a study uses the fields that bear on it. Two scenarios are
    equal if they ask the same: a trace in memory is what it holds, a policy its class and parameters.
    They can be pickled, as far as their policies can.

    Raises `InputError` where a value can mean nothing; ``argument`` of the error is the field.
    """

    trace: str | os.PathLike[str] | RoutingTrace | None = None
    """A file, or a trace in memory; None: the bundled one."""
    model: str | os.PathLike[str] | Model | None = None
    """A preset (``uvmsim models``), a TOML or GGUF file; None: the trace's own."""
    expert_size: str | int | float | None = None
    """Of one expert: bytes, ``"13.2MB"``, or a preset whose expert's size is meant; everything else is
    scaled along."""
    hardware: Machine | Sequence[Machine] | None = None
    """A preset (``uvmsim hardware``), perhaps with parts (``"rtx3090+pcie3"``), a TOML file, or
    ``"auto"``; several where machines are compared. None: rtx5090, in replay h100."""
    program: str | os.PathLike[str] | None = None
    """What runs on it: a preset (``uvmsim hardware``) or a TOML file; None: the hardware's own."""
    vram: str | int | float | None = None
    """Device memory instead of the hardware's: bytes, or ``"16GiB"``."""
    link: str | int | float | None = None
    """Link bandwidth instead of the hardware's: bytes a second, or ``"28GB/s"``."""
    ram_bandwidth: str | int | float | None = None
    """What the CPU reads weights with instead of the hardware's: bytes a second, or ``"60GB/s"``."""
    reserve: str | int | float | None = None
    """Device memory that something else uses: bytes, or ``"1GiB"``; None: the hardware's own."""
    ctx: int | None = None
    """Tokens that the KV cache has room for; None: what the trace needs."""
    kv_type: str | None = None
    """Type of the KV cache (``f16``, ``q8_0``, ``q4_0``, ...); None: the model's own."""
    slots: Size | Iterable[Size] = ()
    """Sizes of the expert pool, one or several: a whole number of experts, a share of all experts as a
    float (0.25) or as text (``"25%"``). None given: what device memory holds."""
    mechanisms: str | Iterable[str] | None = None
    """How a missing byte is served, one or several; None: expert-cache."""
    policies: AnyPolicy | Sequence[AnyPolicy] | None = None
    """One or several: names (``"lru"``, ``"lfu+next-layer"``, ``"./mine.py:MyPolicy"``), classes,
    instances with their parameters set, or a pair (who evicts, who prefetches) of these. None: the
    study's defaults for each mechanism."""
    pool: str | None = None
    """``global`` or ``per-layer``; None: global."""
    unit: str = "event"
    """A layer's experts at once (``event``), or one by one (``access``)."""
    reset: str = "never"
    """When the pool is emptied: ``never``, or before each ``sequence``."""
    write_back: bool = False
    """Copy evicted experts back to the host."""
    pageable: bool = False
    """Host memory is not pinned."""
    ncmoe: int | Sequence[int] | None = None
    """cpu-offload: layers kept on the CPU, one number or several; None: all."""
    profile: str | os.PathLike[str] | RoutingTrace | None = None
    """A trace that policies learn from."""
    state: str | os.PathLike[str] | None = None
    """What policies have learned before (a file that ``state_out`` made): those that it knows run with
    it, in `compare` from nothing too."""
    state_out: str | os.PathLike[str] | None = None
    """`compare`: a file to save in what policies have learned by the end."""
    batch: int | Sequence[int] | None = None
    """Sequences of the trace that are decoded side by side, one number or several. None: the trace's
    own steps."""
    draft: str | Sequence[str] | None = None
    """Speculative decoding: ``"3:0.8"`` drafts three tokens a step, each accepted with probability 0.8
    if those before it were; ``"0"``: none; one or several."""
    draft_reject: str | None = None
    """Whose routing a rejected draft has: ``true``, the true token's of its place, or ``random``, any
    decoded token's. None: true."""
    draft_cost: str | float | None = None
    """GPU time to draft a token: a share of a forward pass with all experts resident (0.05), or a time
    (``"1.5ms"``). None: nothing."""
    limit: int | None = None
    """Use the first tokens of the trace."""
    seed: int = 0
    threshold: int = 51
    """uvm: the density prefetcher's, in %."""
    prefetch_pieces: str | int | float | None = None
    """expert-cache: move prefetches in pieces of so many bytes (``"4MiB"``), held back while demand
    copies are queued; those that are waited for go first. None: as whole experts, in their order."""
    ram: str | int | float | None = None
    """Host memory that holds experts, above the disk that ``tier`` says: bytes, or ``"6GiB"``."""
    tier: str | None = None
    """expert-cache: a disk below host memory, ``"nvme:7GB/s,80us,qd=32,mode=direct"`` (docs/tiers.md),
    or a name alone, for the hardware's own ``[disk]``. None: host memory holds every expert."""
    tier_policy: AnyPolicy | None = None
    """Who leaves host memory; None: LRU."""
    scratch: int | None = None
    """Expert places beside the pool, for policies that choose what becomes of a miss
    (``lrfu:bypass=1``); they count against device memory. None: as many as a token uses in a layer."""
    behind: bool | None = None
    """hybrid: what the CPU computes is copied in behind where the link would rest. None: yes."""
    policy_time: bool | None = None
    """Measure what each policy's hooks take on this machine, and add it to each layer's decision;
    speeds then differ a little from run to run. None: no."""
    engine: str = "fast"
    """The compiled clock (``fast``), or the SimPy model (``des``)."""
    gpus: int | None = None
    """Cards of the hardware's kind; ``slots`` and ``vram`` are of each (`compare`, `replay`). None:
    one."""
    split: str | None = None
    """How they share the model: ``layers``, ``experts``, ``experts:popularity`` or ``pool``; None:
    layers."""
    peer: str | None = None
    """The way between two cards: ``nvlink`` or ``pcie``, perhaps with rate and latency
    (``"nvlink:400GB/s:8us"``). None: pcie, as fast as the host's link."""
    shared_link: bool | None = None
    """All cards copy from the host through one link. None: each through its own."""
    neighbour: str | Iterable[str] | None = None
    """Traces of models on the same card, one or several: a path, perhaps with ``:model=M`` and
    ``:share=40%`` (of the slots) (`compare`)."""
    budget: str | Iterable[str] | None = None
    """How slots are shared with neighbours: ``shared``, or a share each, the trace's own first
    (``"60%,40%"``). None: as ``share`` says, else shared."""

    def __post_init__(self) -> None:
        for name, tidy in _TIDY.items():
            try:
                object.__setattr__(self, name, tidy(getattr(self, name)))
            except InputError as err:
                if err.argument is not None:  # says itself which of several values it is
                    raise
                raise InputError(f"{getattr(self, name)}: {err}", argument=name) from None
        for name, allowed in (("pool", (None, *POOLS)), ("unit", UNITS), ("reset", RESETS)):
            if getattr(self, name) not in allowed:
                known = " or ".join(str(x) for x in allowed if x is not None)
                raise InputError(f"{getattr(self, name)}: must be {known}", argument=name)
        if self.seed < 0:
            raise InputError(f"{self.seed}: must be 0 or more", argument="seed")
        if not 1 <= self.threshold <= 100:
            raise InputError(f"{self.threshold}: a share in %, 1 to 100", argument="threshold")
        if self.ctx is not None and self.ctx <= 0:
            raise InputError(f"{self.ctx}: give a number of tokens above 0", argument="ctx")
        if self.limit is not None and self.limit <= 0:
            raise InputError(f"{self.limit}: give a number of tokens above 0", argument="limit")
        if (self.ram is None) != (self.tier is None):
            missing, given = ("ram", "tier") if self.ram is None else ("tier", "ram")
            example = "6GiB" if missing == "ram" else "nvme:7GB/s,80us"
            raise InputError(
                f": says nothing without `{missing}`; give both, such as `{missing}` {example}",
                given,
            )
        if self.tier_policy is not None and self.tier is None:
            raise InputError(": is for host memory above a disk; give `tier`, too", "tier_policy")
        if self.scratch is not None and self.scratch < 0:
            raise InputError(f"{self.scratch}: must be 0 or more", argument="scratch")
        self._check_gpus()
        if self.budget and not self.neighbour:
            raise InputError(
                f"{','.join(self.budget)}: is of several models; give `neighbour` TRACE", "budget"
            )

    def _check_gpus(self) -> None:
        if self.gpus is not None and not 1 <= self.gpus <= MOST_GPUS:
            raise InputError(f"{self.gpus}: give 1 to {MOST_GPUS}", argument="gpus")
        if self.split not in (None, *SPLITS):
            raise InputError(f"{self.split}: must be one of {', '.join(SPLITS)}", argument="split")
        for name in ("split", "peer", "shared_link"):
            if getattr(self, name) and (self.gpus or 1) == 1:
                raise InputError(f"{getattr(self, name)}: is of several GPUs; give `gpus` 2", name)

    # ---- the same question ----------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scenario):
            return NotImplemented
        return self._asks() == other._asks()

    def __hash__(self) -> int:
        return hash(repr(self._asks()))

    def __repr__(self) -> str:
        told = [f"{k}={_shown(v)}" for k, v in self._given()]
        return f"Scenario({', '.join(told)})"

    def _asks(self) -> tuple[Any, ...]:
        """Equal for equal questions."""
        return tuple(_identity(v) for v in vars(self).values())

    def _given(self) -> list[tuple[str, Any]]:
        """Fields that differ from their defaults."""
        found = ((f.name, f.default, getattr(self, f.name)) for f in fields(self))
        return [(k, v) for k, default, v in found if _identity(v) != _identity(default)]

    # ---- variants -------------------------------------------------------------------------------

    def with_(self, **changes: Any) -> Scenario:
        """The same question but for some fields."""
        for name in changes:
            if name not in self.__dataclass_fields__:
                near = difflib.get_close_matches(name, self.__dataclass_fields__, 1)
                hint = f"did you mean {near[0]!r}?" if near else "see help(uvmsim.Scenario)"
                raise InputError(f"a Scenario has no field {name!r}; {hint}")
        return replace(self, **changes)

    def or_else(self, **defaults: Any) -> Scenario:
        """The same question with a study's defaults in place of what was left out."""
        mine = {k: v for k, v in defaults.items() if getattr(self, k) in (None, ())}
        return replace(self, **mine) if mine else self

    def to_json(self) -> dict[str, Any]:
        """What was asked for; what was left out and has no default is left out."""
        asked = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        return {k: v for k, v in asked.items() if v is not None}

    # ---- studies --------------------------------------------------------------------------------

    def compare(self, progress: Progress | None = None) -> Any:
        """`uvmsim.compare` of this."""
        return _study("compare")(self, progress)

    def mrc(self, **how: Any) -> Any:
        """`uvmsim.mrc` of this."""
        return _study("mrc")(self, **how)

    def sweep(self, axes: dict[str, Any], **how: Any) -> Any:
        """`uvmsim.sweep` of this."""
        return _study("sweep")(self, axes, **how)

    def replay(self, **how: Any) -> Any:
        """`uvmsim.replay` of this."""
        return _study("replay")(self, **how)


def _study(name: str) -> Any:
    """A study by the name that the front door knows it under: studies know scenarios, and not the
    other way round."""
    return getattr(import_module("uvmsim"), name)


def scenario_of(asked: Any) -> Scenario:
    """A scenario, or that of a trace alone."""
    return asked if isinstance(asked, Scenario) else Scenario(asked)


# ---- how values are kept: paths as text, one as several ---------------------------------------------


def _path(value: Any) -> Any:
    """A path as text; what is no path stays."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _trace(value: Any) -> Any:
    value = _path(value)
    if value is None or isinstance(value, str) or hasattr(value, "sha256"):
        return value
    raise InputError("give a path or a RoutingTrace (uvmsim.open_trace, uvmsim.routing)")


def _described(value: Any) -> Any:
    value = _path(value)
    if value is None or isinstance(value, str) or hasattr(value, "to_json"):
        return value
    raise InputError("give a preset's name, a path, or what uvmsim.machine loads from one")


def _number(value: Any) -> Any:
    """Text stays text; a number is a whole one."""
    from uvmsim.core.units import parse_bytes

    if value is None or isinstance(value, str):
        return value
    return parse_bytes(value if isinstance(value, float) else _whole(value))


def _whole(value: Any) -> Any:
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError("must be a whole number") from None


def _sizes(value: Any) -> tuple[str, ...]:
    """Pool sizes as text: ``96`` or ``25%``."""
    return tuple(_size(x) for x in _several(value))


def _size(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) or "float" in type(value).__name__:
        if not 0 < value <= 1:
            raise InputError(
                "a float is a share, above 0 and up to 1.0; give a whole number of experts"
            )
        return f"{float(value) * 100:.12g}%"
    return str(_whole(value))


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)


def _names(value: Any) -> tuple[str, ...] | None:
    names = _several(value)
    if not all(isinstance(x, str) for x in names):
        raise InputError("give names")
    return names or None


def _budget(value: Any) -> tuple[str, ...] | None:
    return _names([x.strip() for text in _names(value) or () for x in text.split(",")])


def _policies(value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    given = value if isinstance(value, list | tuple) else (value,)
    return tuple(_policy(x) for x in given)


def _policy(value: Any) -> Any:
    """An instance is copied, so that what is asked does not change under way."""
    if isinstance(value, str | type):
        return value
    return tuple(_policy(x) for x in value) if type(value) is tuple else copy.copy(value)


def _one_policy(value: Any) -> Any:
    if isinstance(value, list) or (isinstance(value, tuple) and len(value) != 2):
        raise InputError("give one policy")
    return None if value is None else _policy(value)


def _tier(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError("write it like nvme:7GB/s,80us,qd=32,mode=direct")
    return value


def _machines(value: Any) -> Any:
    """One machine as itself, several as a tuple."""
    if isinstance(value, list | tuple):
        return _one_or_several(tuple(_described(x) for x in value))
    return _described(value)


def _layers(value: Any) -> Any:
    """One number of layers as itself, several as a tuple."""
    numbers = _one_or_several(tuple(_whole(x) for x in _several(value)))
    if any(n is not None and n < 0 for n in _several(numbers)):
        raise InputError("must be 0 or more")
    return numbers


def _one_or_several(values: tuple[Any, ...]) -> Any:
    different = tuple(v for i, v in enumerate(values) if v not in values[:i])
    return different if len(different) > 1 else (*different, None)[0]


def _batches(value: Any) -> Any:
    numbers = _one_or_several(tuple(_whole(x) for x in _several(value)))
    for n in _several(numbers):
        if n is not None and n < 1:
            raise InputError(f"{n}: give a number of sequences, 1 or more", argument="batch")
    return numbers


def _drafts(value: Any) -> Any:
    if value is None:
        return None
    from traces.routing.drafts import Draft

    if not all(isinstance(x, str) for x in _several(value)):
        raise InputError("give text such as '3:0.8'")
    try:
        return _one_or_several(tuple(str(Draft.parse(x) or 0) for x in _several(value)))
    except InputError as err:
        raise InputError(str(err), argument="draft") from None


def _draft_reject(value: Any) -> Any:
    if value is None:
        return None
    from traces.routing.drafts import REJECTS

    if value not in REJECTS:
        raise InputError(f"must be {' or '.join(REJECTS)}")
    return value


def _draft_cost(value: Any) -> Any:
    if value is None:
        return None
    from uvmsim.runs.decoding import DraftCost

    try:
        return DraftCost.parse(value).to_json()
    except InputError as err:
        raise InputError(str(err), argument="draft_cost") from None


def _kv_type(value: Any) -> Any:
    from uvmsim.machine.model import KV_TYPES

    if value is not None and (not isinstance(value, str) or value.lower() not in KV_TYPES):
        raise InputError(f"must be one of {', '.join(KV_TYPES)}")
    return value and value.lower()


def _engine(value: Any) -> str:
    if value not in CLOCKS:
        raise InputError(f"must be one of {', '.join(CLOCKS)}")
    return str(value)


def field_as_kept(name: str, values: Any) -> Any:
    """Values for a field, one or several, each as the field keeps it."""
    if name in ("slots", "mechanisms", "policies"):
        return _TIDY[name](values)
    tidy = _TIDY.get(name, lambda x: x)
    return [tidy(x) for x in values] if isinstance(values, list | tuple) else [tidy(values)]


_TIDY: dict[str, Callable[[Any], Any]] = {
    "trace": _trace, "profile": _trace, "model": _described, "hardware": _machines,
    "program": _path, "state": _path, "state_out": _path,
    "expert_size": _number, "vram": _number, "link": _number,
    "ram_bandwidth": _number, "prefetch_pieces": _number, "reserve": _number, "ram": _number,
    "tier": _tier, "tier_policy": _one_policy, "ctx": _whole,
    "kv_type": _kv_type, "slots": _sizes,
    "mechanisms": _names, "policies": _policies, "write_back": bool, "pageable": bool,
    "batch": _batches, "draft": _drafts, "draft_reject": _draft_reject, "draft_cost": _draft_cost,
    "ncmoe": _layers, "limit": _whole, "seed": _whole, "scratch": _whole,
    "threshold": _whole, "engine": _engine, "gpus": _whole,
    "neighbour": _names, "budget": _budget,
}  # fmt: skip


# ---- what values are ------------------------------------------------------------------------------


def _identity(value: Any) -> Any:
    """What two values must have in common to ask the same."""
    if isinstance(value, tuple):
        return tuple(_identity(x) for x in value)
    if value is None or isinstance(value, str | int | float):
        return (type(value).__name__, value)
    if hasattr(value, "sha256"):
        return ("trace", value.sha256, value.meta.to_bytes(), str(value.path), value.complete)
    if hasattr(value, "to_json"):
        return (type(value).__name__, repr(sorted(vars(value).items())))
    if not hasattr(value, "state"):  # a spec: named policies, made
        return (type(value).__name__, *(_identity_of_part(v) for v in vars(value).values()))
    from uvmsim.policies.registry import parameters

    cls = value if isinstance(value, type) else type(value)
    own = {} if cls is value else vars(value)
    told = {k: getattr(value, k, None) for k in (*parameters(cls), *own)}
    return (cls, *((k, _identity_of_part(v)) for k, v in sorted(told.items())))


def _identity_of_part(value: Any) -> Any:
    """Of a policy's parameter, or of a spec's policy."""
    return _identity(value) if hasattr(value, "state") else repr(value)


def name_of(policy: Any) -> str:
    """What a policy is called that was given by name, class or instance."""
    if isinstance(policy, str):
        return policy
    if isinstance(policy, tuple):
        return "+".join(name_of(x) for x in policy)
    if isinstance(policy, type):
        return str(getattr(policy, "name", "") or policy.__name__)
    if not hasattr(policy, "state"):
        return str(policy.name)  # a spec
    from uvmsim.policies.registry import name_of as with_parameters

    return with_parameters(policy)


def trace_name(trace: Any) -> str | None:
    """Where a trace comes from, in a word."""
    if trace is None or isinstance(trace, str):
        return trace
    return str(trace.path) if trace.path else f"in memory, sha256 {trace.sha256[:12]}"


def plain(value: Any) -> Any:
    """A field in JSON's types."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple):
        return tuple(x if isinstance(x, str | int | float) else name_of(x) for x in value)
    return trace_name(value) if hasattr(value, "sha256") else value.name


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(x) for x in value)}]"
    if isinstance(value, str | int | float):
        return repr(value)
    if hasattr(value, "sha256"):
        return f"<trace {Path(value.path).name if value.path else 'in memory'}>"
    return name_of(value)
