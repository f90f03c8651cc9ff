"""The contract between a policy and the simulator.

A policy is a class with parameters (annotated class attributes with defaults), a `state` method that
makes its arrays, and hooks. Hooks are static functions in Numba's subset: they get the state, a
read-only view of the pool, and an expert id, and they may change nothing but the state. The same
hooks run in the simulator and on the GPU, so they see a *logical* clock (events, accesses), never
nanoseconds.

Expert ids are dense: ``layer_index * n_experts + expert``, where ``layer_index`` counts the MoE
layers from 0. A pool is a set of slots: pool 0 for all layers, or one pool a layer.

See docs/policies.md for a worked example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

READABLE = frozenset({"clock", "slots"})
"""What `Policy.reads` may name."""

INSERT, OFFER, SCRATCH, CPU, CPU_BEHIND = range(5)
"""What to do with a miss, the answers of `Eviction.on_miss`."""
ACTIONS = ("insert", "offer", "scratch", "cpu", "cpu-behind")
"""The same in words, as results name them."""

EVENT, STEP, ACCESS, LAYER = 0, 1, 2, 3
"""Places in ``Pool.clock``: event number, forward pass, access number, MoE layer index."""


class Pool(NamedTuple):
    """What is resident. Policies read it; only the simulator writes it."""

    slot_of: np.ndarray
    """int32 [experts]: slot of an expert, -1 where it is not resident."""
    expert_in: np.ndarray
    """int32 [slots]: expert in a slot, -1 where it is free."""
    pin: np.ndarray
    """int64 [experts]: stamp of the event an expert is in use for; see `in_use`."""
    stamp: np.ndarray
    """int64 [1]: stamp of the event being served."""
    clock: np.ndarray
    """int64 [4]: the logical clock, see `EVENT`, `STEP`, `ACCESS`, `LAYER`."""
    lo: np.ndarray
    """int64 [pools + 1]: slots of pool p are lo[p] .. lo[p + 1] - 1."""
    used: np.ndarray
    """int64 [pools]: occupied slots; they are the first of the pool's range."""
    pool_of: np.ndarray
    """int32 [experts]: the pool an expert lives in."""
    layer_of: np.ndarray
    """int32 [experts]: MoE layer index of an expert."""
    n_layers: int
    n_experts: int


Number = int | np.integer[Any]
"""A whole number, as Python's or as NumPy's."""


class Event(NamedTuple):
    """One layer of one forward pass: what the router just chose."""

    layer: Number
    """MoE layer index."""
    step: Number
    tokens: Number
    """Tokens of the micro-batch with a known row."""
    experts: np.ndarray
    """int32 [distinct]: dense ids in order of first appearance (token by token, rank by rank)."""
    counts: np.ndarray
    """int32 [distinct]: tokens routed to each."""
    scores: np.ndarray
    """float32 [tokens, n_experts]: router scores; zero rows where the trace has none."""
    chosen: np.ndarray
    """int16 [tokens, top_k]: each token's experts, numbered within the layer, in rank order; -1 where
    a token has fewer."""
    seqs: np.ndarray
    """int32 [tokens]: the sequence of each token; tokens of one sequence stand in order."""
    positions: np.ndarray
    """int32 [tokens]: its place in that sequence."""
    guesses: np.ndarray
    """int16 [tokens, 2, 2k]: what the routers of the next MoE layer and of the one after it make of
    each token now, best first, numbered within their layer, -1 where there is no guess; no rows where
    the trace has none."""
    guess_scores: np.ndarray
    """float32 [tokens, 2, 2k]: what they were ranked by."""


