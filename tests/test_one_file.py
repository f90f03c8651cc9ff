"""What can be added is one file, found by its presence: dropped into the folder, known by its name.

The folder here is a temporary one on the package's path, so that nothing is left in the checkout.
CONTRIBUTING.md has the steps.
"""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import uvmsim
from traces.importers.formats import formats
from uvmsim.machine import descriptions
from uvmsim.machine.engine import EngineProfile
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms import mechanism, mechanisms
from uvmsim.policies.pages.registry import builtin_pages, pages_of
from uvmsim.policies.registry import builtin, spec_of

FOUND = (builtin, builtin_pages, mechanisms, formats)
"""What looks through a folder once a process."""

POLICY = '''
from uvmsim.policies.base import Eviction, in_use


class Newest(Eviction):
    """Evict whoever sits in the last slot."""

    name = "newest"

    @staticmethod
    def victim(s, pool, p):
        for slot in range(pool.lo[p] + pool.used[p] - 1, pool.lo[p] - 1, -1):
            e = pool.expert_in[slot]
            if not in_use(pool, e):
                return e
        return -1
'''

PAGE_POLICY = '''
from uvmsim.policies.pages.base import BYPASS, MAX_OUTER, PagePolicy, set_region


class RestOfBlock(PagePolicy):
    """A fault brings the rest of its block."""

    name = "rest_of_block"

    @staticmethod
    def page_prefetch(s, d, block, page, region):
        set_region(region, page, region[MAX_OUTER])
        return BYPASS
'''

MECHANISM = '''
from typing import ClassVar

from uvmsim.mechanisms.resident import Resident
from uvmsim.runs.job import Job
from uvmsim.runs.plan import Plan


class Twice(Resident):
    """Everything in VRAM, and every expert computed twice."""

    name: ClassVar[str] = "twice"

    def plan(self, job: Job) -> Plan:
        plan = super().plan(job)
        plan.compute_ns *= 2
        return plan
'''

POOL = '''
from typing import ClassVar

from uvmsim.mechanisms.expert_cache import ExpertCache


class SecondPool(ExpertCache):
    """A pool like the first one."""

    name: ClassVar[str] = "second-pool"
'''

IMPORTER = '''
import numpy as np

from traces.errors import InputError
from traces.importers.dump import Dump
from traces.importers.format import Format


def load(path, options):
    """A routing log: uint16 [tokens, 3 layers, 2]."""
    raw = np.fromfile(path, "<u2")
    if raw.size % 6:
        raise InputError(f"{path}: {raw.size} ids are no whole number of tokens; copy it again")
    ids = raw.reshape(-1, 3, 2).astype(np.int64)
    return Dump(ids, seq=np.zeros(len(ids), int), pos=np.arange(len(ids)))


FORMATS = (Format("rtrace", load, (".rtrace",)),)
'''


@pytest.fixture
def drop(tmp_path, monkeypatch) -> Iterator[Callable[[str, str, str], None]]:
    """Put a module into a package, as far as anybody who looks can tell."""
    dropped: list[tuple[str, str]] = []

    def put(package: str, name: str, text: str) -> None:
        folder = tmp_path / package
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        home = importlib.import_module(package)
        monkeypatch.setattr(home, "__path__", [*home.__path__, str(folder)])
        importlib.invalidate_caches()
        dropped.append((package, name))
        forget()

    def forget() -> None:
        for found in FOUND:
            found.cache_clear()

    yield put
    for package, name in dropped:
        sys.modules.pop(f"{package}.{name}", None)
        vars(sys.modules[package]).pop(name, None)
    forget()


@pytest.fixture
def presets(tmp_path, monkeypatch) -> Path:
    """A copy of the folder of presets, in its place."""
    folder = tmp_path / "presets"
    shutil.copytree(descriptions.PRESETS, folder)
    monkeypatch.setattr(descriptions, "PRESETS", folder)
    return folder


