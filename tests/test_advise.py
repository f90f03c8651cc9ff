"""`uvmsim advise`: what is recommended fits, is the best there is, and is said alike each time."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
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
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.advise.candidate import (
    CACHE,
    CPU,
    GPU,
    LAYERS,
    NCMOE,
    TENSORS,
    UNIFIED,
    Candidate,
)
from uvmsim.studies.advise.needs import MIB, needed
from uvmsim.studies.advise.predict import Predictor
from uvmsim.studies.advise.request import request
from uvmsim.studies.advise.routing import routed
from uvmsim.studies.advise.search import best_of, choices
from uvmsim.studies.advise.study import UBATCHES
from uvmsim.studies.advise.subject import with_kv_type

GIB = 2**30
HW = dataclasses.replace(Hardware.load("rtx4090"), uvm=None, host_bytes=64 * GIB)
WORDS = {"prompt": 700, "generate": 100, "what_if": ""}


@cache
def model() -> Model:
    """Twelve layers, 1.2 GiB of experts."""
    text = TOML.replace("n_layers = 3", "n_layers = 12").replace('"small"', '"test"')
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test.toml"
        file.write_text(text)
        return Model.load(str(file))


@cache
def requests(ubatch: int, brief: bool = False):
    return request(model(), routed(model(), 700, 0), 700, 100, ubatch, brief)


def found(vram: int, coarse: int = 8, kinds=None, ctx: int = 4096, hw: Hardware = HW, m=None):
    m = m or model()
    hw = dataclasses.replace(hw, vram_bytes=vram)
    return choices(m, hw, Predictor(m, hw, requests), ctx, "f16", UBATCHES, kinds, coarse)


# ---- what fits ------------------------------------------------------------------------------------


def on_the_gpu(m: Model, flags: list[str]) -> int:
    """Weights that llama.cpp puts on the GPU, tensor by tensor, from its options alone."""
    layers = m.n_layers
    word = dict(pairwise(flags))
    ngl = layers + 1 if word["-ngl"] == "all" else int(word["-ngl"])
    n = layers if "-cmoe" in flags else int(word.get("-ncmoe", 0))
    patterns = [rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps" for i in range(n)]
    patterns += [word["-ot"].removesuffix("=CPU")] if "-ot" in word else []
    total = 0
    for name, _, nbytes in m.tensors:
        block = re.match(r"blk\.(\d+)\.", name)
        place = int(block[1]) if block else layers
        away = name.startswith("token_embd") or place < layers + 1 - ngl
        away |= any(re.search(p, name) for p in patterns)
        total += 0 if away else nbytes
    return total


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(420, 2600), st.integers(2100, 6000), st.integers(1, 16), st.booleans())
def test_never_recommends_what_does_not_fit(vram, ram, ctx, paged):
    hw = dataclasses.replace(HW, host_bytes=ram * MIB, uvm=COSTS if paged else None)
    kinds = None if vram % 5 == 0 else (GPU, NCMOE, TENSORS, CACHE, LAYERS, CPU)
    for choice in found(vram * MIB, kinds=kinds, ctx=ctx * 1024, hw=hw):
        c, needs = choice.candidate, choice.needs
        assert needs.vram_bytes <= vram * MIB and needs.ram_bytes <= ram * MIB
        if c.kind != UNIFIED:
            weights = on_the_gpu(model(), c.flags(model().n_layers))
            assert abs(needs.vram["weights"] - weights) <= model().n_experts
            stored = sum(n for _, _, n in model().tensors)
            assert abs(needs.ram["weights"] - (stored - weights)) <= model().n_experts
        kv = ctx * 1024 * model().kv_bytes_per_token
        assert needs.vram["kv"] + needs.ram["kv"] == kv
        if c.cache_mib:
            assert c.cache_mib * MIB >= needs.vram["cache"] > (c.cache_mib - 1) * MIB
            assert choice.needs.vram_bytes - needs.vram["cache"] + c.cache_mib * MIB <= vram * MIB


def test_says_why_not_and_by_how_much():
    a = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=HW, vram="1GiB"), ctx="4k", **WORDS)
    need = needed(model(), Candidate(GPU, 4096, 512), HW)
    short = (need.vram_bytes - GIB) / MIB
    assert re.search(rf"-ngl all needs .*; {short:.0f} MiB too much", a.contexts[0].refused)
    assert all(c.candidate.kind != GPU for c in a)
    big = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=HW), ctx="4k", **WORDS)
    assert big.contexts[0].refused is None and big.best.candidate.kind == GPU


def test_nothing_fits():
    small = dataclasses.replace(HW, vram_bytes=64 * MIB)
    a = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=small), ctx="4k", **WORDS)
    assert a.best is None and a.commands() == [] and "too much" in a.contexts[0].refused
    assert "even with all experts" in a.contexts[0].refused
    assert len(a) == 0 and json.dumps(a.to_json())


# ---- the best there is -----------------------------------------------------------------------------


@pytest.mark.parametrize("vram", [620, 900, 1150, 1400, 1700])
def test_the_search_finds_what_trying_all_finds(vram):
    whole = found(vram * MIB, coarse=0)
    quick = found(vram * MIB)
    assert [c.candidate.kind for c in quick] and quick[0].seconds <= whole[0].seconds * 1.002
    of = {c.candidate.kind: c.seconds for c in reversed(whole)}
    for kind, seconds in {c.candidate.kind: c.seconds for c in reversed(quick)}.items():
        assert seconds == pytest.approx(of[kind], rel=0.01)


def test_trying_all_is_trying_all():
    """The slow reference of the reference: every -ncmoe, asked one by one."""
    hw = dataclasses.replace(HW, vram_bytes=1100 * MIB)
    predict = Predictor(model(), hw, requests)
    every = [
        Candidate(NCMOE, 4096, ub, cpu_experts=n) for ub in UBATCHES for n in range(1, 13)
    ]  # fmt: skip
    fit = [c for c in every if needed(model(), c, hw).fits(hw)]
    assert 0 < len(fit) < len(every)
    best = min(predict(c).seconds for c in fit)
    assert found(1100 * MIB, coarse=0, kinds=(NCMOE,))[0].seconds == best


def test_more_memory_is_never_slower():
    seconds = [found(mib * MIB, coarse=0)[0].seconds for mib in range(560, 2100, 140)]
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(seconds))
    assert seconds[-1] < seconds[0] / 2


def test_a_longer_context_is_never_faster():
    of = [found(1200 * MIB, coarse=0, ctx=n * 1024)[0].seconds for n in (1, 8, 32)]
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
    predict = Predictor(model(), HW, requests)
    c = Candidate(NCMOE, 4096, 512, mapped=True, cpu_experts=5)
    for mechanism, words in (("resident", {}), ("cpu-offload", {"ncmoe": 5})):
        whole = predict._run(c, 0, 12, mechanism, **words)
        first = predict._run(c, 0, 5, mechanism, **words)
        rest = predict._run(c, 5, 12, "resident")
        assert np.abs(whole.ns - (first + rest).ns).max() <= 24  # rounding, a block each
        parts = sum(whole.of.values())
        assert np.allclose(parts, whole.ns) and all((v >= 0).all() for v in whole.of.values())


def test_a_cache_of_everything_hits_and_one_in_part_does_less():
    predict = Predictor(model(), HW, requests)
    made = [predict(Candidate(CACHE, 4096, 512, cpu_experts=12, slots=n)) for n in (48, 192, 384)]
    assert made[0].hit_rate < made[1].hit_rate < made[2].hit_rate
    assert made[0].seconds > made[1].seconds > made[2].seconds
    whole = predict(Candidate(GPU, 4096, 512))
    assert made[2].decode_tokens_per_s < whole.decode_tokens_per_s  # each layer decides
    assert made[0].bound == "link"


def test_projections_lie_between_whole_layers():
    predict = Predictor(model(), HW, requests)

    def at(n, *projections):
        kind = TENSORS if projections else NCMOE
        c = Candidate(kind, 4096, 512, cpu_experts=n, projections=projections)
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
        s = uvmsim.Scenario(model=model(), hardware=HW, vram="1GiB")
        a = uvmsim.advise(s, ctx="4k", prompt=prompt, generate=9, what_if="")
        assert {c.candidate.ubatch for c in a} == sizes


def test_unified_memory_where_the_machine_knows_it():
    hw = dataclasses.replace(HW, uvm=COSTS)
    tight = found(1100 * MIB, hw=hw)
    paged = [c for c in tight if c.candidate.kind == UNIFIED]
    assert len(paged) == 1 and paged[0].prediction.decode_split["faults"] > 0
    assert (
        paged[0].needs.vram_bytes
        <= 1100 * MIB
        < needed(model(), Candidate(GPU, 4096, 512), hw).vram_bytes
    )
    assert not [c for c in found(1100 * MIB) if c.candidate.kind == UNIFIED]


def test_belady_bounds_what_a_policy_could_give():
    a = uvmsim.advise(
        uvmsim.Scenario(model=model(), hardware=HW, vram="1100MiB"), ctx="4k", **WORDS
    )
    of = a.better.of
    assert set(of) == {"llama-cpp-lru", "layer-lru", "belady"}
    assert of["belady"].hit_rate >= max(v.hit_rate for v in of.values())
    assert of["belady"].decode_tokens_per_s > of["llama-cpp-lru"].decode_tokens_per_s


def test_the_kv_cache_by_type():
    m = with_kv_type(model(), "q8_0")
    assert m.kv_bytes_per_token == model().kv_bytes_per_token * 34 // 64
    line = uvmsim.advise(
        uvmsim.Scenario(model=model(), hardware=HW), ctx="4k", kv_type="q8_0", **WORDS
    ).commands()[0]
    assert "-ctk q8_0 -ctv q8_0" in line and "-fa on" in line


# ---- changes of the machine --------------------------------------------------------------------------


def test_what_ifs():
    a = uvmsim.advise(
        uvmsim.Scenario(model=model(), hardware=HW, vram="1100MiB"), ctx="4k",
        prompt=700, generate=100,
        what_if=["vram=4GiB,link*2", "ram-bandwidth*2", "ram-60GiB", "vram-100MiB", "link=1GB/s"],
    )  # fmt: skip
    of = {w.change: w for w in a.what_ifs}
    assert of["vram=4GiB"].best.candidate.kind == GPU and of["vram=4GiB"].faster > 1.5
    assert of["link*2"].faster > 1.05
    assert of["ram-bandwidth*2"].faster >= 1 - 1e-9
    assert of["vram-100MiB"].faster < 1 and of["link=1GB/s"].faster < 1
    direct = uvmsim.advise(
        uvmsim.Scenario(model=model(), hardware=HW, vram="1000MiB"), ctx="4k", **WORDS
    )
    assert of["vram-100MiB"].best.seconds == direct.best.seconds


# ---- models of other kinds ---------------------------------------------------------------------------


def test_a_dense_model_gets_layers(tmp_path):
    path = write_dense(tmp_path / "dense.gguf", layers=40, d=1024, ff=4096)
    a = uvmsim.advise(
        uvmsim.Scenario(model=path, hardware=HW, vram="1000MiB"), ctx="4k", prompt=700,
        generate=100, what_if="",
    )  # fmt: skip
    assert a.best.candidate.kind == LAYERS and a.routing is None
    ngl = int(re.search(r"-ngl (\d+)", a.commands()[0])[1])
    assert 1 < ngl < 41
    more = Candidate(LAYERS, 4096, a.best.candidate.ubatch, cpu_blocks=40 - ngl)
    hw = dataclasses.replace(HW, vram_bytes=1000 * MIB)
    assert not needed(a.model, more, hw).fits(hw)
    assert on_the_gpu(a.model, ["-ngl", str(ngl)]) == a.best.needs.vram["weights"]
    assert a.best.prediction.bound == "ram"
    whole = uvmsim.advise(uvmsim.Scenario(model=path, hardware=HW), ctx="4k", what_if="")
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


def test_ones_own_trace(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((60, 12, 32)), axis=2)[:, :, :4]
    trace = uvmsim.routing(ids, 32, prefill=20)
    s = uvmsim.Scenario(model=model(), hardware=HW, vram="1100MiB", trace=trace)
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
    words = (file, "--hardware", "rtx4090", "--vram", "1GiB", "--prompt", 600, "--ctx", "4k,8k")
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
    done = run(file, "--hardware", "rtx4090", "--vram", "1GiB", "--ram", "8GiB", "--ctx", "4k,16k")
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("bound by", "llama-server", "What if", "no policy beats", "coverage", "routing:"):
        assert word in done.stdout
    one = run(
        file, "--vram", "1GiB", "--hardware", "rtx4090", "--ctx", "4k,16k", "--emit", "llama.cpp"
    )
    lines = one.stdout.splitlines()
    assert len(lines) == 2 and lines[0] in re.sub(r" \\\n +", " ", done.stdout)


def test_the_answer_is_a_table_too():
    a = uvmsim.advise(uvmsim.Scenario(model=model(), hardware=HW, vram="1GiB"), ctx="4k", **WORDS)
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
    (["FILE", "--kv-type", "q3"], "--kv-type q3: one of f32, f16"),
    (["FILE", "--what-if", "vram*"], "--what-if vram*: not a change; write vram+8GiB"),
    (["FILE", "--what-if", "gpu+1"], "--what-if gpu+1: not a change"),
    (["FILE", "--what-if", "vram-99GiB"], "--what-if vram-99GiB: leaves"),
    (["FILE", "--what-if", "link*fast"], "--what-if link*fast: 'fast' is no factor"),
    (["FILE", "--what-if", "ram+64GiB"], "--what-if ram+64GiB: how much there is now is not known"),
    (["FILE", "--what-if", "vram+8"], None),
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