@dataclass(frozen=True)
class Context:
    """What a policy may know when it makes its state."""

    n_total: int
    """Experts of all MoE layers together: the range of dense ids."""
    n_layers: int
    n_experts: int
    top_k: int
    capacity: np.ndarray
    """int64 [pools]: slots a pool."""
    pool_of: np.ndarray
    """int32 [n_total]"""
    expert_bytes: np.ndarray
    """int64 [n_layers]"""
    seed: int
    cost_ns: np.ndarray | None = None
    """int64 [n_layers]: time to bring an expert back, over the link to device memory or from the
    disk to host memory; only for policies that say that they are `Policy.priced`."""
    prefetches: bool = True
    """False where an expert is only ever fetched because it is accessed right now."""
    spare: int = 0
    """Slots in each entry of `capacity` that may not stay filled: 1 where there are scratch places."""
    profile_counts: np.ndarray | None = None
    """int64 [n_total]: how often each expert was used in the profile trace."""
    profile_transitions: np.ndarray | None = None
    """int32 [n_layers, n_experts, n_experts]: events that used i here and j in the next layer."""
    future: Future | None = None
    """Given only to policies that declare ``needs = {"next_use"}``; the five below read it."""
    tenant_of: np.ndarray | None = None
    """int32 [n_total]: whose expert each is, where several models share the GPU."""

    @property
    def next_use(self) -> np.ndarray | None:
        """int64 [accesses]: number of the next access to the same expert, ``NEVER`` if none."""
        return None if self.future is None else self.future.next_use

    @property
    def first_use(self) -> np.ndarray | None:
        """int64 [n_total]: number of the first access to an expert, ``NEVER`` if none."""
        return None if self.future is None else self.future.first_use

    @property
    def future_ids(self) -> np.ndarray | None:
        """int32 [accesses]: dense ids of the whole run."""
        return None if self.future is None else self.future.ids

    @property
    def step_of(self) -> np.ndarray | None:
        """int32 [accesses]: forward pass of an access."""
        return None if self.future is None else self.future.step_of()

    @property
    def event_lo(self) -> np.ndarray | None:
        """int64 [events + 1]: first access of each event."""
        return None if self.future is None else self.future.event_lo()


@dataclass(frozen=True)
class Future:
    """What is to come; arrays as in `Context`. Two of them are made for those who ask: they may be as
    long as the trace."""

    next_use: np.ndarray
    first_use: np.ndarray
    ids: np.ndarray
    step_of: Callable[[], np.ndarray]
    event_lo: Callable[[], np.ndarray]


NEVER = np.iinfo(np.int64).max


class Nothing(NamedTuple):
    """State of a policy without any."""

    unused: np.ndarray


class Policy:
    """What eviction and prefetch policies share: a name, needs, parameters."""

    name: ClassVar[str] = ""
    """How the policy is called on the command line."""
    source: ClassVar[str] = ""
    """Paper or program the algorithm comes from."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Of: next_use, router_scores, router_guesses, ranked_ids, profile."""
    reads: ClassVar[frozenset[str]] = READABLE
    """What hooks look at of ``pool`` beside who is resident: ``clock``, ``slots`` (a slot's number,
    ``expert_in``). A policy that says it reads less is faster on plain sequences of ids
    (`uvmsim.cache_misses`), where the rest is then not kept. Holds for the class that declares it, not
    for those derived from it."""
    priced: ClassVar[bool] = False
    """Decides by what an expert costs to bring back (`Context.cost_ns`), so by the machine's speeds."""
    knowledge_version: ClassVar[int] = 1
    """Of what `knowledge` means; a saved one of another version is refused."""
    knowledge_depends_on: ClassVar[frozenset[str] | None] = None
    """Parameters that must be equal where knowledge was saved and where it is given; None: all."""

    search: ClassVar[Mapping[str, Any]] = {}
    """What `uvmsim search` may set parameters to: ``(1, 256)``, ``(1, 256, "log")``, or a list of
    values. A number that is not named here is tried from an eighth to eight times its default, if
    that is not 0."""

    def state(self, ctx: Context) -> Any:
        """The policy's arrays, as a NamedTuple of NumPy arrays."""
        return Nothing(np.zeros(1, np.int64))

    def knowledge(self, s: Any) -> dict[str, np.ndarray]:
        """What of a state is known of the *model*, and would help with another trace of it: views of
        its arrays by name, whose shapes and types depend on the model and the parameters alone. What
        tells of the sequences served, or of who is resident, is none. Saved by ``--state-out``."""
        return {}

    def recall(self, s: Any, known: Mapping[str, np.ndarray]) -> None:
        """Begin with what `knowledge` gave at the end of another run. ``s`` is new; ``known`` has an
        array of the same type and shape for each of `knowledge`'s, floats finite. Raises `InputError`
        where the values can mean nothing."""
        for name, mine in self.knowledge(s).items():
            mine[...] = known[name]

    @staticmethod
    def on_event(s: Any, pool: Pool, ev: Event) -> None:
        """A layer's experts are known and about to be served."""


