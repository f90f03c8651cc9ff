"""Names to policies: every module of this folder, plug-ins, and users' own files.

`parse` reads ``EVICTION[:key=value...][+PREFETCH[:key=value...]]``; either part may be
``./mine.py:MyPolicy``. `spec_of` also takes classes and instances.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeVar

from traces.errors import InputError
from uvmsim.policies import user_files
from uvmsim.policies.base import Eviction, Policy, Prefetch

CONTRACT = (
    "base",
    "registry",
    "saved",
    "user_files",
    "bitset",
    "lists",
    "heaps",
    "layer_heaps",
    "queues",
    "rings",
)

BYPASS = "bypass"
"""What may be set of every eviction policy beside its own parameters."""

OBJECT = ".o"
"""What a compiled eBPF object's name ends with."""

P = TypeVar("P", bound=Policy)


@dataclass(frozen=True)
class PolicySpec:
    """An eviction policy, and maybe a prefetcher, with their parameters set."""

    name: str
    eviction: Eviction
    prefetch: Prefetch | None
    files: tuple[str, ...] = ()
    """Users' own files among them; of a class that was given as such, what it is called."""

    @property
    def needs(self) -> frozenset[str]:
        return self.eviction.needs | (self.prefetch.needs if self.prefetch else frozenset())


def chooses(spec: PolicySpec) -> bool:
    """Whether something else than an insertion may become of a miss."""
    return spec.eviction.bypass or asks(spec)


def asks(spec: PolicySpec) -> bool:
    """Whether the policy has a word of its own in that."""
    return type(spec.eviction).on_miss is not Eviction.on_miss


@dataclass(frozen=True)
class Kind:
    """What a name may stand for: the experts' policies, or the driver's page policies."""

    noun: str
    bases: tuple[type[Policy], ...]
    """A policy derives from one of these."""
    hooks: Mapping[type[Policy], tuple[str, ...]]
    """The hooks of each."""
    known: Mapping[str, type[Policy]]


def experts_kind() -> Kind:
    """Policies of experts: those that evict and those that prefetch."""
    bases = (Eviction, Prefetch)
    return Kind("policy", bases, {b: ("on_event", *_static(b)) for b in bases}, builtin())


@functools.cache
def builtin() -> dict[str, type[Policy]]:
    """All named policies: one class a name, found by looking, not by a list."""
    return discover(importlib.import_module("uvmsim.policies"), "uvmsim.policies", Policy, CONTRACT)


def discover(
    folder: ModuleType, group: str, base: type[P], skip: Iterable[str]
) -> dict[str, type[P]]:
    """Named classes derived from ``base`` in a package's modules (not in packages below it), and in
    the entry points of ``group``."""
    found: dict[str, type[P]] = {}
    for info in pkgutil.iter_modules(folder.__path__):
        if info.name not in skip and not info.ispkg:
            _collect(importlib.import_module(f"{folder.__name__}.{info.name}"), base, found)
    for ep in entry_points(group=group):
        cls = ep.load()
        found[cls.name] = cls
    return dict(sorted(found.items()))


def _collect(module: ModuleType, base: type[P], found: dict[str, type[P]]) -> None:
    for cls in vars(module).values():
        if (
            isinstance(cls, type)
            and issubclass(cls, base)
            and cls.__module__ == module.__name__
            and cls.name
        ):
            if cls.name in found and found[cls.name] is not cls:
                raise RuntimeError(
                    f"two policies are called {cls.name!r}: {found[cls.name]}, {cls}"
                )
            found[cls.name] = cls


def parse(text: str) -> PolicySpec:
    """The policies named by ``text``; raises `InputError` with the nearest name that exists. What is
    no text is taken as `spec_of` does."""
    if not isinstance(text, str):
        return spec_of(text)
    parts = text.split("+")
    if len(parts) > 2 or not all(parts):
        raise InputError(f"policy {text!r}: expected EVICTION or EVICTION+PREFETCH")
    eviction: Eviction | None = None
    prefetch: Prefetch | None = None
    files = []
    kind = experts_kind()
    for part in parts:
        policy, file = make(part, kind)
        if file:
            files.append(file)
        if isinstance(policy, Eviction):
            if eviction:
                raise InputError(
                    f"policy {text!r}: two eviction policies; the second must prefetch"
                )
            eviction = policy
        else:
            prefetch = typing.cast(Prefetch, policy)
    if eviction is None:
        raise InputError(f"policy {text!r}: only prefetches; say who leaves, e.g. lru+{text}")
    return PolicySpec(text, eviction, prefetch, tuple(files))


def spec_of(policy: Any) -> PolicySpec:
    """The policies meant by a name (as for `parse`), a class, an instance with its parameters set, or
    a pair of these: one that evicts and one that prefetches. Raises `InputError`."""
    if isinstance(policy, PolicySpec):
        return policy
    if isinstance(policy, str):
        return parse(policy)
    parts = policy if isinstance(policy, tuple) else (policy,)
    kind = experts_kind()
    made = [made_of(part, kind) for part in parts]
    name = "+".join(name_of(p) for p, _ in made)
    evicts: list[Eviction] = [p for p, _ in made if isinstance(p, Eviction)]
    fetches: list[Prefetch] = [p for p, _ in made if isinstance(p, Prefetch)]
    if len(evicts) != 1 or len(fetches) > 1:
        raise InputError(f"policy {name!r}: give one that evicts, and at most one that prefetches")
    files = tuple(file for _, file in made if file)
    return PolicySpec(name, evicts[0], fetches[0] if fetches else None, files)


