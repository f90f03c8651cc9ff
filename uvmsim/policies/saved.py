"""What policies have learned, in a file: saved at the end of a run, given to another of the same model.

An Arrow file of one row an array, with the model it was learned on and a version in its schema, written
whole or not at all. A policy says itself what of its state is knowledge (`Policy.knowledge`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import InputError
from traces.files.ipc import IpcFile, IpcWriter, check_free, read_ipc
from traces.files.schema import META_KEY
from uvmsim.policies.base import Policy
from uvmsim.policies.registry import PolicySpec, parameters
from uvmsim.version import __version__

SCHEMA = "uvmsim.state"
VERSION = 1
DTYPES = frozenset(
    f"{order}{kind}" for order, kinds in (("<", "f4 f8 i2 i4 i8 u2 u4 u8"), ("|", "i1 u1 b1"))
    for kind in kinds.split()
)  # fmt: skip
"""Types of arrays that a file may hold."""
COLUMNS = pa.schema(
    [
        ("policy", pa.utf8()), ("version", pa.int32()), ("parameters", pa.utf8()),
        ("slots", pa.int64()), ("array", pa.utf8()), ("dtype", pa.utf8()),
        ("shape", pa.list_(pa.int64())), ("data", pa.large_binary()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The model whose routing was learned from."""

    name: str
    layers: int
    """MoE layers."""
    experts: int
    top_k: int

    def __str__(self) -> str:
        return f"{self.name} ({self.layers} MoE layers x {self.experts} experts, top-{self.top_k})"


@dataclass(frozen=True)
class Saved:
    """What one policy knew at the end of one run."""

    policy: str
    version: int
    """`Policy.knowledge_version`."""
    parameters: Mapping[str, Any]
    """Those it depends on."""
    slots: int
    """Of the pool that it ran with: of several that fit, the nearest is taken."""
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class State:
    """A state file: what policies have learned on one model."""

    path: str
    model: Shape
    saved: tuple[Saved, ...]

    def knows(self, spec: PolicySpec) -> bool:
        """Whether it has something for a policy, or for a part of it."""
        return any(self._named(p) for p in learning(spec))

    def lacks(self, spec: PolicySpec) -> list[str]:
        """Parts of a policy that learn, and of which it has nothing."""
        return [called(p) for p in learning(spec) if not self._named(p)]

    def of(self, policy: Policy) -> list[Saved]:
        """What it has of a policy: nothing, or one for each size of the pool. Raises `InputError` where
        all that it has is of other parameters or another version."""
        named = self._named(policy)
        if not named:
            return []
        name, wanted = called(policy), depends(policy)
        fitting = [s for s in named if s.version == policy.knowledge_version]
        if not fitting:
            raise InputError(
                f"{self.path}: holds version {named[0].version} of {name}, and this is version "
                f"{policy.knowledge_version}; save it again with `state_out`"
            )
        same = [s for s in fitting if s.parameters == wanted]
        if not same:
            has = " or ".join(dict.fromkeys(_told(s.parameters) for s in fitting))
            raise InputError(
                f"{self.path}: holds {name} with {has}, and this is {name} with {_told(wanted)}; "
                "save that with `state_out`"
            )
        return same

    def give(self, policy: Policy, state: Any, slots: int) -> None:
        """Let a new state of ``policy`` begin with what is known; nothing happens where the file has
        nothing of it. Raises `InputError` where what it has does not fit."""
        same = self.of(policy)
        if not same:
            return
        name = called(policy)
        nearest = min(same, key=lambda s: abs(math.log(max(s.slots, 1) / max(slots, 1))))
        mine = policy.knowledge(state)
        for array, have in mine.items():
            found = nearest.arrays.get(array)
            if found is None or found.shape != have.shape or found.dtype != have.dtype:
                raise InputError(
                    f"{self.path}: {array} of {name} is {_shape(found)}, this run needs {_shape(have)}"
                )
        try:
            policy.recall(state, nearest.arrays)
        except InputError as err:
            raise InputError(f"{self.path}: {name}: {err}") from None

    def _named(self, policy: Policy) -> list[Saved]:
        return [s for s in self.saved if s.policy == called(policy)]


def called(policy: Policy) -> str:
    """What a policy is called in a file: its name, or that of its class."""
    return type(policy).name or type(policy).__name__


def depends(policy: Policy) -> dict[str, Any]:
    """Values of the parameters that what a policy learns depends on."""
    cls = type(policy)
    names = cls.knowledge_depends_on
    return {k: getattr(policy, k) for k in parameters(cls) if names is None or k in names}


def learning(spec: PolicySpec) -> list[Policy]:
    """The parts of a policy that have something to save."""
    parts = [spec.eviction, *([spec.prefetch] if spec.prefetch else [])]
    return [p for p in parts if type(p).knowledge is not Policy.knowledge]


def saved_by(policy: Policy, state: Any, slots: int) -> Saved:
    """A copy of what a policy knows."""
    known = {k: np.array(v) for k, v in policy.knowledge(state).items()}
    return Saved(called(policy), policy.knowledge_version, depends(policy), slots, known)


# ---- files ------------------------------------------------------------------------------------------


