"""From a page policy in Python to C, to an object, and back: the same decisions."""

from __future__ import annotations

import numpy as np
import pytest
from bpf_programs import compile_c, needs_clang

from traces.errors import InputError
from uvmsim.policies.bpf.emit import emit
from uvmsim.policies.pages.registry import builtin_pages, hooks_of, parse_pages
from uvmsim.studies.decisions.ask import BOUNDARIES
from uvmsim.studies.decisions.parting import part

MINE = '''
from typing import NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    BYPASS, DEFAULT, FIRST, MAX_FIRST, MAX_OUTER, NOW_NS, OUTER, PagePolicy, drop_pending, layer_of,
    migrate, move_head, move_tail, set_region,
)

WAYS = 4
GAP_NS = 1_000_000


class State(NamedTuple):
    """Maps."""

    last: np.ndarray
    votes: np.ndarray
    uses: np.ndarray
    told: np.ndarray
    boundaries: np.ndarray


class Mine(PagePolicy):
    """Votes on the way a block is walked, counts uses, asks for the next block of a layer."""

    migrates = True
    width: int = 3

    def state(self, ctx):
        return State(
            np.full(ctx.n_blocks, -1, np.int16), np.zeros(WAYS * ctx.n_blocks, np.int32),
            np.zeros(ctx.n_chunks, np.uint8), np.array([self.width, -5, 0, -7], np.int64),
            ctx.boundaries,
        )

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        """Text is passed over."""
        before = s.last[block]
        s.last[block] = page
        step = page - before
        if before < 0 or not (-8 < step < 8):
            set_region(region, region[MAX_FIRST], region[MAX_OUTER] // 2)
            return BYPASS
        way = (step % WAYS + WAYS) % WAYS if step != 0 else 3
        s.votes[WAYS * block + way] += 1
        best, most = 0, -1
        for i in range(WAYS):
            if s.votes[WAYS * block + i] > most:
                best, most = i, s.votes[WAYS * block + i]
            elif i == 2 and most == 0:
                continue
        a = b = (step // -3) ^ best
        for i in range(1, min(s.told[0], 8)):
            if a + i > 1000:
                break
            b += i << 1
        set_region(region, min(page, page + b), max(page, page + abs(b)) + 1)
        if region[OUTER] - region[FIRST] > 20 or region[MAX_FIRST] > 0:
            return DEFAULT
        if layer_of(s.boundaries, block) == layer_of(s.boundaries, block + 1):
            s.told[2] = s.told[2] + 1 if s.told[2] < 2_000_000_000 else 0
            if s.told[2] % 5 == 0:
                if s.told[2] % 10 == 0:
                    drop_pending(d)
                migrate(d, block + 1)
        return BYPASS

    @staticmethod
    def block_activate(s, d, chunk):
        s.uses[chunk] = 1
        if d.block_of[chunk] % 3 == 0:
            move_head(d, chunk)
        return BYPASS

    @staticmethod
    def block_access(s, d, chunk):
        now, was = d.n[NOW_NS], s.told[3]
        s.told[3] = now
        if was > 0 and now - was > GAP_NS and d.tenant_of[d.block_of[chunk]] <= 1:
            move_tail(d, chunk)
            return BYPASS
        s.uses[chunk] += 7
        return DEFAULT if s.uses[chunk] & 1 else BYPASS
'''


def mine(tmp_path, text=MINE):
    (tmp_path / "mine.py").write_text(text)
    return f"{tmp_path}/mine.py:Mine"


def back(tmp_path, policy):
    """The object of a policy."""
    text = emit(parse_pages(policy), boundaries=BOUNDARIES.tolist())
    (tmp_path / "x.bpf.c").write_text(text)
    compile_c(tmp_path / "x.bpf.c", tmp_path / "x.bpf.o")
    return str(tmp_path / "x.bpf.o")


@needs_clang
def test_a_million_decisions_are_equal(tmp_path):
    """Everything the subset has."""
    policy = mine(tmp_path)
    found = part(policy, back(tmp_path, policy), events=1_000_000)
    assert found.first is None, found.first
    assert sum(found.questions.values()) >= 1_000_000


