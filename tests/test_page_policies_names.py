"""Page policies by name: how they are combined, every mistake in one line, the list of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from traces.errors import InputError
from uvmsim.policies.pages.base import PageContext
from uvmsim.policies.pages.registry import builtin_pages, parse_pages
from uvmsim.policies.registry import builtin, parse


def test_two_programs_share_the_hooks_of_one():
    spec = parse_pages("eviction_fifo+prefetch_stride:pages=9")
    assert (spec.prefetch.name, spec.order.name) == ("prefetch_stride", "eviction_fifo")
    assert spec.prefetch.pages == 9
    alone = parse_pages("prefetch_stride_lfu")
    assert alone.prefetch is alone.order
    for text in ("default+prefetch_max_mru_expert", "prefetch_max_mru_expert+default"):
        spec = parse_pages(text)
        assert spec.prefetch is spec.order
        assert spec.prefetch.name == "prefetch_max_mru_expert"
    assert parse_pages("prefetch_cooperative").migrates
    assert not parse_pages("default").migrates


MINE = """
from uvmsim.policies.pages.base import BYPASS, PagePolicy, move_head
from uvmsim.policies.base import Eviction

class Mine(PagePolicy):
    often: int = 3

    @staticmethod
    def {hook}(s, d, chunk):
        move_head(d, chunk)
        return BYPASS

class Expert(Eviction):
    pass
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "prefetch_nine",
            "page policy 'prefetch_nine' is not known; did you mean 'prefetch_none'?",
        ),
        ("lru", "page policy 'lru' is not known"),
        ("prefetch_stride:page=3", "no parameter 'page'; it has: threshold, pages, max_stride"),
        ("prefetch_stride:pages=x", "pages='x' is not a whole number"),
        ("prefetch_none+prefetch_stride", "both parts decide in page_prefetch;"),
        ("eviction_mru+prefetch_stride_lfu", "both parts decide in block_activate, block_access;"),
        ("a+b+c", "expected POLICY or PREFETCH\\+EVICTION"),
        ("", "expected POLICY"),
        ("./mine.py", "say which class, e.g. ./mine.py:MyPolicy"),
        ("./nowhere.py:Mine", "no such file"),
    ],
)
def test_mistakes_are_one_line(text, words):
    with pytest.raises(InputError, match=words) as e:
        parse_pages(text)
    assert "\n" not in str(e.value)


def test_words_and_tables_are_checked(tmp_path):
    ctx = PageContext(14, 4, 1, np.array([2, 4, 7]), 0)
    bad = tmp_path / "bad.npy"
    np.save(bad, np.array([1.5]))
    garbage = tmp_path / "garbage.npy"
    garbage.write_bytes(b"no array")
    for text, words in {
        "prefetch_direction:direction=up": "direction='up'; expected forward, backward, around",
        "prefetch_cross_block_v2:mode=4": "expected 2-step, blind, 3-step, adjacent",
        "expert_buffering_policy": "needs a .npy",
        f"expert_buffering_policy:table={bad}": "expected one dimension of uint8",
        f"expert_buffering_policy:table={garbage}": "table=",
    }.items():
        with pytest.raises(InputError, match=words) as e:
            parse_pages(text).prefetch.state(ctx)
        assert "\n" not in str(e.value)


def test_ones_own_policy(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE.format(hook="block_access"))
    spec = parse_pages(f"prefetch_none+{mine}:Mine:often=5")
    assert spec.order.often == 5
    assert spec.prefetch.name == "prefetch_none"
    assert spec.files == (str(mine),)
    with pytest.raises(InputError, match="no page policy class 'Expert'; it has: Mine"):
        parse_pages(f"{mine}:Expert")
    with pytest.raises(InputError, match="no policy class 'Mine'; it has: Expert"):
        parse(f"{mine}:Mine")


def test_the_docs_name_every_policy():
    text = (Path(__file__).parents[1] / "docs" / "page-policies.md").read_text()
    assert [name for name in builtin_pages() if f"`{name}`" not in text] == []


@pytest.mark.parametrize(("hook", "near"), [("block_acces", "block_access"), ("on_event", "")])
def test_a_hook_that_is_none_is_refused(tmp_path, hook, near):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE.format(hook=hook))
    hint = f"did you mean '{near}'\\?" if near else ""
    with pytest.raises(
        InputError, match=f"{hook} is no hook; {hint}.*block_activate, block_access"
    ):
        parse_pages(f"{mine}:Mine")


def test_page_policies_are_not_expert_policies():
    assert not set(builtin()) & set(builtin_pages())


def test_the_command_lists_them():
    run = [sys.executable, "-c", "from uvmsim.cli import main; main()", "policies"]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, check=True)
    rows = {r["name"]: r for r in json.loads(done.stdout)["page_policies"]}
    assert set(rows) == set(builtin_pages())
    assert rows["eviction_lfu"]["hooks"] == ["block_activate", "block_access"]
    assert rows["prefetch_stride"]["parameters"] == {"threshold": 2, "pages": 2, "max_stride": 128}
    assert rows["prefetch_moe_expert"]["migrates"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in rows)
