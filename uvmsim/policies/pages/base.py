"""The contract between a page policy and the simulated driver: gpu_ext's struct_ops.

A page policy has hooks at five places of the driver (eunomia-bpf/gpu_ext, ``struct uvm_gpu_ext``;
later ``struct gpu_mem_ops``). It is one class as in `uvmsim.policies.base`: parameters, a `state`
of NumPy arrays (its BPF maps), and static hooks in Numba's subset. What a hook may do is what an
eBPF program may: read, keep its own maps, name a region inside the block that faulted, and move the
current chunk to the head (evicted next) or the tail of the used list.

State is keyed by the *physical* chunk, as in gpu_ext: a chunk number says which frame, not which
data. A policy that wants the address asks for it: ``d.block_of[chunk]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.core.read_only import writable
from uvmsim.policies.base import Nothing, Policy

PAGES = 512
"""4 KiB pages of a 2 MiB VA block, and of a root chunk."""

DEFAULT, BYPASS, ENTER_LOOP = 0, 1, 2
"""What `PagePolicy.page_prefetch` and `block_access` return (UVM_BPF_ACTION_*)."""

FIRST, OUTER, MAX_FIRST, MAX_OUTER = 0, 1, 2, 3
"""Places in ``region``: the result [first, outer) and the largest that is allowed."""

NOW_NS, BATCH, ACTIVATES, CURRENT, REFUSED, ASKED, PHASE = 0, 1, 2, 3, 4, 5, 6
"""Places in ``Driver.n``: see there."""


class Driver(NamedTuple):
    """The driver's tables, with B blocks and C physical chunks. Hooks read them; only the
    simulator, `move_head`, `move_tail`, `set_region` and `migrate` write them."""

    resident: np.ndarray
    """uint64 [B, 8]: bit p of word w = page 64 w + p of the block is in device memory."""
    n_resident: np.ndarray
    """int32 [B]: resident pages of a block."""
    n_pages: np.ndarray
    """int32 [B]: pages a block has: 512, fewer at the end of an allocation."""
    chunk_of: np.ndarray
    """int32 [B]: physical chunk of a block, -1 where it has none."""
    block_of: np.ndarray
    """int32 [C]: VA block in a chunk, -1 where it is free."""
    next: np.ndarray
    """int32 [C + 1]: the used list, from the head (evicted next) to the tail; place C is its
    sentinel: ``next[C]`` is the head, C means the end."""
    prev: np.ndarray
    """int32 [C + 1]"""
    tenant_of: np.ndarray
    """int8 [B]: process a block belongs to (0, 1, ...)."""
    accessed: np.ndarray
    """uint64 [8]: the bitmap tree's leaves while prefetch hooks run: resident pages and the faulted
    ones, grown to 64 KiB."""
    wanted: np.ndarray
    """int64 [requests]: blocks `migrate` asked for; emptied after each batch."""
    n: np.ndarray
    """int64: ``NOW_NS`` the driver's clock in ns, ``BATCH`` number of the fault batch, ``ACTIVATES``
    chunks allocated so far, ``CURRENT`` the chunk a list hook may move (-1: any), ``REFUSED`` moves
    that were refused, ``ASKED`` entries of ``wanted``, ``PHASE`` of the running kernels
    (`traces.files.schema.PREFILL`, ``DECODE``): what gpu_ext's uprobes on llama_decode tell."""


@dataclass(frozen=True)
class PageContext:
    """What a page policy may know when it makes its state."""

    n_blocks: int
    n_chunks: int
    n_tenants: int
    boundaries: np.ndarray
    """int64: first VA block of each layer's tensors, ascending, with the end as last entry: what
    the policies that know the model's layout (template_belady) are compiled with."""
    seed: int


class PagePolicy(Policy):
    """A policy of the paging driver. The defaults are the driver's own behaviour."""

    migrates: ClassVar[bool] = False
    """Whether it asks for other blocks (`migrate`): gpu_ext's bpf_gpu_migrate_range from a
    work queue, withdrawn in their later versions."""

    def state(self, ctx: PageContext) -> Any:  # type: ignore[override]
        """The policy's maps, as a NamedTuple of NumPy arrays."""
        return Nothing(np.zeros(1, np.int64))

    @staticmethod
    def page_prefetch(s: Any, d: Driver, block: int, page: int, region: np.ndarray) -> int:
        """A page of a block has faulted: once for each faulted page, before the region is computed
        (uvm_prefetch_before_compute).

        `DEFAULT`: the driver walks its density tree. `BYPASS`: ``region`` is the answer, set by
        `set_region` (empty if it was not). `ENTER_LOOP`: `page_prefetch_iter` is asked for each
        level of the tree.
        """
        return DEFAULT

    @staticmethod
    def page_prefetch_iter(
        s: Any, d: Driver, block: int, first: int, outer: int, counter: int, region: np.ndarray
    ) -> int:
        """A level of the tree, from the leaf to the root: subregion [first, outer) with ``counter``
        accessed pages (uvm_prefetch_on_tree_iter). The region set last wins. The result is
        ignored."""
        return 0

    @staticmethod
    def block_activate(s: Any, d: Driver, chunk: int) -> int:
        """A chunk was allocated for ``d.block_of[chunk]`` and put at the tail
        (uvm_pmm_chunk_activate). The result is ignored."""
        return 0

    @staticmethod
    def block_access(s: Any, d: Driver, chunk: int) -> int:
        """Pages were made resident in a chunk (uvm_pmm_chunk_used); GPU hits are never seen.
        `DEFAULT`: the driver moves it to the tail. `BYPASS`: it stays where the policy put it."""
        return DEFAULT

    @staticmethod
    def evict_prepare(s: Any, d: Driver) -> int:
        """There is no free chunk and the head is about to be evicted (uvm_pmm_eviction_prepare).
        The chunks at the head may be inspected and moved. The result is ignored."""
        return 0

    @staticmethod
    def after_batch(s: Any, d: Driver) -> int:
        """A fault batch is served and replayed; what was asked for by `migrate` comes next. Called of
        policies with ``migrates = True`` only: the work queue of gpu_ext's programs. The result is
        ignored."""
        return 0

    def notes(self, state: Any) -> list[str]:
        """What a user should know of a finished run, one line each."""
        return []

    def explain(self, state: Any, err: Exception) -> str:
        """What an error that a hook raised means, in one line."""
        return f"{type(err).__name__}: {err}"