def made_of(policy: Any, kind: Kind) -> tuple[Any, str | None]:
    """As `make`, of a name, a class or an instance; ``file`` is then what a user's class is called."""
    if isinstance(policy, str):
        return make(policy, kind)
    cls = policy if isinstance(policy, type) else type(policy)
    if not issubclass(cls, kind.bases):
        names = " or ".join(b.__name__ for b in kind.bases)
        raise InputError(f"{kind.noun} {policy!r}: give a name, or a class derived from {names}")
    told = None
    if cls.__module__.partition(".")[0] not in user_files.OURS:
        told = cls.__qualname__
        _check_hooks(f"policy {told}", cls, kind)
    return (cls() if policy is cls else policy), told


def name_of(policy: Policy) -> str:
    """The name of a policy with the parameters that were set: ``lru-k:k=3``."""
    cls = type(policy)
    given = {k: getattr(policy, k, None) for k in parameters(cls)}
    if isinstance(policy, Eviction):
        given[BYPASS] = policy.bypass
    told = [f":{k}={v}" for k, v in given.items() if v != getattr(cls, k, None)]
    return (cls.name or cls.__name__) + "".join(told)


def _static(base: type) -> tuple[str, ...]:
    return tuple(k for k, v in vars(base).items() if isinstance(v, staticmethod))


def make(part: str, kind: Kind) -> tuple[Any, str | None]:
    """A policy with its parameters set, and the user's file it came from, if any."""
    noun = kind.noun
    head, *settings = part.split(":")
    file = None
    if head.endswith(OBJECT):
        from uvmsim.policies.bpf import policy as bpf

        if not issubclass(bpf.BpfPolicy, kind.bases):
            raise InputError(f"policy {head}: an eBPF object is a page policy, for mechanism uvm")
        return bpf.load(head, settings), head
    if head.endswith(".py"):
        if not settings:
            raise InputError(f"{noun} {part!r}: say which class, e.g. {head}:MyPolicy")
        file = head
        cls = _load_user(head, settings.pop(0), kind)
        _check_hooks(f"policy file {head}", cls, kind)
    else:
        if head not in kind.known:
            near = difflib.get_close_matches(head, kind.known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{noun} {head!r} is not known{hint} (`uvmsim policies` lists all; page policies "
                "are for mechanism uvm, the others for expert-cache)"
            )
        cls = kind.known[head]
    policy = cls()
    hints = parameters(cls)
    for setting in settings:
        key, eq, value = setting.partition("=")
        if key == BYPASS and eq and key not in hints and isinstance(policy, Eviction):
            setattr(policy, key, _convert(f"{noun} {head!r}", key, value, bool))
            continue
        if not eq or key not in hints:
            names = ", ".join(hints) or "none"
            raise InputError(f"{noun} {head!r}: no parameter {key!r}; it has: {names}")
        setattr(policy, key, _convert(f"{noun} {head!r}", key, value, hints[key]))
    return policy, file


def _check_hooks(whose: str, cls: type[Policy], kind: Kind) -> None:
    """A misspelt hook would never be called, and nobody would notice."""
    base = next(b for b in kind.bases if issubclass(cls, b))
    hooks = kind.hooks[base]
    other = {k for b in base.__mro__ for k in _static(b)} - set(hooks)
    known = [k for k in dir(base) if not k.startswith("_") and k not in other]
    for name, value in vars(cls).items():
        if isinstance(value, staticmethod) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{whose}: {cls.__name__}.{name} is no hook; {hint}hooks are "
                f"{', '.join(hooks)} (a function of your own goes outside the class)"
            )
        if name in hooks:
            _check_signature(whose, cls, base, name, value)


def _check_signature(whose: str, cls: type, base: type, name: str, value: Any) -> None:
    """A hook is static and takes what the base class's does."""
    if not isinstance(value, staticmethod):
        raise InputError(
            f"{whose}: {cls.__name__}.{name}: hooks are static; put @staticmethod above it"
        )
    wanted = list(inspect.signature(getattr(base, name)).parameters)
    given = list(inspect.signature(value.__func__).parameters)
    if len(given) != len(wanted):
        raise InputError(
            f"{whose}: {cls.__name__}.{name} takes ({', '.join(wanted)}), this one takes "
            f"({', '.join(given)})"
        )


def parameters(cls: type[Policy]) -> dict[str, Any]:
    """Parameter names of a policy class and their types."""
    hints = typing.get_type_hints(cls)
    return {k: t for k, t in hints.items() if typing.get_origin(t) is not typing.ClassVar}


def _convert(whose: str, key: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() in ("1", "true", "yes", "on"):
            return True
        if value.lower() in ("0", "false", "no", "off"):
            return False
    else:
        try:
            return kind(value)
        except ValueError:
            pass
    raise InputError(f"{whose}: {key}={value!r} is not {_kind_name(kind)}")


def _kind_name(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "yes or no"}.get(kind, kind.__name__)


def _load_user(path: str, name: str, kind: Kind) -> type[Policy]:
    module = user_files.load(path)
    cls = getattr(module, name, None)
    if not (isinstance(cls, type) and issubclass(cls, kind.bases)):
        there = [k for k, v in vars(module).items() if _is_own(v, module.__name__, kind)]
        raise InputError(
            f"policy file {path}: no {kind.noun} class {name!r}; it has: {', '.join(there) or 'none'}"
        )
    return cls


def _is_own(value: Any, module_name: str, kind: Kind) -> bool:
    own = isinstance(value, type) and issubclass(value, kind.bases)
    return own and value.__module__ == module_name
