"""`uvmsim advise` on engines with terms: the mechanisms' times, for all that flags can say."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from advise_help import (
    GIB,
    HW,
    WORDS,
    base,
    cached,
    model,
    of_engine,
    requests,
    terms_hw,
    what,
)
from terms_profile import constants, write_engine

import uvmsim
from traces.files.schema import DECODE
from uvmsim.machine.engine import EngineProfile
from uvmsim.machine.llamacpp import LlamaModel
from uvmsim.policies.kinds import EXPERTS
from uvmsim.runs.job import Job
from uvmsim.studies.advise.candidate import (
    CACHE,
    CPU,
    plain,
)
from uvmsim.studies.advise.detailed import bound_of
from uvmsim.studies.advise.intervals import calibrated
from uvmsim.studies.advise.study import UBATCHES, predictor
from uvmsim.studies.advise.subject import Subject
from uvmsim.studies.advise.timed import BOUNDS
from uvmsim.studies.simulate import simulate


def test_every_term_is_spent_on_something():
    spent = {k: bound_of(k) for k in constants()}
    assert set(spent.values()) == set(BOUNDS) - {"faults"}
    assert (spent["row_experts.MXFP4"], spent["split"]) == ("kernels", "launches")
    assert (spent["cpu.row.Q8_0"], spent["cpu.dense.F16"], spent["pageable"]) == (
        "ram",
        "cpu",
        "link",
    )


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("ubatch", [512, 2048])
def test_configurations_take_what_their_mechanisms_take(mapped, ubatch):
    predict = of_engine(terms_hw())
    w = requests(ubatch).workload
    hw = predict._machine(base().loaded(mapped))
    c = base(ubatch=ubatch, hw=hw).loaded(mapped)
    cache = cached(c, 12, 300)
    for made, mechanism, words in (
        (c, "resident", {}),
        (c.experts_away(5), "cpu-offload", {"ncmoe": 5}),
        (c.experts_away(12), "cpu-offload", {"ncmoe": 12}),
        (cache, "expert-cache", {"slots": sum(cache.slots), "policy": EXPERTS.of("llama-cpp-lru")}),
    ):  # fmt: skip
        job = Job(w, model(), hw, pinned=not mapped, **words)
        run = simulate(job, mechanism)
        mine = predict._time(made, "llama-cpp-lru")
        off = np.abs(mine.ns - run.step_ns)
        decode = w.step_phase == DECODE
        assert off[decode].max() <= 100 < run.step_ns.min() / 1000  # rounding, some an event
        # A mechanism copies an expert's biases with it.
        assert (off[~decode] <= 0.005 * run.step_ns[~decode]).all()
        assert sum(mine.of.values()) == pytest.approx(mine.ns)
    assert mine.hits.sum(axis=1).tolist() == [run.counters.hits, run.counters.accesses]


def test_a_miss_takes_a_copy_a_matrix():
    hw = terms_hw()
    ns = dict(hw.engine.terms.ns)
    dearer = dataclasses.replace(hw.engine.terms, ns=ns | {"upload": ns["upload"] + 1000})
    other = dataclasses.replace(hw, engine=dataclasses.replace(hw.engine, terms=dearer))
    w, cache = requests(512).workload, cached(base(hw=hw), 12, 300)
    words = {"slots": sum(cache.slots), "policy": EXPERTS.of("llama-cpp-lru")}
    jobs = [
        Job(w, model(), dataclasses.replace(x, vram_bytes=1 << 50), **words) for x in (hw, other)
    ]
    runs = [simulate(job, "expert-cache") for job in jobs]
    one_by_one = w.step_phase == DECODE
    c = runs[0].counters
    misses = int(c.layer_accesses[DECODE].sum() - c.layer_hits[DECODE].sum())
    assert misses > 100
    more = (runs[1].step_ns - runs[0].step_ns)[one_by_one].sum()
    assert more == pytest.approx(3 * 1000 * misses, abs=misses)
    mine = [of_engine(x)._time(cache, "llama-cpp-lru").ns[one_by_one].sum() for x in (hw, other)]
    assert mine[1] - mine[0] == pytest.approx(3 * 1000 * misses)


def test_what_the_search_goes_by_is_nearly_what_is_told():
    predict = of_engine(terms_hw())
    for ubatch in UBATCHES:
        c = base(ubatch=ubatch, hw=terms_hw())
        for made in (
            *(c.experts_away(n) for n in (1, 4, 12)), *(cached(c, n, 200) for n in (3, 8, 12))
        ):  # fmt: skip
            # A bank's slots decide, too, which products are put together by a kernel more.
            near = 0.03 if made.config.moe_cache_mib else 0.001
            assert predict.seconds(made) == pytest.approx(predict(made).seconds, rel=near)


def test_flags_that_mean_the_same_take_the_same():
    predict = of_engine(terms_hw())
    c = base(hw=terms_hw())
    whole = predict(c.experts_away(5))
    parts = predict(c.part_away(4, ("down", "gate", "up")))
    assert (
        parts.seconds == pytest.approx(whole.seconds) and parts.decode_split == whole.decode_split
    )
    assert predict(c.blocks_away(what().llama, 12, 12)).decode_split["kernels"] > 0  # the head
    seconds = [predict(c.blocks_away(what().llama, n, 12)).seconds for n in range(1, 13, 2)]
    assert seconds == sorted(seconds) and seconds[-1] < predict(c.all_away(what().llama)).seconds


def test_layers_with_different_experts_have_caches_of_their_own():
    """A file that mixes types: llama.cpp shares the budget out among layers that look alike."""
    tensors = tuple(
        dataclasses.replace(t, type="F32") if re.match(r"blk\.(9|10|11)\.ffn_\w+_exps\.weight", t.name)
        else t for t in what().llama.tensors
    )  # fmt: skip
    mixed = Subject(model(), dataclasses.replace(what().llama, tensors=tensors), "mixed.gguf")
    c = plain(terms_hw(), 4096, 512, "f16").with_(CACHE, n_cpu_moe=12, moe_cache_mib=400)
    groups = mixed.memory.cache(c.config).groups
    assert [g.blocks for g in groups] == [tuple(range(9)), (9, 10, 11)]
    c = dataclasses.replace(c, slots=tuple(g.slots for g in groups))
    hits, asked = np.sum([lru_hits(requests(512), set(g.blocks), g.slots) for g in groups], axis=0)
    found = predictor(mixed, terms_hw(), requests, 0, {})(c)
    assert found.hit_rate == hits / asked != of_engine(terms_hw())(cached(base(), 12, 400)).hit_rate


def lru_hits(r, layers: set[int], slots: int) -> tuple[int, int]:
    """Hits and accesses of the tokens that count, the cache being read past by large batches."""
    w, cache, hits, asked = r.workload, [], 0, 0
    for e in range(w.n_events):
        if w.event_layer[e] not in layers or w.event_tokens[e] > 32:
            continue
        ids = w.ids[w.event_lo[e] : w.event_lo[e + 1]].tolist()
        there = [x for x in ids if x in cache]
        if r.decode_weight[w.event_step[e]]:
            hits, asked = hits + len(there), asked + len(ids)
        cache = [x for x in cache if x not in there] + there
        for x in sorted(set(ids) - set(there)):
            if len(cache) == slots:
                cache.pop(0)
            cache.append(x)
    return hits, asked


def test_types_that_nobody_calibrated_are_named():
    hw = terms_hw()
    terms = hw.engine.terms
    few = {
        k: ns for k, ns in terms.ns.items() if not k.endswith((".Q6_K", ".Q8_0", ".BF16", ".F32"))
    }
    fewer = dataclasses.replace(terms, ns=few)
    other = dataclasses.replace(hw, engine=dataclasses.replace(hw.engine, terms=fewer))
    s = uvmsim.Scenario(model="olmoe-1b-7b", hardware=other)
    a = uvmsim.advise(s, ctx="4k", **WORDS)
    told = [n for n in a.notes if "stand in" in n]
    types = {t.type for t in LlamaModel.load("olmoe-1b-7b").tensors if len(t.shape) > 1}
    assert len(told) == len(types - {"F16", "Q4_K", "MXFP4"}) > 0
    assert uvmsim.advise(s.with_(hardware=hw), ctx="4k", **WORDS).notes == [
        n for n in a.notes if "stand in" not in n
    ]


def test_terms_are_of_the_machine_that_reaches_what_theirs_did():
    hw = terms_hw()
    measured = dataclasses.replace(hw.engine.terms, source="measured, a test")
    own = dataclasses.replace(hw, engine=dataclasses.replace(hw.engine, terms=measured))
    assert calibrated(own) and not calibrated(hw)
    assert not calibrated(own.with_(link="10GB/s")) and not calibrated(own.with_(ram="10GB/s"))
    assert calibrated(own.with_(vram="8GiB"))


def test_an_engine_on_the_cpu_alone(tmp_path):
    engine = write_engine(tmp_path / "cpu.toml", gpu=False)
    hw = dataclasses.replace(HW.running(EngineProfile.load(str(engine))), vram_bytes=GIB)
    a = uvmsim.advise(
        uvmsim.Scenario(model=model(), hardware=hw), ctx="4k", prompt=700, generate=100
    )
    assert {c.candidate.kind for c in a} == {CPU} and a.contexts[0].refused is None
    assert not a.best.needs.vram and "-ngl" not in a.commands()[0] and a.better is None
    assert [w.change for w in a.what_ifs] == ["ram-bandwidth*1.5"]
    assert a.best.prediction.decode_split["ram"] + a.best.prediction.decode_split["cpu"] > 0.999
    small = dataclasses.replace(hw, host_bytes=3 * GIB)
    none = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=small), ctx="4k", **WORDS)
    assert none.best is None and "of RAM is missing" in none.contexts[0].nothing
