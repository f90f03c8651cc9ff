"""A user's own policy: one file, named like a built-in, with errors a user can act on."""

from __future__ import annotations

from pathlib import Path

import pytest
from routing import generate, naive_of, plan_of

from traces.errors import InputError
from uvmsim.policies.registry import parse

COMPILABLE = '''
from typing import NamedTuple

import numpy as np

from uvmsim.policies.base import Eviction, in_use


class State(NamedTuple):
    last: np.ndarray


class MyPolicy(Eviction):
    """LRU by time stamps, with none of the package's own lists."""

    def state(self, ctx):
        return State(np.zeros(ctx.n_total, np.int64))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.last[e] = i

    @staticmethod
    def victim(s, pool, p):
        best = -1
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if not in_use(pool, e) and (best < 0 or s.last[e] < s.last[best]):
                best = e
        return best
'''

# The same with a dictionary, a try block and a Python list: nothing Numba could compile.
PLAIN = """
from uvmsim.policies.base import Eviction, in_use


class MyPolicy(Eviction):
    def state(self, ctx):
        return {"last": {}}

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s["last"][int(e)] = int(i)

    @staticmethod
    def victim(s, pool, p):
        free = [int(e) for e in pool.expert_in[pool.lo[p] : pool.lo[p] + pool.used[p]]
                if not in_use(pool, e)]
        try:
            return min(free, key=lambda e: s["last"][e])
        except KeyError:
            return -1
"""

PLAIN_PREFETCH = '''
from uvmsim.policies.base import Prefetch


class Last(Prefetch):
    """previous-token, with dictionaries."""

    def state(self, ctx):
        return {"n": ctx.top_k}

    @staticmethod
    def on_event(s, pool, ev):
        s[int(ev.layer)] = [int(e) for e in ev.experts[: s["n"]]]

    @staticmethod
    def prefetch(s, pool, ev, out):
        ids = s.get((int(ev.layer) + 1) % pool.n_layers, [])
        out[: len(ids)] = ids
        return len(ids)
'''

HELPERS = '''
from uvmsim.policies.lru import LRU

KEPT = {}


class MyPolicy(LRU):
    """Built on a built-in, but with a dictionary in one hook."""

    @staticmethod
    def on_event(s, pool, ev):
        KEPT[int(ev.layer)] = int(ev.tokens)
'''

PARAMETERS = COMPILABLE.replace(
    '    """LRU by time stamps, with none of the package\'s own lists."""\n',
    "    window: int = 4\n    share: float = 0.5\n    loud: bool = False\n    label: str = 'x'\n",
)

CASE = generate(11, layers=3, experts=9, top_k=2, sequences=3, decode=20)
HOW = {"slots": 8, "write_back": True, "reset": "sequence"}


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def counts(plan) -> tuple:
    c = plan.counters
    return (
        plan.hit.tolist(), c.evictions, c.prefetch_issued, c.prefetch_used, c.prefetch_wasted,
        plan.copy_kind.tolist(), plan.copy_after.tolist(),
    )  # fmt: skip


@pytest.mark.parametrize(
    "how", [HOW, {"slots": 12, "pool": "per-layer"}, {"slots": 5, "unit": "access"}]
)
def test_own_compiled_lru_equals_the_built_in(tmp_path, how):
    plan = plan_of(CASE, write(tmp_path, COMPILABLE) + ":MyPolicy", **how)
    assert counts(plan) == counts(plan_of(CASE, "lru", **how))
    assert plan.notes == []


def test_a_relative_path_works(tmp_path, monkeypatch):
    write(tmp_path, COMPILABLE)
    monkeypatch.chdir(tmp_path)
    assert counts(plan_of(CASE, "./mine.py:MyPolicy", **HOW)) == counts(plan_of(CASE, "lru", **HOW))


@pytest.mark.parametrize("text", [PLAIN, HELPERS], ids=["dictionary", "built on a built-in"])
def test_what_does_not_compile_runs_in_plain_python_and_says_so(tmp_path, text):
    plan = plan_of(CASE, write(tmp_path, text) + ":MyPolicy", **HOW)
    assert counts(plan) == counts(plan_of(CASE, "lru", **HOW))
    assert len(plan.notes) == 1
    assert "does not compile" in plan.notes[0] and "plain Python" in plan.notes[0]
    assert "\n" not in plan.notes[0]


