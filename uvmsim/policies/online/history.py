"""The last tokens of all sequences: what they chose, who came before and after, who was like them.

Tokens are numbered as they come. A token's *mark* is a hash of the set of experts it chose in the
first MoE layer, which tells most of what the token is; the second mark is of two such sets in a row.
Tokens of one mark are chained, so that what followed a token's like earlier is found without a search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.core.jit import inlined
from uvmsim.policies.base import Context

CHAINS = 1 << 14
LIKE, LIKE_TWO = 4, 2
"""Most earlier tokens of one mark, and of two marks in a row, that are asked what followed them."""
TRIES = 8
"""Most links of a chain that are followed; a chain may hold other marks."""
NEXT, FIRST, STEP, CURSOR = range(4)


class History(NamedTuple):
    """Of R tokens (a power of two; token t is at t & (R - 1)): ids: int16 [layers, R, top_k], their
    choices, -1 none; seq, pos: int32 [R]; before, after: int64 [R], neighbours in the sequence, -1
    none; mark: int64 [R, 2], -1 none; older: int64 [R, 2], the last token of the same chain; like:
    int64 [R, LIKE + LIKE_TWO], earlier tokens of the same marks, -1 none. head: int64 [2, CHAINS];
    salt: int64 [experts], what marks are made of; at: int64 [4], see the places above."""

    ids: np.ndarray
    seq: np.ndarray
    pos: np.ndarray
    before: np.ndarray
    after: np.ndarray
    mark: np.ndarray
    older: np.ndarray
    like: np.ndarray
    head: np.ndarray
    salt: np.ndarray
    at: np.ndarray


def new_history(ctx: Context, size: int) -> History:
    """Of ``size`` tokens, a power of two; empty."""
    salt = np.random.default_rng(20010).integers(1, 1 << 40, ctx.n_experts)
    return History(
        np.full((ctx.n_layers, size, ctx.top_k), -1, np.int16), np.full(size, -1, np.int32),
        np.full(size, -1, np.int32), np.full(size, -1, np.int64), np.full(size, -1, np.int64),
        np.full((size, 2), -1, np.int64), np.full((size, 2), -1, np.int64),
        np.full((size, LIKE + LIKE_TWO), -1, np.int64), np.full((2, CHAINS), -1, np.int64),
        salt, np.array([0, 0, -1, 0], np.int64),
    )  # fmt: skip


@inlined
def place(h, t):
    """Where token ``t`` is; it must be `kept`."""
    return t & (h.seq.size - 1)


@inlined
def kept(h, t):
    """Whether token ``t`` exists and is not forgotten."""
    return t >= 0 and t >= h.at[NEXT] - h.seq.size


@inlined
def find_token(h, step, seq, pos):
    """The number of a token of this forward pass, -1 if it is new."""
    n = h.at
    if n[STEP] != step:
        n[STEP] = step
        n[FIRST] = n[NEXT]
        n[CURSOR] = n[NEXT]
    # Tokens come in one order in all layers, so the next one is looked at first.
    first = max(n[FIRST], n[NEXT] - h.seq.size)
    for j in range(n[NEXT] - first):
        t = n[CURSOR] + j
        if t >= n[NEXT]:
            t -= n[NEXT] - first
        if t < first:
            t = first
        at = place(h, t)
        if h.seq[at] == seq and h.pos[at] == pos:
            n[CURSOR] = t + 1
            return t
    return np.int64(-1)


@inlined
def add_token(h, seq, pos, before):
    """A new token that follows token ``before`` of its sequence (-1: the first); its number."""
    t = h.at[NEXT]
    h.at[NEXT] = t + 1
    at = place(h, t)
    h.seq[at] = seq
    h.pos[at] = pos
    h.before[at] = before
    h.after[at] = -1
    for layer in range(h.ids.shape[0]):
        h.ids[layer, at] = -1
    h.mark[at] = -1
    h.like[at] = -1
    if kept(h, before):
        h.after[place(h, before)] = t
    return t


@inlined
def add_choice(h, t, layer, chosen):
    """Token ``t`` chose ``chosen`` (int16 [top_k], or fewer at a time) in a layer."""
    ids = h.ids[layer, place(h, t)]
    k = 0
    for j in range(chosen.size):
        while k < ids.size and ids[k] >= 0:
            k += 1
        if k < ids.size:
            ids[k] = chosen[j]


@inlined
def mark_token(h, t):
    """Mark token ``t`` by its choice in the first layer, and find those like it."""
    at = place(h, t)
    if h.mark[at, 0] >= 0:
        return
    one = np.int64(0)
    for k in range(h.ids.shape[2]):
        if h.ids[0, at, k] >= 0:
            one += h.salt[h.ids[0, at, k]]
    two = one * 31
    before = h.before[at]
    if kept(h, before) and h.mark[place(h, before), 0] >= 0:
        two += h.mark[place(h, before), 0] * 17
    h.mark[at, 0] = one & ((1 << 40) - 1)
    h.mark[at, 1] = two & ((1 << 40) - 1)
    for kind in range(2):
        lo, most = (0, LIKE) if kind == 0 else (LIKE, LIKE_TWO)
        chain = h.mark[at, kind] % CHAINS
        q = h.head[kind, chain]
        found = 0
        for _ in range(TRIES):
            if found == most or not kept(h, q):
                break
            if h.mark[place(h, q), kind] == h.mark[at, kind]:
                h.like[at, lo + found] = q
                found += 1
            q = h.older[place(h, q), kind]
        h.older[at, kind] = h.head[kind, chain]
        h.head[kind, chain] = t
