"""`uvmsim advise`: what is recommended fits, is the best there is, and is said alike each time."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise

import numpy as np
import pytest
from advise_help import (
    GIB,
    HW,
    WORDS,
    base,
    cached,
    found,
    model,
    of_engine,
    requests,
    terms_hw,
    what,
)
from click.testing import CliRunner
from dense_gguf import write_dense
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import COSTS, TOML
from tiny_gguf import write_tiny

import uvmsim
from traces.errors import InputError
from traces.files.schema import DECODE, PREFILL
from uvmsim.commands.advise import advise as command
from uvmsim.machine.llamacpp import memory, reserve_for
from uvmsim.studies.advise.candidate import (
    CACHE,
    CPU,
    GPU,
    LAYERS,
    NCMOE,
    TENSORS,
    UNIFIED,
)
from uvmsim.studies.advise.needs import MIB, SYSTEM_BYTES
from uvmsim.studies.advise.predict import Predictor
from uvmsim.studies.advise.request import request
from uvmsim.studies.advise.routing import routed
from uvmsim.studies.advise.search import best_of
from uvmsim.studies.advise.study import UBATCHES
from uvmsim.studies.advise.subject import subject

# ---- what fits ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1080, 3600), st.integers(2200, 6000), st.integers(1, 16), st.booleans(),
    st.integers(0, 300), st.booleans(),
)  # fmt: skip
def test_never_recommends_what_does_not_fit(vram, ram, ctx, paged, others, terms):
    hw = dataclasses.replace(
        terms_hw() if terms else HW, host_bytes=ram * MIB, uvm=COSTS if paged else None,
        reserve_bytes=others * MIB,
    )  # fmt: skip
    kinds = None if vram % 5 == 0 else (GPU, NCMOE, TENSORS, CACHE, LAYERS, CPU)
    for choice in found(vram * MIB, kinds=kinds, ctx=ctx * 1024, hw=hw):
        c, needs = choice.candidate, choice.needs
        plan = memory(what().llama, c.config)
        reserve = reserve_for(c.config)
        assert needs.reserve == reserve >= GIB
        room = (vram - others) * MIB - reserve
        out = max(plan.vram_bytes - room, 0) if c.kind == UNIFIED else 0
        assert needs.vram_bytes == plan.vram_bytes - out <= room
        assert needs.ram_bytes == plan.host_bytes + SYSTEM_BYTES + out <= ram * MIB
        if c.cache_mib:
            assert sum(c.slots) == sum(g.slots for g in plan.cache.groups) > 0
            assert plan.cache.device_bytes > (c.cache_mib - 3) * MIB


def test_what_is_told_beforehand_is_what_it_takes():
    """Estimates differ from plans in compute buffers alone, and not at all from those alike."""
    m = what().memory
    c = base()
    like = {
        CACHE: cached(c, 12, 200), NCMOE: c.experts_away(12), LAYERS: c.blocks_away(m.model, 6, 12),
    }  # fmt: skip
    for made in (
        *(c.experts_away(n) for n in (2, 5, 11)), cached(c, 7, 130), cached(c, 12, 500),
        *(c.blocks_away(m.model, n, 12) for n in (1, 9)),
    ):  # fmt: skip
        told, is_ = m.estimate(made, like[made.kind]), m.needs(made)
        for side in ("vram", "ram"):
            a, b = getattr(told, side), getattr(is_, side)
            assert {k: v for k, v in a.items() if k != "compute"} == {
                k: v for k, v in b.items() if k != "compute"
            }
        assert abs(told.vram["compute"] - is_.vram["compute"]) < 8 * MIB


def test_says_why_not_and_by_how_much():
    a = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=HW, vram="2GiB"), ctx="4k", **WORDS)
    need = what().memory.needs(base())
    short = (need.vram_bytes + need.reserve - 2 * GIB) / MIB
    assert re.search(rf"-ngl all needs .*; {short:.0f} MiB too much", a.contexts[0].refused)
    assert all(c.candidate.kind != GPU for c in a)
    big = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=HW), ctx="4k", **WORDS)
    assert big.contexts[0].refused is None and big.best.candidate.kind == GPU


def test_what_something_else_uses_is_not_there():
    s = uvmsim.Scenario(model=model(), hardware=HW, vram="3GiB")
    fewer = [
        uvmsim.advise(x, ctx="4k", **WORDS).best
        for x in (s, s.with_(reserve="1GiB"), s.with_(vram="2GiB"))
    ]
    assert fewer[0].candidate.kind == GPU
    assert fewer[1].candidate == fewer[2].candidate != fewer[0].candidate


def test_nothing_fits():
    small = dataclasses.replace(HW, vram_bytes=64 * MIB)
    a = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=small), ctx="4k", **WORDS)
    assert a.best is None and a.commands() == [] and "too much" in a.contexts[0].refused
    assert "even with all experts" in a.contexts[0].refused
    assert "of VRAM is missing" in a.contexts[0].nothing
    assert len(a) == 0 and json.dumps(a.to_json())


# ---- the best there is -----------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [False, True])
@pytest.mark.parametrize("vram", [1250, 1500, 1800, 2100, 2400])
def test_the_search_finds_what_trying_all_finds(vram, terms):
    hw = terms_hw() if terms else HW
    whole = found(vram * MIB, coarse=0, hw=hw)
    quick = found(vram * MIB, hw=hw)
    assert [c.candidate.kind for c in quick] and quick[0].seconds <= whole[0].seconds * 1.002
    of = {c.candidate.kind: c.seconds for c in reversed(whole)}
    for kind, seconds in {c.candidate.kind: c.seconds for c in reversed(quick)}.items():
        assert seconds == pytest.approx(of[kind], rel=0.01)


@pytest.mark.parametrize("terms", [False, True])
def test_trying_all_is_trying_all(terms):
    """The slow reference of the reference: every -ncmoe, asked one by one."""
    hw = dataclasses.replace(terms_hw() if terms else HW, vram_bytes=1800 * MIB)
    predict = of_engine(hw)
    every = [base(ubatch=ub).experts_away(n) for ub in UBATCHES for n in range(1, 13)]
    fit = [c for c in every if what().memory.needs(c).fits(hw)]
    assert 0 < len(fit) < len(every)
    best = min(predict(c).seconds for c in fit)
    assert found(1800 * MIB, coarse=0, kinds=(NCMOE,), hw=hw)[0].seconds == best


@pytest.mark.parametrize("terms", [False, True])
def test_more_memory_is_never_slower(terms):
    hw = terms_hw() if terms else HW
    seconds = [found(mib * MIB, coarse=0, hw=hw)[0].seconds for mib in range(1240, 2800, 140)]
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(seconds))
    assert seconds[-1] < seconds[0] / 2


def test_a_longer_context_is_never_faster():
    of = [found(1900 * MIB, coarse=0, ctx=n * 1024)[0].seconds for n in (1, 8, 32)]
    assert of == sorted(of)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_best_of_all_is_the_least(values):
    ns = list(range(10, 10 + len(values)))
    assert values[best_of(ns, lambda n: values[n - 10], 0) - 10] == min(values)
    assert best_of(ns, lambda n: values[n - 10]) in ns


@given(st.integers(1, 97), st.integers(0, 96), st.floats(0.01, 5), st.floats(0.01, 5))
def test_a_valley_is_found(n, bottom, left, right):
    def score(x):
        return (bottom - x) * left if x < bottom else (x - bottom) * right

    assert best_of(range(n), score) == min(range(n), key=score)


# ---- predictions -------------------------------------------------------------------------------------


def test_blocks_add_up_to_the_whole():
    predict = Predictor(what(), HW, requests)
    c = base().experts_away(5).loaded(mapped=True)
    for mechanism, words in (("resident", {}), ("cpu-offload", {"ncmoe": 5})):
        whole = predict._run(c, 0, 12, mechanism, **words)
        first = predict._run(c, 0, 5, mechanism, **words)
        rest = predict._run(c, 5, 12, "resident")
        assert np.abs(whole.ns - (first + rest).ns).max() <= 24  # rounding, a block each
        parts = sum(whole.of.values())
        assert np.allclose(parts, whole.ns) and all((v >= 0).all() for v in whole.of.values())


@pytest.mark.parametrize("terms", [False, True])
def test_a_cache_of_everything_hits_and_one_in_part_does_less(terms):
    predict = of_engine(terms_hw() if terms else HW)
    made = [predict(cached(base(), 12, mib)) for mib in (160, 640, 1300)]
    assert made[0].hit_rate < made[1].hit_rate < made[2].hit_rate
    assert made[0].seconds > made[1].seconds > made[2].seconds
    whole = predict(base())
    assert made[2].decode_tokens_per_s < whole.decode_tokens_per_s  # each layer decides


@pytest.mark.parametrize("terms", [False, True])
def test_projections_lie_between_whole_layers(terms):
    predict = of_engine(terms_hw() if terms else HW)

    def at(n, *projections):
        c = base().part_away(n, projections) if projections else base().experts_away(n)
        return predict(c).seconds

    assert at(4) < at(4, "down") < at(4, "gate", "up") < at(5)


def test_weights_stand_for_the_whole_request():
    for prompt, generate, ubatch in ((700, 100, 512), (10_000, 40, 512), (3, 5, 2048), (0, 9, 512)):
        r = request(model(), routed(model(), prompt, 0), prompt, generate, ubatch)
        w = r.workload
        assert (r.prefill_weight * w.step_tokens).sum() == pytest.approx(prompt)
        assert r.decode_weight.sum() == pytest.approx(generate)
        kv = (r.prefill_weight * w.step_kv).sum()
        assert kv == pytest.approx(prompt * (prompt + 1) / 2)
        assert (w.step_tokens[w.step_phase == PREFILL] <= ubatch).all()
        assert (w.step_tokens[w.step_phase == DECODE] == 1).all()


def test_micro_batches_that_hold_the_whole_prompt_are_one():
    for prompt, sizes in ((0, {512}), (512, {512}), (513, {512, 2048})):
        s = uvmsim.Scenario(model=model(), hardware=HW)
        a = uvmsim.advise(s, ctx="4k", prompt=prompt, generate=9, what_if="")
        assert {c.candidate.ubatch for c in a} == sizes


@pytest.mark.parametrize("terms", [False, True])
def test_unified_memory_where_the_machine_knows_it(terms):
    plain_hw = terms_hw() if terms else HW
    hw = dataclasses.replace(plain_hw, uvm=COSTS)
    paged = [c for c in found(2100 * MIB, hw=hw) if c.candidate.kind == UNIFIED]
    assert len(paged) == 1 and paged[0].prediction.decode_split["faults"] > 0
    needs = paged[0].needs
    whole = what().memory.needs(base())
    assert needs.vram_bytes + needs.reserve <= 2100 * MIB < whole.vram_bytes + whole.reserve
    assert not [c for c in found(2100 * MIB, hw=plain_hw) if c.candidate.kind == UNIFIED]
    assert not [c for c in found(1800 * MIB, hw=hw) if c.candidate.kind == UNIFIED]  # 2,048 tokens


def test_belady_bounds_what_a_policy_could_give():
    for hw in (HW, terms_hw()):
        a = uvmsim.advise(
            uvmsim.Scenario(model=model(), hardware=hw, vram="1800MiB"), ctx="4k", **WORDS
        )
        of = a.better.of
        assert set(of) == {"llama-cpp-lru", "layer-lru", "belady"}
        assert of["belady"].hit_rate >= max(v.hit_rate for v in of.values())
        assert of["belady"].decode_tokens_per_s > of["llama-cpp-lru"].decode_tokens_per_s


def test_the_kv_cache_by_type():
    made = [
        uvmsim.advise(
            uvmsim.Scenario(model=model(), hardware=HW, **words), ctx="4k", **more, **WORDS
        )
        for words, more in (({}, {}), ({}, {"kv_type": "q8_0"}), ({"kv_type": "q8_0"}, {}))
    ]
    config = made[1].best.candidate.config
    f16 = memory(what().llama, dataclasses.replace(config, type_k="f16", type_v="f16"))
    smaller = f16.gpu.kv_cache * 34 / 64  # and rows are padded
    assert smaller <= made[1].best.needs.vram["kv_cache"] < smaller * 1.002
    assert made[1].best == made[2].best
    assert made[1].model.kv_bytes_per_token == model().kv_bytes_per_token * 34 // 64
    line = made[1].commands()[0]
    assert (
        "-ctk q8_0 -ctv q8_0" in line and "-fa on" in line and "-ctk" not in made[0].commands()[0]
    )


# ---- changes of the machine --------------------------------------------------------------------------


def test_what_ifs():
    a = uvmsim.advise(
        uvmsim.Scenario(model=model(), hardware=HW, vram="1800MiB"), ctx="4k",
        prompt=700, generate=100,
        what_if=["vram=4GiB,link*2", "ram-bandwidth*2", "ram-60GiB", "vram-100MiB", "link=1GB/s"],
    )  # fmt: skip
    of = {w.change: w for w in a.what_ifs}
    assert of["vram=4GiB"].best.candidate.kind == GPU and of["vram=4GiB"].faster > 1.5
    assert of["link*2"].faster > 1.05
    assert of["ram-bandwidth*2"].faster >= 1 - 1e-9
    assert of["vram-100MiB"].faster < 1 and of["link=1GB/s"].faster < 1
    direct = uvmsim.advise(
        uvmsim.Scenario(model=model(), hardware=HW, vram="1700MiB"), ctx="4k", **WORDS
    )
    assert of["vram-100MiB"].best.seconds == direct.best.seconds


# ---- models of other kinds ---------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [False, True])
def test_a_dense_model_gets_layers(tmp_path, terms):
    path = write_dense(tmp_path / "dense.gguf", layers=40, d=1024, ff=4096)
    hw = terms_hw() if terms else HW
    a = uvmsim.advise(
        uvmsim.Scenario(model=path, hardware=hw, vram="1500MiB"), ctx="4k", prompt=400,
        generate=100, what_if="",
    )  # fmt: skip
    assert a.best.candidate.kind == LAYERS and a.routing is None
    ngl = int(re.search(r"-ngl (\d+)", a.commands()[0])[1])
    assert 1 < ngl < 41
    here = subject(str(path), [])
    one_more = a.best.candidate.blocks_away(here.llama, 40 - ngl, 0)
    assert not here.memory.fits(one_more, dataclasses.replace(hw, vram_bytes=1500 * MIB))
    assert a.best.prediction.bound == "ram"
    whole = uvmsim.advise(uvmsim.Scenario(model=path, hardware=hw), ctx="4k", what_if="")
    assert whole.best.candidate.kind == GPU and "no experts" in whole.notes[0]
    assert whole.best.prediction.decode_tokens_per_s > a.best.prediction.decode_tokens_per_s


def test_a_model_in_parts(tmp_path):
    whole = write_dense(tmp_path / "whole.gguf")
    first = write_dense(tmp_path / "part.gguf", parts=20)
    assert first.name.startswith("part-00001-of-0000")
    needs = [
        uvmsim.advise(uvmsim.Scenario(model=p, hardware=HW), ctx="4k", what_if="").best.needs
        for p in (whole, first)
    ]
    assert needs[0] == needs[1]
    second = first.with_name(first.name.replace("00001", "00002"))
    with pytest.raises(InputError, match="give the first"):
        uvmsim.advise(str(second))
    second.unlink()
    with pytest.raises(InputError, match="no such file"):
        uvmsim.advise(str(first))


@pytest.mark.parametrize("arch", ["gpt-oss", "deepseek2", "glm4moe", "mixtral"])
def test_small_files_of_other_architectures(tmp_path, arch):
    path = write_tiny(tmp_path / "m.gguf", arch)
    a = uvmsim.advise(uvmsim.Scenario(model=path, hardware=HW), ctx="4k", what_if="")
    assert a.best.candidate.kind == GPU and str(path) in a.commands()[0]
    known = {"gpt-oss": "statistics of gpt-oss", "glm4moe": "statistics of glm4moe"}
    assert known.get(arch, "nobody recorded") in a.routing.source


def test_sizes_without_tensors_cannot_be_placed():
    with pytest.raises(InputError, match=r"model: test has sizes but no tensors to place; name"):
        uvmsim.advise(uvmsim.Scenario(model=model().scaled(10**6), hardware=HW))


def test_ones_own_trace(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((60, 12, 32)), axis=2)[:, :, :4]
    trace = uvmsim.routing(ids, 32, prefill=20)
    s = uvmsim.Scenario(model=model(), hardware=HW, vram="1800MiB", trace=trace)
    a = uvmsim.advise(s, ctx="4k", **WORDS)
    assert a.routing.recorded and "40 decode and 20 prompt tokens" in a.routing.source
    skewed = uvmsim.routing(np.tile(ids[:1], (60, 1, 1)), 32)
    same = uvmsim.advise(s.with_(trace=skewed), ctx="4k", **WORDS)
    assert same.better.of["llama-cpp-lru"].hit_rate == 1.0
    assert a.better.of["llama-cpp-lru"].hit_rate < 0.9


# ---- what people see ------------------------------------------------------------------------------


def run(*words: object):
    return CliRunner().invoke(command, [str(w) for w in words])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "test.toml"
    path.write_text(TOML.replace("n_layers = 3", "n_layers = 12").replace('"small"', '"test"'))
    return path


def test_the_same_question_has_the_same_answer(file):
    words = (file, "--hardware", "rtx4090", "--vram", "2GiB", "--prompt", 600, "--ctx", "4k,8k")
    first, second = (run(*words, "--what-if", "link*2", "--json") for _ in range(2))
    assert first.exit_code == 0 and first.stdout == second.stdout
    d = json.loads(first.stdout)
    assert [at["ctx"] for at in d["contexts"]] == [4096, 8192]
    best = d["contexts"][0]["best"][0]
    assert best["interval"]["decode"]["low"] < best["prediction"]["decode_tokens_per_s"]
    assert d["what_if"][0]["faster"] >= 1 and "not validated" in json.dumps(d)
    seconds = [c["prediction"]["seconds"] for c in d["contexts"][0]["best"]]
    assert seconds == sorted(seconds)
    kinds = [c["configuration"]["kind"] for c in d["contexts"][0]["best"]]
    assert len(kinds) <= 5 and len(
        {json.dumps(c["flags"]) for c in d["contexts"][0]["best"]}
    ) == len(kinds)


def test_the_table_fits_eighty_columns(file):
    done = run(file, "--hardware", "rtx4090", "--vram", "2GiB", "--ram", "8GiB", "--ctx", "4k,16k")
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("bound by", "llama-server", "What if", "no policy beats", "coverage", "routing:"):
        assert word in done.stdout
    one = run(
        file, "--vram", "2GiB", "--hardware", "rtx4090", "--ctx", "4k,16k", "--emit", "llama.cpp"
    )
    lines = one.stdout.splitlines()
    assert len(lines) == 2 and lines[0] in re.sub(r" \\\n +", " ", done.stdout)


def test_the_answer_is_a_table_too():
    a = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=HW, vram="2GiB"), ctx="4k", **WORDS)
    table = a.table()
    assert (
        table.num_rows == len(a) and table["configuration_kind"][0].as_py() == a[0].candidate.kind
    )
    assert "expert cache" in a._repr_html_()


MISTAKES = [
    (["nosuch.gguf"], "no such file"),
    (["nosuch"], "unknown model"),
    (["FILE", "--vram", "48GiB"], "--vram 48GiB: more than the 23.5 GiB of rtx4090; --what-if"),
    (["FILE", "--vram", "24g"], "--vram '24g' is ambiguous"),
    (["FILE", "--ram", "64"], None),
    (["FILE", "--ram", "lots"], "--ram 'lots' is not a size"),
    (["FILE", "--ctx", "2k"], "--ctx 2048: 2000 prompt and 500 generated tokens do not fit"),
    (["FILE", "--ctx", "x"], "--ctx x: tokens, like 8192 or 8k"),
    (["FILE", "--ctx", ""], "--ctx: give a context size"),
    (["FILE", "--kv-type", "q3"], "--kv-type q3: must be one of f32, f16"),
    (["FILE", "--what-if", "vram*"], "--what-if vram*: not a change; write vram+8GiB"),
    (["FILE", "--what-if", "gpu+1"], "--what-if gpu+1: not a change"),
    (["FILE", "--what-if", "vram-99GiB"], "--what-if vram-99GiB: leaves"),
    (["FILE", "--what-if", "link*fast"], "--what-if link*fast: 'fast' is no factor"),
    (["FILE", "--what-if", "ram+64GiB"], "--what-if ram+64GiB: how much there is now is not known"),
    (["FILE", "--what-if", "vram+8"], None),
    (["FILE", "--hardware", "rtx3090"], "--hardware rtx3090, rtx4090: give one"),
    (["FILE", "--reserve", "24GiB"], "--reserve: 24.0 GiB kept for something else leave nothing"),
    (["FILE", "--prompt", "-1"], "--prompt -1: 0 to"),
    (["FILE", "--prompt", "0", "--generate", "0"], "--generate 0: give tokens"),
    (["FILE", "--trace", "nosuch.arrow"], "no such trace"),
    (["DENSE", "--trace", "SAMPLE"], "--trace: tiny-dense has no experts"),
    (["FILE", "--trace", "SAMPLE"], "has 8 MoE layers"),
    (["STRANGE"], "unknown architecture 'strange'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_mistakes_take_one_line(words, said, file, tmp_path):
    from traces.samples import BUNDLED

    names = {"FILE": file, "SAMPLE": BUNDLED}
    if "DENSE" in words:
        names["DENSE"] = write_dense(tmp_path / "d.gguf")
    if "STRANGE" in words:
        names["STRANGE"] = write_dense(tmp_path / "s.gguf", arch="strange")
    done = run(*(names.get(w, w) for w in words), "--hardware", "rtx4090")
    if said is None:
        assert done.exit_code == 0
        return
    assert isinstance(done.exception, InputError)
    text = str(done.exception)
    assert said in text and "\n" not in text and done.stdout == ""


def test_this_machine_where_none_is_named(file, monkeypatch):
    from uvmsim.machine import detect

    def nothing():
        raise InputError("no tool reports an NVIDIA GPU")

    monkeypatch.setattr(detect, "_real", nothing)
    done = run(file)
    text = str(done.exception)
    assert isinstance(done.exception, InputError) and "\n" not in text and done.stdout == ""
    assert text.startswith("--hardware: no NVIDIA GPU") and "rtx4090" not in text
    monkeypatch.setattr(detect, "_real", lambda: detect.Found("rtx4090", []))
    done = run(file, "--json", "--what-if", "")
    assert json.loads(done.stdout)["hardware"]["gpu"] == HW.gpu


# ---- routing by family, and how sure a speed is -----------------------------------------------------


def test_a_family_has_its_popularity_and_its_locality():
    from traces.routing.stats import expert_counts, expert_sets, overlap, skew
    from uvmsim.studies.advise.families import families, family_of

    assert set(families()) == {"gpt-oss", "olmoe", "glm4moe"}
    made = {}
    for name, family in families().items():
        assert family_of(family.architectures[0])[0] is family
        routing = family.generator(6, family.experts, family.top_k, 0)
        ids, _ = routing.generate(np.array([0, 400, 800]), 1)
        trace = uvmsim.routing(ids, family.experts, seq=np.repeat([0, 1], 400))
        lags = overlap(expert_sets(trace.dense), family.top_k, (1, 32))
        near, far = (float(np.nanmean(lags[x])) for x in (1, 32))
        chance = family.top_k / family.experts
        assert near > far > chance
        made[name] = skew(expert_counts(trace.dense))["gini"]
        assert 0.1 < made[name] < 0.9
    middle, words = family_of("nosuch")
    assert "nobody recorded nosuch" in words and "--trace" in words
    spread = [np.std(p.log_popularity) for f in families().values() for p in f.parts]
    assert min(spread) <= np.std(middle.parts[1].log_popularity) <= max(spread)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "file", "title"),
    [
        ("olmoe", "olmoe-1b-7b/trace_olmoe_299.jsonl", "OLMoE-1B-7B"),
        ("glm4moe", "glm-4.5-air/glm45air_routing.jsonl", "GLM-4.5-Air"),
    ],
)
def test_made_routing_hits_a_cache_as_recorded_routing_does(shared_data, name, file, title):
    from traces.importers.dump import ImportOptions, import_routing
    from uvmsim.experts.cache_misses import cache_misses
    from uvmsim.studies.advise.families import families

    path = shared_data / "routing" / file
    d = import_routing(path, ImportOptions(model_name=title)).dense.by_sequence()
    d = d.take(d.phase == DECODE)
    family = families()[name]
    n, k = len(d.layers), d.ids.shape[2]
    made, _ = family.generator(n, d.n_experts, k, 3).generate(d.sequence_starts(), 3)

    def hits(ids):
        flat = (ids.astype(np.int64) + np.arange(n)[None, :, None] * d.n_experts).reshape(-1)
        return 1 - cache_misses(flat, n * d.n_experts // 4, "lru") / len(flat)

    assert abs(hits(d.ids) - hits(made)) < 0.05


def test_the_most_particular_errors_count(tmp_path, monkeypatch):
    from uvmsim.studies.advise import intervals

    assert not intervals.calibrated(HW)
    measured = dataclasses.replace(
        HW, sources=dict.fromkeys(HW.sources, "measured"),
        engine=dataclasses.replace(HW.engine, sources={"dense_launch_ns": "measured"}),
    )  # fmt: skip
    assert intervals.calibrated(measured)
    sure, unsure = (intervals.row_for(hw, CACHE, "decode") for hw in (measured, HW))
    assert unsure.low < sure.low < 1 < sure.high < unsure.high
    assert "no coverage is claimed" in sure.words() and "not validated" in unsure.words()
    rows = (
        intervals.FILE.read_text()
        + """