@pytest.mark.parametrize("evict", ["lru", "lfu", "clock", "random", "belady"])
def test_a_plain_prefetcher_beside_a_built_in(tmp_path, evict):
    """The built-in half of a pair must run in plain Python too."""
    policy = f"{evict}+{write(tmp_path, PLAIN_PREFETCH)}:Last"
    plan = plan_of(CASE, policy, **HOW)
    want = naive_of(CASE, f"{evict}+previous-token", **HOW)
    assert plan.hit.tolist() == want.hit
    assert plan.counters.prefetch_issued == want.issued > 0
    assert plan.notes


def test_parameters_have_types(tmp_path):
    spec = parse(write(tmp_path, PARAMETERS) + ":MyPolicy:window=7:share=0.25:loud=yes:label=abc")
    p = spec.eviction
    assert (p.window, p.share, p.loud, p.label) == (7, 0.25, True, "abc")
    assert type(p)().window == 4  # the class is left as it was


def one_line(policy: str, **how) -> str:
    with pytest.raises(InputError) as e:
        plan_of(CASE, policy, **(how or HOW))
    message = str(e.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("{f}:MyPolicy:window=many", ["window", "whole number"]),
        ("{f}:MyPolicy:share=x", ["share", "number"]),
        ("{f}:MyPolicy:loud=maybe", ["loud", "yes or no"]),
        ("{f}:MyPolicy:windw=3", ["windw", "window"]),
        ("{f}:MyPolicy:window", ["window"]),
        ("{f}:Missing", ["Missing", "MyPolicy"]),
        ("{f}", ["class"]),
        ("lur", ["did you mean", "lru"]),
        ("lru+nextlayer", ["did you mean", "next-layer"]),
        ("next-layer", ["lru+next-layer"]),
        ("lru+lfu", ["two eviction"]),
        ("lru+next-layer+oracle", ["EVICTION+PREFETCH"]),
        ("lru+", ["EVICTION+PREFETCH"]),
        ("lru+next-layer:n=x", ["whole number"]),
        ("lru+next-layer:n=-2", ["-2"]),
        ("lru+oracle:horizon=-1", ["-"]),
        ("lru+oracle:budget=lots", ["lots"]),
        ("no/such/file.py:MyPolicy", ["no such file"]),
    ],
)
def test_a_wrong_name_or_parameter_is_one_line(tmp_path, policy, words):
    message = one_line(policy.format(f=write(tmp_path, PARAMETERS)))
    for word in words:
        assert word in message, message


def test_a_syntax_error_names_its_line(tmp_path):
    message = one_line(write(tmp_path, COMPILABLE + "\nclass (:\n") + ":MyPolicy")
    line = COMPILABLE.count("\n") + 2
    assert f"line {line}" in message and "SyntaxError" in message


def test_an_error_at_import_names_its_line(tmp_path):
    message = one_line(write(tmp_path, "import numpy\nx = 1 / 0\n") + ":MyPolicy")
    assert "line 2" in message and "ZeroDivisionError" in message


def test_an_error_in_state_is_one_line(tmp_path):
    text = COMPILABLE.replace("return State(", "return Sate(")
    assert "Sate" in one_line(write(tmp_path, text) + ":MyPolicy")


TEMPLATE = """
from uvmsim.policies.base import {base}

SEEN = {{}}


class Mine({base}):
    @staticmethod
    def {signature}:
        {plain}
        {body}
"""


@pytest.mark.parametrize("plain", ["pass", "SEEN[1] = 1"], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    "body",
    [
        "return -1", "return -7", "return 10**6", "return 0", "return None", "return 'x'",
        "return 1.5", "return [1, 2][9]", "raise ValueError('boom')",
    ],
)  # fmt: skip
def test_a_bad_victim_is_one_line(tmp_path, body, plain):
    text = TEMPLATE.format(base="Eviction", signature="victim(s, pool, p)", plain=plain, body=body)
    # With one layer's experts in use, "0" is no valid answer at the first eviction either.
    case = generate(1, layers=2, experts=8, top_k=2)
    with pytest.raises(InputError) as e:
        plan_of(case, write(tmp_path, text) + ":Mine", slots=4)
    assert "\n" not in str(e.value) and "event" in str(e.value)


@pytest.mark.parametrize("plain", ["pass", "SEEN[1] = 1"], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    "body", ["return 99", "out[0] = -5; return 1", "out[0] = 9999; return 1", "return None"]
)
def test_a_bad_prefetch_is_one_line(tmp_path, body, plain):
    text = TEMPLATE.format(
        base="Prefetch", signature="prefetch(s, pool, ev, out)", plain=plain, body=body
    )
    message = one_line(f"lru+{write(tmp_path, text)}:Mine")
    assert "prefetch" in message or "event" in message
