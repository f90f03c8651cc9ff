"""Binary heaps over the resident experts of each layer: the least key first, of equals the lowest id.

For policies whose value fades alike for all experts of a layer, and at another pace in another: inside
a layer the order stays, and layers are compared by their least members. A victim then costs a look at
one expert a layer, not at one a slot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Context, in_use
from uvmsim.policies.lists import inner


class LayerHeaps(NamedTuple):
    """at: int32 [n_total], members, layer l's from l * n_experts on; place: int32 [n_total], where in
    its heap a member is, -1 if absent; key: float64 [n_total]; size: int64 [layers]; top: float64
    [layers], key of the first member, infinite where there is none."""

    at: np.ndarray
    place: np.ndarray
    key: np.ndarray
    size: np.ndarray
    top: np.ndarray


def new_layer_heaps(ctx: Context, key: type = np.float64) -> LayerHeaps:
    """Empty heaps, keys of zero; ``key``: the keys' type."""
    n = ctx.n_total
    return LayerHeaps(
        np.zeros(n, np.int32), np.full(n, -1, np.int32), np.zeros(n, key),
        np.zeros(ctx.n_layers, np.int64), np.full(ctx.n_layers, np.inf, key),
    )  # fmt: skip


@inner
def _before(h, a, b):
    return h.key[a] < h.key[b] or (h.key[a] == h.key[b] and a < b)


@inner
def _sink(h, lo, n, e, j):
    """Put ``e`` at place ``j`` or below it."""
    while 2 * j + 1 < n:
        c = 2 * j + 1
        if c + 1 < n and _before(h, h.at[lo + c + 1], h.at[lo + c]):
            c += 1
        child = h.at[lo + c]
        if not _before(h, child, e):
            break
        h.at[lo + j] = child
        h.place[child] = j
        j = c
    h.at[lo + j] = e
    h.place[e] = j


@inner
def _settle(h, lo, n, e, j):
    """Put ``e`` at place ``j`` or wherever it belongs from there."""
    while j > 0:
        parent = h.at[lo + (j - 1) // 2]
        if not _before(h, e, parent):
            break
        h.at[lo + j] = parent
        h.place[parent] = j
        j = (j - 1) // 2
    _sink(h, lo, n, e, j)


@inner
def layer_add(h, pool, e):
    """``e`` has got a slot; its key is set already."""
    layer = pool.layer_of[e]
    n = h.size[layer]
    h.size[layer] = n + 1
    lo = layer * pool.n_experts
    _settle(h, lo, n + 1, np.int32(e), n)
    h.top[layer] = h.key[h.at[lo]]


@inner
def layer_remove(h, pool, e):
    """``e`` has lost its slot."""
    layer = pool.layer_of[e]
    lo, j = layer * pool.n_experts, h.place[e]
    h.place[e] = -1
    n = h.size[layer] - 1
    h.size[layer] = n
    if j < n:
        _settle(h, lo, n, h.at[lo + n], np.int64(j))
    h.top[layer] = h.key[h.at[lo]] if n else np.inf


@inner
def layer_set(h, pool, e, key):
    """Give ``e`` a key, resident or not."""
    h.key[e] = key
    j = h.place[e]
    if j >= 0:
        layer = pool.layer_of[e]
        lo = layer * pool.n_experts
        _settle(h, lo, h.size[layer], np.int32(e), np.int64(j))
        h.top[layer] = h.key[h.at[lo]]


@inner
def layer_rebuild(h, pool, layer):
    """All keys of a layer were written anew."""
    lo, n = layer * pool.n_experts, h.size[layer]
    for j in range(n // 2 - 1, -1, -1):
        _sink(h, lo, n, h.at[lo + j], j)
    if n:
        h.top[layer] = h.key[h.at[lo]]


@inner
def layer_first(h, pool, layer):
    """The first member of a layer that has one, in use or not: its key is ``h.top[layer]``."""
    return h.at[layer * pool.n_experts]


@inner
def layer_least(h, pool, layer):
    """The first member of a layer that is not in use, -1 if none; a look at all where the top is."""
    lo, n = layer * pool.n_experts, h.size[layer]
    best = np.int32(-1)
    for j in range(n):
        e = h.at[lo + j]
        if not in_use(pool, e) and (best < 0 or _before(h, e, best)):
            if j == 0:
                return e
            best = e
    return best
