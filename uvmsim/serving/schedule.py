"""Who is in which iteration: the state of a server's queue, as compiled functions over flat arrays.

The rules are `uvmsim.serving.server.Server`'s. `uvmsim.serving.des` has them once more as SimPy
processes, to read and to test against. Both the client's queue and the server's keep the order of
arrival, so that each is a number: how many were sent, how many were admitted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uvmsim.core.jit import kernel_part
from uvmsim.serving.load import Load
from uvmsim.serving.server import ARRIVAL_ORDER, NEVER, Server

NOW, SENT, ADMITTED, DONE, ACTIVE, KV, FREED, ZERO, HELD = range(9)
"""Places in `Queue.n`: the time; requests sent, admitted, done; those in slots; KV tokens taken;
when the client could last send again after it could not; when the clock started (-1: not yet);
whether the client has as many under way as it may."""

PROMPT, OUTPUT = 0, 1


class Queue(NamedTuple):
    """N requests, S slots."""

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    cached: np.ndarray
    token_lo: np.ndarray
    sent: np.ndarray
    """int64 [N]: when the client sent it."""
    admitted: np.ndarray
    """int64 [N]: when it got a slot."""
    token_ns: np.ndarray
    """int64 [tokens]: when each output token came out."""
    fed: np.ndarray
    """int32 [N]: tokens of the prompt that are in the KV cache."""
    made: np.ndarray
    """int32 [N]: tokens that came out."""
    slots: np.ndarray
    """int32 [S]: the request in each slot, -1: none."""
    order: np.ndarray
    """int32 [S]: requests in slots in the order in which they got them, the first ACTIVE are valid."""
    rules: np.ndarray
    """int64 [5 + B]: batch, ubatch, kv_tokens, max_concurrency, order, then `Server.breaks`."""
    n: np.ndarray
    """int64 [9]"""


class Entries(NamedTuple):
    """What a request has in an iteration: ``length`` tokens of one kind from its ``first`` on."""

    request: np.ndarray
    kind: np.ndarray
    first: np.ndarray
    length: np.ndarray


def new_queue(load: Load, server: Server) -> Queue:
    """Nothing sent yet. With `Server.warmup` the load's first request comes before the clock starts;
    it is then that request once more (`Load.warmed`)."""
    n = len(load)
    scalars = np.zeros(9, np.int64)
    scalars[ZERO] = -1 if server.warmup else 0
    return Queue(
        load.arrival, load.prompt, load.output, load.cached, load.token_lo,
        np.full(n, -1, np.int64), np.full(n, -1, np.int64),
        np.full(int(load.output.sum(dtype=np.int64)), -1, np.int64), load.cached.copy(),
        np.zeros(n, np.int32), np.full(server.slots, -1, np.int32),
        np.full(server.slots, -1, np.int32),
        np.array([server.batch, server.ubatch, server.kv_tokens, server.max_concurrency,
                  server.order, *server.breaks], np.int64),
        scalars,
    )  # fmt: skip


def new_entries(server: Server) -> Entries:
    """Room for one iteration, and for each of its passes."""
    return entries_for(2 * server.slots)


def entries_for(n: int) -> Entries:
    """Room for ``n``."""
    return Entries(
        np.empty(n, np.int32), np.empty(n, np.int8), np.empty(n, np.int32), np.empty(n, np.int32)
    )


@kernel_part
def arrives(q, i):
    """When request ``i`` comes to the client; NEVER while the clock has not started."""
    if q.n[ZERO] < 0:
        return np.int64(0) if i == 0 else np.int64(NEVER)
    return q.arrival[i] + q.n[ZERO]


@kernel_part
def send(q, now):
    """The client sends what has arrived by ``now``, as long as it may."""
    n = q.n
    most = q.rules[3]
    while n[SENT] < len(q.arrival):
        at = arrives(q, n[SENT])
        if at > now:
            return
        if most > 0 and n[SENT] - n[DONE] >= most:
            n[HELD] = 1
            return
        q.sent[n[SENT]] = max(at, n[FREED])
        n[SENT] += 1


@kernel_part
def admit(q, now):
    """Requests that were sent get slots, as long as there are some and the KV cache has room."""
    n = q.n
    while n[ADMITTED] < n[SENT] and n[ACTIVE] < len(q.slots):
        i = n[ADMITTED]
        need = np.int64(q.prompt[i]) + q.output[i]
        if q.rules[2] > 0 and n[KV] + need > q.rules[2]:
            return
        slot = 0
        while q.slots[slot] >= 0:
            slot += 1
        q.slots[slot] = i
        q.order[n[ACTIVE]] = i
        q.admitted[i] = now
        n[KV] += need
        n[ACTIVE] += 1
        n[ADMITTED] += 1


@kernel_part
def in_place(q, x):
    """The request in the ``x``-th place of those to go through, -1: none."""
    if q.rules[4] == ARRIVAL_ORDER:
        return q.order[x] if x < q.n[ACTIVE] else -1
    return q.slots[x]


@kernel_part
def compose(q, entries):
    """Fill ``entries`` with the next iteration's; returns how many."""
    left = q.rules[0]
    m = 0
    for x in range(len(q.slots)):
        i = in_place(q, x)
        if i >= 0 and q.made[i] > 0:
            entries.request[m] = i
            entries.kind[m] = OUTPUT
            entries.first[m] = q.made[i] - 1
            entries.length[m] = 1
            m += 1
            left -= 1
    for x in range(len(q.slots)):
        i = in_place(q, x)
        if i >= 0 and q.made[i] == 0 and left > 0:
            count = min(until_break(q, np.int64(q.prompt[i] - q.fed[i])), left)
            entries.request[m] = i
            entries.kind[m] = PROMPT
            entries.first[m] = q.fed[i]
            entries.length[m] = count
            m += 1
            left -= count
    return m


