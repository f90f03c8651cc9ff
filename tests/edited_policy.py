"""A user's policies in four files, each of which decides: what they do flips with every file edited.

Run as a program it prints what a fresh process finds: ``python edited_policy.py KIND... FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

PLACES = ("policy", "constant", "helper", "helpers_helper", "inherited")
"""Where an edit is made: a literal in a hook, a constant of the module, an ``@njit`` function in a
second file, one that it calls in a third, an inherited class in a fourth."""

POLICY = '''
from typing import NamedTuple

import numpy as np

import helper
from helper import second
from base_class import Base
from uvmsim.policies.base import Prefetch, in_use
from uvmsim.policies.pages.base import BYPASS, DEFAULT, MAX_FIRST, MAX_OUTER, PagePolicy, set_region

CONSTANT = {constant}


class Kept(NamedTuple):
    mine: np.ndarray


class Mine(Base):
    """lru, or mru where the sum of all parts is odd."""

    @staticmethod
    def victim(s, pool, p):
        newest = (({policy} + CONSTANT + second(0)) ^ s.flag[0]) & 1
        best = -1
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if in_use(pool, e):
                continue
            if best < 0 or (s.last[e] > s.last[best]) == (newest == 1):
                best = e
        return best


class Ahead(Prefetch):
    """Nothing, or the next expert where the sum is odd."""

    def state(self, ctx):
        return Kept(np.zeros(1, np.int64))

    @staticmethod
    def prefetch(s, pool, ev, out):
        if (({policy} + CONSTANT + helper.second(0)) & 1) == 0:
            return 0
        out[0] = (ev.experts[0] + 1) % len(pool.slot_of)
        return 1


class Pages(PagePolicy):
    """default, or prefetch_always_max where the sum is odd."""

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        if (({policy} + CONSTANT + second(0)) & 1) == 0:
            return DEFAULT
        set_region(region, region[MAX_FIRST], region[MAX_OUTER])
        return BYPASS
'''
HELPER = """
from numba import njit

from third import inner

ADDED = {helper}


@njit
def second(x):
    return x + ADDED + inner(x)
"""
THIRD = """
from numba import njit


@njit(cache=True)
def inner(x):
    return x + {helpers_helper}
"""
BASE = """
from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction


class State(NamedTuple):
    last: np.ndarray
    flag: np.ndarray


class Base(Eviction):
    def state(self, ctx):
        return State(np.zeros(ctx.n_total, np.int64), np.zeros(1, np.int64))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.last[e] = i
        s.flag[0] = {inherited}
"""
FILES = {"policy.py": POLICY, "helper.py": HELPER, "third.py": THIRD, "base_class.py": BASE}


def write(folder: Path, parts: dict[str, int]) -> None:
    """The four files."""
    for name, text in FILES.items():
        made = text
        for place, value in parts.items():
            made = made.replace("{" + place + "}", str(value))
        (folder / name).write_text(made, encoding="utf-8")


IDS = np.random.default_rng(1).integers(0, 40, 3000).astype(np.uint32)


def wanted(kind: str, parts: dict[str, int]) -> object:
    """What the built-in policy does that the files shall be the same as."""
    deciding = [
        v for k, v in parts.items() if k != "inherited" or kind in ("cache_misses", "experts")
    ]
    return found(kind, None, sum(deciding) % 2 == 1)


def found(kind: str, folder: Path | None, odd: bool = False) -> object:
    """What a policy of the folder does, or (without one) its built-in twin."""
    from routing import generate, plan_of

    import uvmsim
    from uvmsim.studies.microbench.table import Options, run

    def named(cls: str, even: str, odd_one: str) -> str:
        return f"{folder / 'policy.py'}:{cls}" if folder else odd_one if odd else even

    if kind == "cache_misses":
        return uvmsim.cache_misses(IDS, 10, named("Mine", "lru", "mru"))
    case = generate(5, layers=2, experts=8, top_k=2, sequences=1, decode=60, prefill=0)
    if kind == "experts":
        return plan_of(case, named("Mine", "lru", "mru"), slots=6).hit.tolist()
    if kind == "prefetch":
        if folder is None:
            return odd
        plan = plan_of(case, "lru+" + named("Ahead", "", ""), slots=6)
        return plan.counters.prefetch_issued > 0
    policy = named("Pages", "default", "prefetch_always_max")
    rows = run(Options(vram="128MiB", ratios=(1.05,), passes=2, policies=(policy,))).runs
    return {k: v for k, v in rows[0].items() if k not in ("policy",)}


if __name__ == "__main__":
    *kinds, where = sys.argv[1:]
    print(json.dumps([found(kind, Path(where)) for kind in kinds]))
