"""A second process that compiles ahead (uvmsim/studies/ahead.py): the same answer, no hanging."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uvmsim.policies.registry import parse
from uvmsim.studies.ahead import Ahead
from uvmsim.studies.resolve import resolve
from uvmsim.studies.scenario import Scenario

ROOT = Path(__file__).parents[1]
COLD = """
import json, sys
import uvmsim.experts.decisions as decisions
from uvmsim import Scenario
from uvmsim.studies.compare import compare

bind, made = decisions.bind, []
decisions.bind = lambda *a, **k: made.append(bind(*a, **k)) or made[-1]

if __name__ == "__main__":
    s = Scenario(policies=["lru", "mru", "belady"], limit=100)
    told = compare(s, processes=int(sys.argv[1])).to_json()
    told["compiled"] = sum(sum(b.run.stats.cache_misses.values()) for b in made)
    print(json.dumps(told))
"""


def cold(folder: Path, processes: int) -> dict:
    file = folder / "cold.py"
    file.write_text(COLD)
    env = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder / "cache")}
    words = [sys.executable, str(file), str(processes)]
    return json.loads(subprocess.run(words, env=env, capture_output=True, check=True).stdout)


def test_what_was_compiled_ahead_is_loaded_and_the_answer_is_the_same(tmp_path):
    two = cold(tmp_path, 2)
    one = cold(tmp_path, 1)
    assert (two.pop("compiled"), one.pop("compiled")) == (1, 0)
    assert one == two


def fails(scenario):
    raise ValueError("no runs")


def sleeps(scenario):
    time.sleep(600)


def two_runs():
    r = resolve(s := Scenario(limit=16, hardware="rtx5090"))
    runs = [(r.base, "expert-cache"), (r.base, "expert-cache")]
    return s, [(job.__class__(**vars(job) | {"policy": parse("lru")}), how) for job, how in runs]


@pytest.mark.parametrize("make", [fails, sleeps])
def test_trouble_over_there_is_no_trouble_here(make):
    with Ahead(*two_runs(), make) as ahead:
        if make is sleeps:
            while ahead._left:
                time.sleep(0.01)
            ahead._process.kill()
        start = time.monotonic()
        ahead.ready(0)
        ahead.ready(1)
        assert time.monotonic() - start < 60
    assert not ahead._process.is_alive()
