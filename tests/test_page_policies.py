"""Every page policy against its slow twin in `naive_pages`, hook by hook; all of them compile."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import naive_pages
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_pages_moe import TWINS
from numba import njit, typeof
from numba.core import types

from uvmsim.core.jit import KERNEL_OPTIONS
from uvmsim.core.linker import Linker
from uvmsim.policies.pages import base
from uvmsim.policies.pages.base import PAGES, Driver, PageContext, PagePolicy
from uvmsim.policies.pages.registry import HOOKS, builtin_pages, hooks_of, parse_pages

TENANT = [0, 1, 2, 3]
BOUNDARIES = [2, 4, 7, 9, 12]
N_BLOCKS, N_CHUNKS, ROOM = 14, 4, 5
LAST_PAGES = 100
KINDS = {2: "hot", 3: "cold", 5: "shared", 6: "cold", 7: "cold", 13: "hot"}
CODE = {"shared": 1, "hot": 2, "cold": 3}
OPTIONS = [
    *(name for name in sorted(builtin_pages()) if name != "expert_buffering_policy"),
    "prefetch_adaptive_sequential:percent=30:direction=backward",
    "prefetch_adaptive_sequential:percent=0",
    "prefetch_adaptive_sequential:pages=7:direction=forward_start",
    "prefetch_direction:direction=backward:pages=5",
    "prefetch_direction:direction=around:pages=16",
    "prefetch_adaptive_tree_iter:threshold=80",
    "prefetch_stride:threshold=1:pages=3:max_stride=4",
    "prefetch_stride_lfu:sample=2",
    "prefetch_delta_markov:threshold=1:pages=3:max_delta=6",
    "eviction_pid_quota:high=80:low=20:other=40",
    "eviction_2q_approx:generation=1",
    "prefetch_template_belady:t1=2:cpus=2",
    "prefetch_max_mru_expert:cpus=3",
    "prefetch_cross_block_v2:mode=blind:evict=fifo",
    "prefetch_cross_block_v2:mode=3-step:evict=cycle_moe",
    "prefetch_cross_block_v2:mode=adjacent:evict=lru",
    "prefetch_cross_block_v2:mode=2-step:evict=passive_mru:cpus=2",
    "prefetch_throttled_xb:max_faults=3:window_us=90000",
    "prefetch_stride_multiblock:blocks=2:strides=2",
    "prefetch_stride_multiblock:strides=1",
    "prefetch_proactive_layer:prefetch_bytes=8388608:ahead=2",
    "prefetch_cooperative:ring=2:radius=1:cpus=2",
    "prefetch_serving_adaptive:max_faults=2:window_ms=100",
    "prefetch_always_max_qos:target=20:ki=3:decay=1:period_ms=30",
    "prefetch_llama_phase:decode=max",
    "prefetch_llama_phase:decode=around:radius=5",
    "prefetch_llama_phase:decode=default",
    "prefetch_llama_phase:decode=forward",
]


@dataclass
class Op:
    block: int
    page: int
    wait: int
    faults: bool
    serves: bool
    seed: int
    decode: bool = False
    same_batch: bool = False


def walk(data) -> list[Op]:
    """A walk with runs and strides, so that policies which look for them find some."""
    ops, block, page = [], 0, 0
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    jump = data.draw(st.sampled_from([0.05, 0.3, 0.8]), "jumps")
    stride, hop = 1, 1
    for _ in range(data.draw(st.integers(1, 120), "length")):
        if rng.random() < jump:
            stride, hop = rng.choice([0, 1, 1, 2, -1, -3, 16, 200]), rng.choice([1, 1, -1, 2, 0])
        if rng.random() < 0.5:
            block = rng.randrange(N_BLOCKS) if rng.random() < jump else (block + hop) % N_BLOCKS
        room = LAST_PAGES if block == N_BLOCKS - 1 else PAGES
        page = rng.randrange(room) if rng.random() < jump / 2 else (page + stride) % room
        wait = rng.choice([0, 1000, 400_000, 20_000_000, 90_000_000])
        faults, serves = rng.choice([(True, True), (True, False), (True, True), (False, True)])
        decode, same = rng.random() < 0.5, rng.random() < 0.3
        ops.append(Op(block, page, wait, faults, serves, rng.randrange(2**32), decode, same))
    return ops


def driver() -> Driver:
    n_pages = np.full(N_BLOCKS, PAGES, np.int32)
    n_pages[-1] = LAST_PAGES
    tenants = np.array([TENANT[b % 4] for b in range(N_BLOCKS)], np.int8)
    return Driver(
        np.zeros((N_BLOCKS, 8), np.uint64), np.zeros(N_BLOCKS, np.int32), n_pages,
        np.full(N_BLOCKS, -1, np.int32), np.full(N_CHUNKS, -1, np.int32),
        np.full(N_CHUNKS + 1, N_CHUNKS, np.int32), np.full(N_CHUNKS + 1, N_CHUNKS, np.int32),
        tenants, np.zeros(8, np.uint64), np.zeros(ROOM, np.int64), np.zeros(8, np.int64),
    )  # fmt: skip


def link_before_tail(d: Driver, chunk: int) -> None:
    """Not at the tail, as the driver does: there, nobody would see a policy ask for the tail."""
    last = int(d.prev[N_CHUNKS])
    d.next[d.prev[last]], d.prev[chunk] = chunk, d.prev[last]
    d.next[chunk], d.prev[last] = last, chunk


def unlink(d: Driver, chunk: int) -> None:
    d.next[d.prev[chunk]], d.prev[d.next[chunk]] = d.next[chunk], d.prev[chunk]


def used(d: Driver) -> list[int]:
    forward, backward, c = [], [], int(d.next[N_CHUNKS])
    while c != N_CHUNKS:
        forward.append(c)
        c = int(d.next[c])
    c = int(d.prev[N_CHUNKS])
    while c != N_CHUNKS:
        backward.append(c)
        c = int(d.prev[c])
    assert forward == backward[::-1]
    return forward


class Subject:
    """The policy under test on real driver tables; its hooks may be compiled ones."""

    def __init__(self, policy: PagePolicy, hooks=None):
        ctx = PageContext(N_BLOCKS, N_CHUNKS, 4, np.array(BOUNDARIES, np.int64), 0)
        self.d, self.s = driver(), policy.state(ctx)
        self.hooks = hooks or {h: getattr(policy, h) for h in HOOKS}

    def call(self, hook, *args, current=-1):
        self.d.n[base.CURRENT] = current
        return self.hooks[hook](self.s, self.d, *args)

    def run(self, op: Op) -> list:
        """What the hooks answered and where that leaves the driver."""
        d, out = self.d, []
        d.n[base.PHASE] = int(op.decode)
        if not op.same_batch:
            d.n[base.NOW_NS] += op.wait
            d.n[base.BATCH] += 1
            d.n[base.ASKED] = 0
        if op.faults:
            region = np.array([0, 0, 0, d.n_pages[op.block]], np.int64)
            action = self.call("page_prefetch", op.block, op.page, region)
            if action == base.ENTER_LOOP:
                for first, outer, counter in levels(op):
                    self.call("page_prefetch_iter", op.block, first, outer, counter, region)
            out.append((action, set(range(region[0], region[1]))))
        if op.serves:
            chunk = int(d.chunk_of[op.block])
            if chunk < 0:
                chunk = self.allocate(op.block)
                out.append(used(d))
            action = self.call("block_access", chunk, current=chunk)
            if action == base.DEFAULT:
                d.n[base.CURRENT] = -1
                base.move_tail(d, chunk)
            out.append(action)
        assert d.n[base.REFUSED] == 0
        return [*out, used(d), d.chunk_of.tolist(), d.wanted[: d.n[base.ASKED]].tolist()]

    def allocate(self, block: int) -> int:
        d = self.d
        free = np.flatnonzero(d.block_of < 0)
        if len(free) == 0:
            self.call("evict_prepare")
            chunk = int(d.next[N_CHUNKS])
            unlink(d, chunk)
            d.chunk_of[d.block_of[chunk]] = -1
        else:
            chunk = int(free[0])
        d.block_of[chunk], d.chunk_of[block] = block, chunk
        d.n[base.ACTIVATES] += 1
        link_before_tail(d, chunk)
        self.call("block_activate", chunk, current=chunk)
        return chunk


def levels(op: Op) -> list[tuple[int, int, int]]:
    """Subregions around the fault from a page to the block, each with a count of its pages."""
    rng, out, count = random.Random(op.seed), [], 1
    for i in range(10):
        first = op.page >> i << i
        count += rng.randint(0, (1 << i) - count) if (1 << i) > count else 0
        out.append((first, first + (1 << i), count))
    return out


class Expected:
    """The same driver around a twin."""

    def __init__(self, name: str, options: dict):
        tenant = [TENANT[b % 4] for b in range(N_BLOCKS)]
        self.w = naive_pages.World(N_BLOCKS, N_CHUNKS, tenant, BOUNDARIES)
        self.w.room = ROOM
        self.twin = TWINS[name](self.w, **options)

    def run(self, op: Op) -> list:
        w, t, out = self.w, self.twin, []
        w.decode = op.decode
        if not op.same_batch:
            w.now += op.wait
            w.batch += 1
            w.wanted = []
        hi = LAST_PAGES if op.block == N_BLOCKS - 1 else PAGES
        if op.faults:
            answer = t.prefetch(op.block, op.page, 0, hi)
            region = answer if isinstance(answer, tuple) else (0, 0)
            if answer == "loop":
                for first, outer, counter in levels(op):
                    region = t.tree(op.block, first, outer, counter) or region
            code = {"default": base.DEFAULT, "loop": base.ENTER_LOOP}.get(answer, base.BYPASS)
            out.append((code, {p for p in range(hi) if region[0] <= p < region[1]}))
        if op.serves:
            held = {b: c for c, b in w.block_of.items()}
            if op.block not in held:
                chunk = len(w.block_of)
                if chunk == N_CHUNKS:
                    t.prepare()
                    chunk = w.used.pop(0)
                w.block_of[chunk] = op.block
                w.activates += 1
                w.used.insert(max(len(w.used) - 1, 0), chunk)
                t.activate(chunk)
                out.append(list(w.used))
            else:
                chunk = held[op.block]
            moves = t.access(chunk)
            if moves:
                w.tail(chunk)
            out.append(base.DEFAULT if moves else base.BYPASS)
        held = {b: c for c, b in w.block_of.items()}
        return [*out, list(w.used), [held.get(b, -1) for b in range(N_BLOCKS)], list(w.wanted)]


def options_of(text: str) -> dict:
    pairs = (x.split("=") for x in text.split(":")[1:])
    return {k: int(v) if v.isdigit() else v for k, v in pairs}


def agree(policy: PagePolicy, options: dict) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def check(data):
        subject, expected = Subject(policy), Expected(policy.name, options)
        for op in walk(data):
            assert subject.run(op) == expected.run(op)

    check()


@pytest.mark.parametrize("text", OPTIONS)
def test_equals_its_twin(text):
    agree(parse_pages(text).prefetch, options_of(text))


@pytest.fixture
def table(tmp_path) -> Path:
    codes = [CODE.get(KINDS.get(b, ""), 0) for b in range(N_BLOCKS)]
    np.save(tmp_path / "classes.npy", np.array(codes, np.uint8))
    return tmp_path / "classes.npy"


@pytest.mark.parametrize("mode", ["protect", "page_lifo", "hot_lifo", "observe"])
def test_expert_buffering_equals_its_twin(table, mode):
    policy = parse_pages(f"expert_buffering_policy:table={table}:mode={mode}").prefetch
    agree(policy, {"kinds": KINDS, "mode": mode})


def test_every_policy_has_a_twin_and_a_source():
    assert set(builtin_pages()) == set(TWINS)
    for cls in builtin_pages().values():
        assert cls.source
        assert "\n" not in cls.__doc__.strip(), cls


def test_the_stride_map_holds_4096_blocks():
    policy = builtin_pages()["prefetch_stride"]()
    twin = naive_pages.Stride(None)
    s = policy.state(PageContext(5000, 1, 1, np.zeros(0, np.int64), 0))
    for rounds in range(5):
        for block in range(0, 5000, 7) if rounds else range(5000):
            region = np.array([0, 0, 0, PAGES], np.int64)
            policy.page_prefetch(s, None, block, 10 + 3 * rounds, region)
            first, outer = twin.prefetch(block, 10 + 3 * rounds, 0, PAGES)
            assert (region[0], region[1]) == (first, outer)
            assert (outer > first) == (rounds >= 3 and block < 4096)


def test_markov_entries_that_share_a_place_replace_each_other():
    policy = builtin_pages()["prefetch_delta_markov"]()
    policy.threshold = 1
    s = policy.state(PageContext(40, 1, 1, np.zeros(0, np.int64), 0))

    def ask(block, page):
        region = np.array([0, 0, 0, PAGES], np.int64)
        policy.page_prefetch(s, None, block, page, region)
        return region[0], region[1]

    assert [ask(3, p) for p in (0, 4, 8)][-1] == (12, 14)
    assert [ask(3 + 16, p) for p in (0, 4, 8)][-1] == (12, 14)  # takes the place
    assert ask(3, 12) == (16, 18)  # learns again from its own last two distances
    assert (s.key == 3 * 1024 + 4 + 512).sum() == 1
    assert (s.key == 19 * 1024 + 4 + 512).sum() == 0


@pytest.mark.parametrize("text", ["eviction_lfu", "prefetch_stride_lfu:sample=1"])
def test_a_count_at_its_cap_moves_nothing(text):
    """Two chunks served in turn change places until each has been counted from 1 to 255."""
    subject = Subject(parse_pages(text).order)
    orders = [subject.run(Op(i % 2, 0, 0, False, True, 0))[-3] for i in range(600)]
    moved = [orders[i] != orders[i + 1] for i in range(1, len(orders) - 1)]
    assert moved == [i < 2 * 253 for i in range(len(moved))]


I64 = types.int64
REGION = types.Array(I64, 1, "C")
SCALARS = {
    "page_prefetch": (I64, I64, REGION),
    "page_prefetch_iter": (I64, I64, I64, I64, REGION),
    "block_activate": (I64,),
    "block_access": (I64,),
    "evict_prepare": (),
}


@pytest.mark.parametrize("name", sorted(builtin_pages()))
def test_compiles_and_does_the_same(name, table):
    """As the driver compiles them: no Python objects, no reference counts, int64 scalars."""
    policy = builtin_pages()[name]()
    if name == "expert_buffering_policy":
        policy.table, policy.mode = str(table), "page_lifo"
    plain, compiled = Subject(policy), Subject(policy)
    for hook in hooks_of(type(policy)):
        jitted = njit(**KERNEL_OPTIONS)(Linker(getattr(policy, hook), {}, {}, True).link("test"))
        entry = jitted.compile((typeof(compiled.s), typeof(compiled.d), *SCALARS[hook]))
        returned = jitted.nopython_signatures[0].return_type
        assert types.unliteral(returned) == I64, hook
        compiled.hooks[hook] = entry
    rng = random.Random(name)
    page = 0
    for i in range(600):
        page = (page + rng.choice([1, 1, 1, -3, 200])) % LAST_PAGES
        block = (i // 3) % N_BLOCKS if i % 100 < 60 else rng.randrange(N_BLOCKS)
        op = Op(block, page, 10_000 * rng.randrange(3000), True, i % 3 == 0, i)
        assert compiled.run(op) == plain.run(op)


def test_the_example_of_the_docs():
    docs = Path(__file__).parents[1] / "docs"
    example = docs / "examples" / "rest_of_block.py"
    assert example.read_text() in (docs / "page-policies.md").read_text()
    subject = Subject(parse_pages(f"{example}:RestOfBlock:before=16").prefetch)
    answer = subject.run(Op(3, 40, 0, True, False, 0))[0]
    assert answer == (base.BYPASS, set(range(24, PAGES)))