[[rows]]
engine = "estimated"
kind = "cache"
phase = "decode"
calibrated = true
low = 0.9
high = 1.1
coverage = 0.9
cells = 12
source = "a test"
"""
    )
    monkeypatch.setattr(intervals, "FILE", tmp_path / "errors.toml")
    intervals.FILE.write_text(rows)
    intervals.rows.cache_clear()
    try:
        row = intervals.row_for(measured, CACHE, "decode")
        assert row.words() == "90% of 12 cells inside; a test"
        assert intervals.interval(100.0, row) == {"low": 90.0, "high": pytest.approx(110.0)}
        assert intervals.row_for(measured, CACHE, "prefill").coverage == 0
        assert intervals.row_for(measured, NCMOE, "decode").coverage == 0
        assert intervals.row_for(HW, CACHE, "decode").coverage == 0
    finally:
        intervals.rows.cache_clear()


def test_a_machine_with_a_measured_llama_cpp_is_advised_with_it():
    """The preset's own engine is another program's; llama.cpp's on it ships."""
    found = json.loads(
        CliRunner().invoke(command, ["gpt-oss-20b", "--hardware", "h100", "--json"]).output
    )
    assert "llama.cpp-h100" in json.dumps(found)
    other = CliRunner().invoke(
        command, ["gpt-oss-20b", "--hardware", "h100", "--program", "estimated-python", "--json"]
    )
    assert "llama.cpp-h100" not in other.output
