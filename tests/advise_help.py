"""A small model, machines and configurations for tests of `uvmsim advise`."""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import tempfile
from functools import cache
from pathlib import Path

from small_model import TOML
from terms_profile import write_engine

from uvmsim.machine.engine import EngineProfile
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.advise.candidate import (
    CACHE,
    Candidate,
    plain,
)
from uvmsim.studies.advise.predict import Predictor
from uvmsim.studies.advise.request import request
from uvmsim.studies.advise.routing import routed
from uvmsim.studies.advise.search import Search
from uvmsim.studies.advise.study import UBATCHES, predictor
from uvmsim.studies.advise.subject import Subject, subject

GIB = 2**30
HW = dataclasses.replace(Hardware.load("rtx4090"), uvm=None, host_bytes=64 * GIB)
WORDS = {"prompt": 700, "generate": 100, "what_if": ""}
FOLDER = Path(tempfile.mkdtemp(prefix="uvmsim-test-advise-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


@cache
def model() -> Model:
    """Twelve layers, 1.2 GiB of experts."""
    text = TOML.replace("n_layers = 3", "n_layers = 12").replace('"small"', '"test"')
    file = FOLDER / "test.toml"
    file.write_text(text)
    return Model.load(str(file))


@cache
def what() -> Subject:
    return subject(model(), [])


@cache
def terms_hw() -> Hardware:
    """The machine with an engine that has terms."""
    return HW.running(EngineProfile.load(str(write_engine(FOLDER / "terms.toml"))))


@cache
def requests(ubatch: int, brief: bool = False):
    return request(model(), routed(model(), 700, 0), 700, 100, ubatch, brief)


def base(ctx: int = 4096, ubatch: int = 512, hw: Hardware = HW) -> Candidate:
    return plain(hw, ctx, ubatch, "f16").loaded(mapped=False)


def cached(c: Candidate, blocks: int, mib: int) -> Candidate:
    made = c.with_(CACHE, n_cpu_moe=blocks, moe_cache_mib=mib)
    groups = what().memory.cache(made.config).groups
    return dataclasses.replace(made, slots=tuple(g.slots for g in groups))


KEPT: dict = {}


def of_engine(hw: Hardware) -> Predictor:
    return predictor(what(), hw, requests, 0, KEPT)


def found(vram: int, coarse: int = 8, kinds=None, ctx: int = 4096, hw: Hardware = HW):
    hw = dataclasses.replace(hw, vram_bytes=vram)
    search = Search(what(), hw, of_engine(hw), ctx, "f16", UBATCHES, coarse)
    return search.choices(kinds)