class Eviction(Policy):
    """Who leaves when a slot is needed, and who gets one at all."""

    bypass: ClassVar[bool] = False
    """Set to True for an instance (``lrfu:bypass=1``): where `on_miss` says `INSERT`, `OFFER` is
    done."""

    @staticmethod
    def on_miss(s: Any, pool: Pool, e: int, i: int) -> int:
        """What to do with expert ``e``, which access number ``i`` misses:

        - `INSERT`: evict if the pool is full, copy the expert into the slot. Pays where experts come
          again soon.
        - `OFFER`: copy it to a scratch place, compute, then let the `victim` among the pool's residents
          and this expert leave; hits of the event may leave too. Which place is scratch changes; no
          byte moves twice.
        - `SCRATCH`: copy it to a scratch place, compute, forget it.
        - `CPU`: compute on the CPU and copy nothing.
        - `CPU_BEHIND`: compute on the CPU, evict, and copy the expert in when nothing urgent is on the
          link; who uses it before it has come waits.

        Asked before `on_access`, in the order in which experts are touched. Of an offered expert
        `on_access`, then `on_insert` are called after those of the wave's others; it may be the victim
        itself. Where there are scratch places, whoever is inserted enters before the victim is asked
        for, in use; a pool then has one slot more than it may fill. Any other answer is an error."""
        return INSERT

    @staticmethod
    def bypasses(s: Any, pool: Pool, ev: Event) -> bool:
        """True for an event to be served beside the pool: it reads what is resident, what is missing
        is copied to a buffer and forgotten, and no slot changes hands. Asked right after `on_event`;
        neither `on_access` nor a prefetcher is called for such an event."""
        return False

    @staticmethod
    def on_access(s: Any, pool: Pool, e: int, i: int, hit: bool) -> None:
        """Expert ``e`` is touched by access number ``i``; a miss is inserted right after."""

    @staticmethod
    def on_insert(s: Any, pool: Pool, e: int, i: int) -> None:
        """Expert ``e`` got a slot, on demand or by prefetch."""

    @staticmethod
    def on_evict(s: Any, pool: Pool, e: int) -> None:
        """Expert ``e`` lost its slot."""

    @staticmethod
    def victim(s: Any, pool: Pool, p: int) -> int:
        """A resident expert of pool ``p`` that is not `in_use`; -1 if there is none."""
        return -1


class Prefetch(Policy):
    """Who is fetched before the router asks."""

    window: str = ""
    """Bytes fetched and not used yet at the start, e.g. 512MiB, adapted to how many are used
    (`uvmsim.policies.window`); none: no limit. Every prefetcher has it."""

    def limit(self, ctx: Context) -> int:
        """Most experts one call of `prefetch` may ask for."""
        return ctx.top_k

    @staticmethod
    def prefetch(s: Any, pool: Pool, ev: Event, out: np.ndarray) -> int:
        """Write the wanted dense ids to ``out`` (int32), the most wanted first; return how many.

        Called after the event's own misses were queued. Experts that are resident already are
        skipped; each other one takes a slot from the eviction policy's victim.
        """
        return 0


def pool_of(pool: Pool, e: int) -> int:
    """The pool an expert lives in: ``pool.pool_of[e]``, and nothing at all where there is one pool."""
    return pool.pool_of[e]


def in_use(pool: Pool, e: int) -> bool:
    """True where expert ``e`` belongs to the event being served and must not be evicted."""
    return pool.pin[e] == pool.stamp[0]