@kernel_part
def until_break(q, rest):
    """Tokens of a prompt's ``rest`` before the next place where a chunk ends."""
    for b in range(5, len(q.rules)):
        if rest > q.rules[b]:
            return rest - q.rules[b]
    return rest


@kernel_part
def cut(q, entries, m, at, parts, e):
    """The next forward pass of an iteration of ``m`` entries, as `Entries` from number ``e`` of
    ``parts`` on; returns where they end, -1 where there is no room. ``at`` (int64 [2]): the next
    entry, and how much of it earlier passes have."""
    x, taken = at[0], at[1]
    left = q.rules[1]
    while x < m and left > 0:
        if e == len(parts.request):
            return -1
        n = min(entries.length[x] - taken, left)
        parts.request[e] = entries.request[x]
        parts.kind[e] = entries.kind[x]
        parts.first[e] = entries.first[x] + taken
        parts.length[e] = n
        e += 1
        left -= n
        taken += n
        if taken == entries.length[x]:
            x += 1
            taken = np.int64(0)
    at[0], at[1] = x, taken
    return e


@kernel_part
def commit(q, entries, m, now):
    """The iteration of the first ``m`` entries ended at ``now``."""
    n = q.n
    n[NOW] = now
    send(q, now)
    for x in range(m):
        i = entries.request[x]
        if entries.kind[x] == PROMPT:
            q.fed[i] += entries.length[x]
            if q.fed[i] < q.prompt[i]:
                continue
        q.token_ns[q.token_lo[i] + q.made[i]] = now
        q.made[i] += 1
        if q.made[i] == q.output[i]:
            leave(q, i)
    if n[HELD]:
        n[HELD] = 0
        n[FREED] = now
    send(q, now)


@kernel_part
def leave(q, i):
    """Request ``i`` has all its tokens."""
    n = q.n
    for s in range(len(q.slots)):
        if q.slots[s] == i:
            q.slots[s] = -1
    kept = 0
    for x in range(n[ACTIVE]):
        if q.order[x] != i:
            q.order[kept] = q.order[x]
            kept += 1
    n[ACTIVE] = kept
    n[KV] -= np.int64(q.prompt[i]) + q.output[i]
    n[DONE] += 1
    if n[ZERO] < 0:
        n[ZERO] = n[NOW]


@kernel_part
def begin(q):
    """Wait until there is something to do; returns whether there is."""
    n = q.n
    if n[DONE] == len(q.arrival):
        return False
    send(q, n[NOW])
    admit(q, n[NOW])
    if n[ACTIVE] == 0:
        n[NOW] = max(n[NOW], arrives(q, n[SENT]))
        send(q, n[NOW])
        admit(q, n[NOW])
    return True
