"""Misses of a plain sequence of ids: the entry for people from the caching field."""

from __future__ import annotations

import dataclasses

import numpy as np
from numba.core.errors import NumbaError

from traces.errors import InputError
from uvmsim.core.bind import explain
from uvmsim.experts.access_kernel import CULPRIT, MISSES, new_access_pool
from uvmsim.experts.bind import bind_access, read_by
from uvmsim.policies.base import Context, Future
from uvmsim.policies.registry import PolicySpec, chooses, parse
from uvmsim.workload import next_uses

SPARSE = 1 << 16
"""Ids above this and above 8 times the number of accesses are renumbered, so that the state stays
as small as the number of distinct ids."""


def cache_misses(ids: np.ndarray, capacity: int, policy: str = "lru", seed: int = 0) -> int:
    """Misses of a cache of ``capacity`` objects of equal size on a sequence of accesses.

    ``ids``: integers >= 0, one dimension, best dense (0 .. n-1) and uint32 or int32: such arrays are
    read in place, memory-mapped ones too. ``policy``: any eviction policy by name, with parameters
    (``slru``, ``belady-horizon:horizon=8``, ``./mine.py:MyPolicy``). A miss evicts one object if the
    cache is full, then inserts; the first access of every object counts as a miss. Nothing is
    prefetched and nothing is timed. The interpreter's lock is free while the accesses are served, so
    threads run side by side.

    State takes some tens of bytes an object; a policy that needs the future takes 8 more an access.
    Raises `InputError` for ids or a capacity that make no sense, and for a policy that is not known
    or needs more than a sequence of ids.
    """
    spec = parse(policy)
    _check_policy(spec)
    ids, n = _dense(ids)
    whole = isinstance(capacity, int | np.integer) and not isinstance(capacity, bool)
    if not whole or capacity < 1:
        raise InputError(f"capacity {capacity}: must be a whole number of objects, at least 1")
    if len(ids) == 0:
        return 0
    slots = int(min(capacity, n))
    ctx = _context(n, slots, seed)
    if "next_use" in spec.needs:
        ctx = _with_future(ctx, ids)
    state = spec.eviction.state(ctx)
    out = np.zeros(2, np.int64)
    reads = read_by(type(spec.eviction))
    pool = new_access_pool(n, slots, "slots" in reads, "clock" in reads)
    try:
        served = bind_access(type(spec.eviction), (state,)).run(
            ids, pool, state, np.ones(1, np.int32), np.zeros((0, 0), np.float32),
            np.zeros((0, 0, 0), np.int16), np.zeros((0, 0, 0), np.float32),
            np.zeros((1, 1), np.int32), np.zeros(1, np.int32), out,
        )  # fmt: skip
    except NumbaError as err:
        if not spec.files:
            raise
        raise InputError(f"policy {policy} does not compile: {explain(err)}") from err
    except IndexError as err:
        raise InputError(f"policy {policy}: {err} (in a hook, outside one of its arrays)") from err
    if served < len(ids):
        raise InputError(
            f"policy {policy}, access {served}: victim() returned {out[CULPRIT]}, which is not cached"
        )
    return int(out[MISSES])


def _check_policy(spec: PolicySpec) -> None:
    if spec.prefetch:
        raise InputError(
            f"policy {spec.name}: cache_misses has no prefetch; name the first part only"
        )
    if chooses(spec):
        raise InputError(
            f"policy {spec.name} chooses what becomes of a miss; cache_misses always inserts"
        )
    more = spec.eviction.needs - {"next_use"}
    if more:
        raise InputError(
            f"policy {spec.name} needs {', '.join(sorted(more))}; a sequence of ids has none"
        )


def _dense(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """The ids as uint32, in place where they are that wide, and a bound above all of them."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        if ids.size or ids.ndim != 1:
            raise InputError(
                f"ids: expected integers in one dimension, got {ids.dtype} of shape {ids.shape}"
            )
        ids = ids.astype(np.uint32)
    if len(ids) == 0:
        return ids.astype(np.uint32), 1
    if ids.dtype.itemsize == 4 and ids.dtype.isnative:
        same = ids.view(np.uint32)  # a negative id is a huge one
        top = int(same.max())
        if top <= max(SPARSE, 8 * len(ids)) and top < 2**31:
            return np.ascontiguousarray(same), top + 1
    low, top = int(ids.min()), int(ids.max())
    if low < 0:
        at = int(np.argmax(ids < 0))
        raise InputError(f"ids[{at}] is {ids[at]}: ids must be 0 or more")
    if top <= max(SPARSE, 8 * len(ids)) and top < 2**31:
        return ids.astype(np.uint32), top + 1
    import pyarrow as pa
    import pyarrow.compute as pc

    coded = pc.dictionary_encode(pa.array(ids.astype(ids.dtype.newbyteorder("="))))
    return coded.indices.to_numpy().view(np.uint32), len(coded.dictionary)


def _context(n: int, capacity: int, seed: int) -> Context:
    return Context(
        n_total=n, n_layers=1, n_experts=n, top_k=1, capacity=np.array([capacity], np.int64),
        pool_of=np.broadcast_to(np.zeros(1, np.int32), n), expert_bytes=np.ones(1, np.int64),
        seed=seed, prefetches=False,
    )  # fmt: skip


def _with_future(ctx: Context, ids: np.ndarray) -> Context:
    """The future of declared oracles; every access is a forward pass of its own."""
    upcoming = np.empty(len(ids), np.int64)
    first_use = np.empty(ctx.n_total, np.int64)
    next_uses(ids, ctx.n_total, 0, len(ids), upcoming, first_use)
    future = Future(
        upcoming, first_use, ids,
        lambda: np.arange(len(ids), dtype=np.int32), lambda: np.arange(len(ids) + 1),
    )  # fmt: skip
    return dataclasses.replace(ctx, future=future)
