"""From a page policy in Python to C, to an object, and back: the same decisions."""

from __future__ import annotations

import pytest
from bpf_programs import compile_c, needs_clang

from traces.errors import InputError
from uvmsim.policies.bpf.emit import emit
from uvmsim.policies.pages.registry import parse_pages
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


@needs_clang
@pytest.mark.parametrize(
    "policy",
    [
        "prefetch_stride:pages=5",
        "prefetch_pid_tree",
        "prefetch_reuse_dist",
        "eviction_pid_quota",
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
        ("eviction_fifo_chance", "eviction_fifo_chance.py, line"),
        ("prefetch_none+eviction_fifo", "give one program"), ("prefetch_moe_expert", "65,536 steps"),
    ],
)  # fmt: skip
def test_policies_outside_the_subset(policy, told):
    with pytest.raises(InputError) as err:
        emit(parse_pages(policy))
    assert told in str(err.value)


def test_floats_in_the_state(tmp_path):
    policy = mine(tmp_path, MINE.replace("np.zeros(ctx.n_chunks, np.uint8)", "np.zeros(4)"))
    with pytest.raises(InputError, match=r"state\(\): uses .*no floating point"):
        emit(parse_pages(policy))


def test_room(tmp_path):
    with pytest.raises(InputError, match="chunks 100: a power of two"):
        emit(parse_pages("eviction_lfu"), chunks=100)