WITH_FUNCTIONS = '''
from typing import NamedTuple

import numpy as np

from uvmsim.policies.pages.base import (
    ACTIVATES, BYPASS, DEFAULT, MAX_FIRST, MAX_OUTER, PagePolicy, migrate, move_head, move_tail,
    set_region,
)

ROWS, WAYS = 3, 5


class State(NamedTuple):
    """Maps."""

    table: np.ndarray
    uses: np.ndarray
    walk: np.ndarray
    p: np.ndarray
    seen: np.ndarray


def least(a, b):
    a = a if a < b else b
    return a


def way(walk, block):
    """Writes what it is given."""
    step = block - walk[0]
    walk[0] = block
    if step == 0:
        return 0
    walk[1] = least(walk[1] + step, 1000) if step > 0 else -least(-step, 9)
    return walk[1]


def counted(table, row, chunk):
    """Counts."""
    table[row, chunk % WAYS] += 1
    return table[row, chunk % WAYS]


def keep(s, d, chunk):
    """Calls another, and moves."""
    if counted(s.table, chunk % ROWS, chunk) % 3 == 1:
        move_tail(d, chunk)
        return True
    return False


def widen(region, page, by):
    set_region(region, page - by, page + by)


class Mine(PagePolicy):
    """Functions of its own, a table, names of fields, the list's ends, bounds that are parameters."""

    migrates = True
    width: int = 3

    def state(self, ctx):
        table = np.arange(ROWS * WAYS, dtype=np.int16).reshape(ROWS, WAYS)
        return State(
            table, np.zeros(ctx.n_chunks, np.uint8), np.zeros(2, np.int64),
            np.array([self.width, 7], np.int64), np.full(2, -1, np.int32),
        )

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        p, table = s.p, s.table
        moved = way(s.walk, block)
        if moved or s.walk[1] > 40:
            widen(region, page, least(abs(moved), p[0]) + 1)
        else:
            set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        total = 0
        for k in range(1, min(1 + abs(s.walk[1]) // 2, p[0]) + 1):
            total += table[k % ROWS, 2]
        for b in range(block, min(block + p[1], 90)):
            if b > block and b % 11 == 0:
                migrate(d, b)
        table[1, 2] = (total and moved) or -total
        return BYPASS if total % 4 else DEFAULT

    @staticmethod
    def block_activate(s, d, chunk):
        if counted(s.table, d.block_of[chunk] % ROWS, chunk) > 90:
            move_head(d, chunk)
        s.uses[chunk] = 1
        return DEFAULT

    @staticmethod
    def block_access(s, d, chunk):
        s.uses[chunk] += 1
        if d.n[ACTIVATES] % 7 == 3 and not keep(s, d, chunk):
            move_head(d, chunk)
            return BYPASS
        return BYPASS if s.uses[chunk] == s.seen[0] % 50 else DEFAULT

    @staticmethod
    def evict_prepare(s, d):
        end = len(d.next) - 1
        head, tail = d.next[end], d.prev[len(d.next) - 1]
        s.seen[0], s.seen[1] = s.seen[0] + (head < len(s.uses)), tail - head
        if head != end:
            s.uses[head] = 0
        return 0
'''


@needs_clang
def test_functions_and_tables_are_equal(tmp_path):
    """A million decisions: own functions that call others and write, a table of two dimensions, the
    list's ends, loops that parameters end."""
    policy = mine(tmp_path, WITH_FUNCTIONS)
    found = part(policy, back(tmp_path, policy), events=1_000_000)
    assert found.first is None, found.first


@needs_clang
@pytest.mark.parametrize(
    "policy",
    [
        "prefetch_stride:pages=5",
        "prefetch_reuse_dist",
        "eviction_pid_quota",
        "eviction_freq_pid_decay",
        "eviction_2q_approx:generation=50",
        "prefetch_cooperative:t1=2",
        "prefetch_stride_multiblock:t1=2:strides=2",
        "prefetch_template_belady:t1=2",
        "prefetch_always_max_qos",
    ],
)
def test_built_in_ones_are_equal(tmp_path, policy):
    found = part(policy, back(tmp_path, policy), events=50_000)
    assert found.first is None, found.first


BODY = MINE[: MINE.index("        before = s.last[block]")]
REFUSED = [
    ("        while page > 0:\n            page = 1\n", "assigns to its argument 'page'"),
    ("        x = 1\n        while x > 0:\n            x += 1\n", "line 42: a loop without a bound"),
    ("        for i in range(page):\n            pass\n", "line 41: a loop without a bound"),
    ("        for i in range(100):\n            for j in range(100):\n                pass\n",
     "line 42: 10,000 steps"),
    ("        x = 0.5\n", "line 41: 0.5: the kernel has no floating point"),
    ("        x = page / 2\n", "the kernel has no floating point; use //"),
    ("        x = d.n_resident[block]\n", "d.n_resident: a program in the kernel sees"),
    ("        x = s.nothing[0]\n", "the state has no field 'nothing'"),
    ("        x = s.told[4]\n", "s.told has elements 0 to 3"),
    ("        x = [1, 2]\n", "has no form in C here"),
    ("        print(page)\n", "calls print"),
    ("        region[0] = 1\n", "only the state can be written"),
    ("        x = y\n", "'y' is no whole number"),
    ("        x = 18446744073709551615\n", "has more than 64 bits"),
]  # fmt: skip


@pytest.mark.parametrize("body, told", REFUSED)
def test_what_the_verifier_would_refuse_is_refused_with_its_line(tmp_path, body, told):
    policy = mine(tmp_path, BODY + body + "        return 0\n")
    with pytest.raises(InputError) as err:
        emit(parse_pages(policy))
    assert told in str(err.value) and str(err.value).startswith("mine.py, line ")