def run(module: str, *words: object) -> str:
    """What a sub-command prints (``module``: as `pyproject.toml` has it)."""
    name, _, function = module.partition(":")
    command = getattr(importlib.import_module(name), function)
    done = CliRunner().invoke(command, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_policy(drop):
    drop("uvmsim.policies", "newest", POLICY)
    assert builtin()["newest"] is type(spec_of("newest").eviction)
    assert spec_of("newest+next-layer").name == "newest+next-layer"
    listed = json.loads(run("uvmsim.commands.policies:policies", "--json"))
    assert "newest" in {row["name"] for row in listed["policies"]}
    # 0 1 2 fill three slots; 3 takes the last one's place, and so does 2 again: six misses, one hit.
    ids = np.array([0, 1, 2, 3, 2, 0, 3], np.int32)
    assert uvmsim.cache_misses(ids, 3, "newest") == 6


def test_a_page_policy(drop):
    drop("uvmsim.policies.pages", "rest_of_block", PAGE_POLICY)
    spec = pages_of("rest_of_block+eviction_fifo")
    assert type(spec.prefetch) is builtin_pages()["rest_of_block"]
    listed = json.loads(run("uvmsim.commands.policies:policies", "--json"))
    hooks = {row["name"]: row["hooks"] for row in listed["page_policies"]}
    assert hooks["rest_of_block"] == ["page_prefetch"]


def test_a_mechanism(drop):
    drop("uvmsim.mechanisms", "twice", MECHANISM)
    assert type(mechanism("twice")) is mechanisms()["twice"]
    study = uvmsim.Scenario(limit=20, mechanisms=["resident", "twice"])
    for clock in ("fast", "des"):
        once, twice = (r.to_json() for r in study.with_(engine=clock).compare())
        assert twice["mechanism"] == "twice" and twice["hits"] == once["hits"]
        assert twice["time_s"] > once["time_s"]


def test_a_mechanism_with_a_pool_stands_among_those_with_one(drop):
    drop("uvmsim.mechanisms", "second_pool", POOL)
    result = uvmsim.compare(
        uvmsim.Scenario(limit=20, mechanisms=["expert-cache", "second-pool"], policies="belady")
    )
    first, second = result.to_json()["runs"]
    assert first == second | {"mechanism": "expert-cache"} and first["misses_over_belady"] == 1
    console = Console(file=io.StringIO(), width=120)
    result.show(console)
    shown = console.file.getvalue()
    assert "second-pool belady" in shown and "without an expert pool" not in shown


def test_an_engine_profile(presets):
    text = (presets / "engines" / "estimated.toml").read_text().replace('"39 us"', '"390 us"')
    (presets / "engines" / "mine.toml").write_text(text)
    assert "mine" in EngineProfile.list_presets()
    assert "mine" in json.loads(run("uvmsim.commands.lists:hardware", "--json"))["engines"]
    study = uvmsim.Scenario(limit=20, mechanisms="resident", hardware="a100")
    slow, usual = (study.with_(program=p).compare()[0] for p in ("mine", "estimated"))
    assert slow.job.hardware.engine.dense_launch_ns == 390_000
    assert slow.step_end[-1] > usual.step_end[-1]


def test_presets_of_machines_and_models(presets):
    for kind, like in (("hardware", "a30"), ("models", "olmoe-1b-7b")):
        shutil.copy(presets / kind / f"{like}.toml", presets / kind / "mine.toml")
    assert Hardware.load("mine") == Hardware.load("a30")
    assert Model.load("mine").expert_bytes == Model.load("olmoe-1b-7b").expert_bytes
    study = uvmsim.Scenario(limit=20, mechanisms="resident", hardware="mine")
    assert study.compare()[0].job.hardware.gpu == Hardware.load("a30").gpu


def test_an_importer(drop, tmp_path):
    drop("traces.importers", "rtrace", IMPORTER)
    ids = np.stack([np.random.default_rng(0).permutation(8)[:2] for _ in range(15)])
    source, out = tmp_path / "log.rtrace", tmp_path / "t.arrow"
    ids.astype("<u2").tofile(source)
    run("traces.commands.trace:trace", "import", source, "-o", out, "--n-experts", 8)
    trace = uvmsim.open_trace(out)
    assert trace.n_tokens == 5 and trace.n_experts == 8
    assert trace.experts.tolist() == ids.tolist()
    assert trace.meta.extra["format"] == "rtrace"
    run("traces.commands.trace:trace", "import", source, "-o", tmp_path / "u.arrow",
        "--format", "rtrace")  # fmt: skip
    source.write_bytes(b"1234")
    with pytest.raises(uvmsim.InputError, match="no whole number of tokens"):
        run("traces.commands.trace:trace", "import", source, "-o", out)