def set_region(region: np.ndarray, first: int, outer: int) -> None:
    """Answer [first, outer), clamped to what is allowed (bpf_uvm_set_va_block_region): a region
    cannot leave its 2 MiB block."""
    answer = writable(region)
    answer[FIRST] = max(first, region[MAX_FIRST])
    answer[OUTER] = max(min(outer, region[MAX_OUTER]), answer[FIRST])


def _may_move(d: Driver, chunk: int) -> bool:
    """Whether `move_head` and `move_tail` do anything; counts what is refused."""
    in_a_list = 0 <= chunk < len(d.block_of) and d.block_of[chunk] >= 0
    if in_a_list and (d.n[CURRENT] < 0 or d.n[CURRENT] == chunk):
        return True
    writable(d.n)[REFUSED] += 1
    return False


def move_head(d: Driver, chunk: int) -> None:
    """Make a chunk the next to be evicted (bpf_uvm_pmm_chunk_move_head). Refused for another chunk
    than the current one, as in gpu_ext's bpf_gpu_request_reorder; `evict_prepare` may move any."""
    if not _may_move(d, chunk):
        return
    nxt, prev = writable(d.next), writable(d.prev)
    end = len(nxt) - 1
    nxt[prev[chunk]] = nxt[chunk]
    prev[nxt[chunk]] = prev[chunk]
    head = nxt[end]
    nxt[end], prev[chunk] = chunk, end
    nxt[chunk], prev[head] = head, chunk


def move_tail(d: Driver, chunk: int) -> None:
    """Make a chunk the last to be evicted (bpf_uvm_pmm_chunk_move_tail); see `move_head`."""
    if not _may_move(d, chunk):
        return
    nxt, prev = writable(d.next), writable(d.prev)
    end = len(nxt) - 1
    nxt[prev[chunk]] = nxt[chunk]
    prev[nxt[chunk]] = prev[chunk]
    tail = prev[end]
    prev[end], nxt[chunk] = chunk, end
    prev[chunk], nxt[tail] = tail, chunk


def migrate(d: Driver, block: int) -> None:
    """Ask for a whole other block, to be brought in after this batch without anybody waiting
    (bpf_gpu_migrate_range from a bpf_wq). Requests beyond the room of ``d.wanted`` are dropped."""
    n = writable(d.n)
    if n[ASKED] < len(d.wanted) and 0 <= block < len(d.chunk_of):
        writable(d.wanted)[n[ASKED]] = block
        n[ASKED] += 1


def drop_pending(d: Driver) -> None:
    """Forget what was asked for and has not begun. A program has one bpf_wq item a CPU: starting it
    again before its callback ran overwrites the request, so these policies call this first."""
    writable(d.n)[ASKED] = 0


def layer_of(boundaries: np.ndarray, block: int) -> int:
    """Layer of a VA block by the boundaries of `PageContext`; -1 outside: before the first layer
    or past the last one's end (output matrix, KV cache, compute buffer)."""
    at = -1
    for i in range(len(boundaries) - 1):
        if boundaries[i] <= block < boundaries[-1]:
            at = i
    return at


def choice(policy: PagePolicy, key: str, allowed: tuple[str, ...]) -> int:
    """Place of a parameter's value among the words it may have; `InputError` for another word."""
    value = getattr(policy, key)
    if value not in allowed:
        raise InputError(f"policy {policy.name!r}: {key}={value!r}; expected {', '.join(allowed)}")
    return allowed.index(value)


def whole(policy: PagePolicy, key: str, least: int, most: int) -> int:
    """A parameter's value; `InputError` outside [least, most]."""
    value = getattr(policy, key)
    if not least <= value <= most:
        raise InputError(f"policy {policy.name!r}: {key}={value}; expected {least:,} to {most:,}")
    return int(value)