@pytest.mark.parametrize(
    "policy, told",
    [
        ("eviction_fifo_chance", "line 48: move_tail of a chunk found in the list"),
        ("prefetch_none+eviction_fifo", "give one program"), ("prefetch_moe_expert", "65,536 steps"),
        ("prefetch_llama_phase", "prefetch_llama_phase.py, line 43: d.n: a program in the kernel"),
        ("eviction_cycle_moe:cpus=2", "t1.py, line 28: d.n: a program in the kernel"),
    ],
)  # fmt: skip
def test_policies_outside_the_subset(policy, told):
    with pytest.raises(InputError) as err:
        emit(parse_pages(policy))
    assert told in str(err.value)


@needs_clang
def test_an_index_outside_an_array_in_a_function_ends_the_hook(tmp_path):
    """The object of a policy that leaves its table against one that returns before it would: Python
    itself raises there."""
    call = "        if counted(s.table, d.block_of[chunk] % ROWS, chunk) > 90:"
    wide = call.replace("ROWS", "5")
    before = "        if d.block_of[chunk] % 5 >= ROWS:\n            return DEFAULT\n"
    leaves = WITH_FUNCTIONS.replace(call, wide)
    stays = WITH_FUNCTIONS.replace(call, before + wide)
    made = back(tmp_path, mine(tmp_path, leaves))
    (tmp_path / "stays").mkdir()
    assert part(mine(tmp_path / "stays", stays), made, events=50_000).first is None


ALL_BUT = {
    "eviction_fifo_chance", "prefetch_llama_phase", "prefetch_moe_expert", "expert_buffering_policy",
}  # fmt: skip
"""The last two are within the subset with ``--blocks 8192``, and with a table."""


@needs_clang
@pytest.mark.parametrize("policy", sorted(set(builtin_pages()) - ALL_BUT))
def test_all_but_a_few_are_c_that_clang_takes(tmp_path, policy):
    text = emit(parse_pages(policy), boundaries=BOUNDARIES.tolist())
    (tmp_path / "x.bpf.c").write_text(text)
    compile_c(tmp_path / "x.bpf.c", tmp_path / "x.bpf.o")
    assert all(f"int {h}(u64 *ctx)" in text for h in hooks_of(builtin_pages()[policy]))


@needs_clang
def test_those_that_need_a_parameter(tmp_path):
    np.save(tmp_path / "kinds.npy", np.arange(96, dtype=np.uint8) % 4)
    for policy, blocks in (
        ("prefetch_moe_expert", 8192),
        (f"expert_buffering_policy:table={tmp_path}/kinds.npy", 1 << 16),
    ):
        (tmp_path / "x.bpf.c").write_text(emit(parse_pages(policy), blocks=blocks))
        compile_c(tmp_path / "x.bpf.c", tmp_path / "x.bpf.o")


OWN = WITH_FUNCTIONS[: WITH_FUNCTIONS.index("        p, table = s.p, s.table")]
NOT_IN_FUNCTIONS = [
    ("def again(x):\n    return again(x - 1)\n", "        x = again(page)\n",
     "again calls itself: the verifier refuses it"),
    ("def early(x, by=1):\n    return x + by\n", "        x = early(page)\n",
     "early takes 2 arguments"),
    ("def half(x):\n    return x / 2\n", "        x = half(page)\n",
     "mine.py, line 2: 'x / 2': the kernel has no floating point"),
    ("def one(x):\n    return x\n", "        x = 0 < one(page) < 5\n", "name its value first"),
    ("def one(x):\n    return x\n", "        s.uses[one(page)] += 1\n", "name its value first"),
    ("", "        x = s.table[page]\n", "s.table has rows and columns"),
    ("", "        x = s.table[0, 5]\n", "s.table has 3 rows of 5 elements"),
    ("", "        x = s.table[1:, 2]\n", "one element at a time"),
    ("", "        x = d.next[len(d.next) - 1]\n", "d.next: a program in the kernel"),
    ("", "        for k in range(min(page, s.table[1, 2])):\n            pass\n", "without a bound"),
]  # fmt: skip


@pytest.mark.parametrize("own, body, told", NOT_IN_FUNCTIONS)
def test_functions_outside_the_subset(tmp_path, own, body, told):
    policy = mine(tmp_path, own + OWN + body + "        return 0\n")
    with pytest.raises(InputError) as err:
        emit(parse_pages(policy))
    assert told in str(err.value) and str(err.value).startswith("mine.py, line ")


def test_floats_in_the_state(tmp_path):
    policy = mine(tmp_path, MINE.replace("np.zeros(ctx.n_chunks, np.uint8)", "np.zeros(4)"))
    with pytest.raises(InputError, match=r"state\(\): uses .*no floating point"):
        emit(parse_pages(policy))


def test_room(tmp_path):
    with pytest.raises(InputError, match="chunks 100: a power of two"):
        emit(parse_pages("eviction_lfu"), chunks=100)