def check_state_target(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` unless a state can be written to ``path``: nothing else may be there."""
    p = check_free(os.fspath(path))
    if p.exists() and p.stat().st_size:
        _meta(p, read_ipc(p))


def write_state(path: str | os.PathLike[str], model: Shape, saved: Iterable[Saved]) -> None:
    """Write what policies know, whole or not at all; of equals the first. Raises `InputError`."""
    rows: dict[tuple[Any, ...], Mapping[str, np.ndarray]] = {}
    for s in saved:
        key = (s.policy, s.version, json.dumps(dict(s.parameters), sort_keys=True), s.slots)
        rows.setdefault(key, s.arrays)
    table = [
        (*key, name, a.dtype.newbyteorder("<").str, list(a.shape), _bytes(a))
        for key, arrays in rows.items()
        for name, a in arrays.items()
    ]
    meta = {
        "schema": SCHEMA, "version": VERSION, "tool": f"uvmsim {__version__}",
        "model": vars(model),
    }  # fmt: skip
    schema = COLUMNS.with_metadata({META_KEY: json.dumps(meta, sort_keys=True).encode()})
    batch = pa.record_batch(
        [
            pa.array([row[i] for row in table], field.type)
            for i, field in enumerate(COLUMNS)
        ],
        schema=schema,
    )  # fmt: skip
    writer = IpcWriter(Path(path), schema, _digest)
    try:
        writer.write(batch)
        writer.close()
    except OSError as err:
        writer.discard()
        raise InputError(f"{path}: cannot be written ({err.strerror})") from None
    except BaseException:
        writer.discard()
        raise


def read_state(path: str | os.PathLike[str], model: Shape) -> State:
    """The state in a file, which must be of ``model``. Raises `InputError` where it is not, or the file
    is damaged, or of a later version."""
    p = Path(path)
    file = read_ipc(p)
    meta = _meta(p, file)
    if not file.complete or file.trailer is None:
        raise InputError(f"{p}: not whole; save it again with `state_out`")
    try:
        was = Shape(**meta["model"])
    except (KeyError, TypeError):
        raise InputError(f"{p}: does not say what model it was learned on") from None
    if was != model:
        raise InputError(f"{p}: learned on {was}, this trace is of {model}")
    if not _is_whole(file):
        raise InputError(f"{p}: damaged; copy it or save it again")
    found: dict[tuple[str, int, str, int], dict[str, np.ndarray]] = {}
    for batch in file.batches:
        for row in batch.to_pylist():
            key = (row["policy"], row["version"], row["parameters"], row["slots"])
            found.setdefault(key, {})[row["array"]] = _array(p, row)
    saved = []
    for (policy, version, told, slots), arrays in found.items():
        saved.append(Saved(policy, version, _json(p, told), slots, arrays))
    return State(str(path), model, tuple(saved))


def _is_whole(file: IpcFile) -> bool:
    """Whether the rows are those written."""
    if not file.schema.equals(COLUMNS) or file.trailer is None:
        return False
    try:
        for batch in file.batches:
            batch.validate(full=True)  # lengths of texts are read before any text is
        return bool(file.trailer.get("sha256") == _digest(file.batches))
    except (pa.ArrowException, UnicodeDecodeError):
        return False


def _meta(p: Path, file: IpcFile) -> dict[str, Any]:
    """What the schema of a state file says. Raises `InputError` where it is another file."""
    meta = _json(p, (file.schema.metadata or {}).get(META_KEY, b"{}"))
    if meta.get("schema") != SCHEMA:
        raise InputError(
            f"{p}: is no saved state of policies (`uvmsim compare --state-out` makes one)"
        )
    if meta.get("version") != VERSION:
        raise InputError(
            f"{p}: state file of version {meta.get('version')}, this uvmsim reads {VERSION}"
        )
    return meta


def _json(p: Path, text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{p}: damaged; copy it or save it again")
    return found


def _array(p: Path, row: Mapping[str, Any]) -> np.ndarray:
    """The array of a row, finite. Raises `InputError`."""
    shape, data = row["shape"], row["data"]
    if row["dtype"] not in DTYPES or min(shape, default=1) < 0 or len(shape) > 8:
        raise InputError(f"{p}: {row['array']} is of a kind that no state has; save it again")
    dtype = np.dtype(row["dtype"])
    if math.prod(shape) * dtype.itemsize != len(data):
        raise InputError(f"{p}: {row['array']} is not as long as it says; save it again")
    a = np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    if dtype.kind == "f" and not np.isfinite(a).all():
        raise InputError(f"{p}: {row['array']} of {row['policy']} has numbers that are not finite")
    return a


def _bytes(a: np.ndarray) -> bytes:
    return np.ascontiguousarray(a, a.dtype.newbyteorder("<")).tobytes()


def _digest(batches: Sequence[pa.RecordBatch]) -> str:
    h = hashlib.sha256()
    for batch in batches:
        for row in batch.to_pylist():
            data = row.pop("data")
            h.update(json.dumps([*row.values(), len(data)]).encode())
            h.update(data)
    return h.hexdigest()


def _told(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in given.items()) or "no parameters"


def _shape(a: np.ndarray | None) -> str:
    return "missing" if a is None else f"{a.dtype} {list(a.shape)}"
