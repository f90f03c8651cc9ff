"""The memory plan against llama.cpp itself: every buffer, to the byte."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from llama_memory_cells import (
    SHAPES,
    STUDY,
    Shape,
    config_of,
    differences,
    logged,
    run,
    small,
    write_sparse,
)
from tiny_gguf import ARCHITECTURES, write_tiny

from replay.llama_cpp.process import run as ask
from replay.llama_cpp.request import Request
from replay.llama_cpp.validation.cells import Cell as ValidationCell
from replay.llama_cpp.validation.cells import Subject
from replay.llama_cpp.validation.config import NamedTest
from uvmsim.machine.llamacpp import LlamaModel, memory, reserve_for

BASE = {"n_ctx": 4096, "n_ubatch": 512}
CONTEXTS = [
    {"n_ctx": 512, "n_ubatch": 128},
    BASE,
    {"n_ctx": 32768, "n_ubatch": 2048},
    BASE | {"flash": "off"},
    BASE | {"n_seq": 4},
    BASE | {"n_seq": 4, "flash": "off"},
    BASE | {"n_seq": 4, "kv_unified": True},
    BASE | {"n_seq": 3, "n_ubatch": 16, "n_ctx": 1000},
    BASE | {"n_outputs_max": 4},
    BASE | {"swa_full": True},
]
QUANTISED = [BASE | {"flash": "on", "type_k": t, "type_v": v} for t, v in
             (("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q8_0", "f16"))]  # fmt: skip


@pytest.fixture(scope="session")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the virtual GPU is built, once."""
    return tmp_path_factory.mktemp("virtual_gpu")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_cpu_build_allocates_what_the_plan_says(tmp_path: Path, arch: str):
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    found = run(path, [({"ngl": 0}, CONTEXTS)], None)
    assert differences(LlamaModel.load(path), found, gpu=False) == []


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_gpu_build_allocates_what_the_plan_says(tmp_path: Path, gpu: Path, name: str):
    """The scheduler and allocator of the real library, with CUDA's rules for buffers."""
    shape = small(SHAPES[name])
    path = write_sparse(tmp_path / "model.gguf", shape)
    n, half = shape.layers, shape.layers // 2
    few = [CONTEXTS[0], BASE, BASE | {"flash": "off"}, BASE | {"n_seq": 4}]
    cached = [BASE | {"moe_cache_mib": mib} for mib in (40, 100)] if shape.experts else []
    if shape.experts:
        cached.append({"n_ctx": 512, "n_ubatch": 4, "moe_cache_mib": 40})
    kinds = [c for c in QUANTISED if shape.arch != "deepseek2" or c["type_k"] == c["type_v"]]
    cells = [
        ({"ngl": 99}, CONTEXTS + kinds),
        ({"ngl": 99, "ncmoe": half}, few + QUANTISED[:1] + cached),
        ({"ngl": 99, "ncmoe": n, "no_mmap": True}, [*few, BASE | {"op_offload": False}, *cached]),
        ({"ngl": half}, few),
        ({"ngl": 0}, few),
        ({"ngl": 99, "ot": [["ffn_up_exps", "CPU"], ["attn_k", "CPU"]]}, few),
    ]
    found = run(path, cells, gpu)
    assert differences(LlamaModel.load(path), found) == []


@pytest.mark.parametrize("tensors", [{"used": 1}, {"used": 6}, {"tied": True, "half": True}])
@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2", "glm4moe"])
def test_odd_models_on_a_gpu(tmp_path: Path, gpu: Path, arch: str, tensors: dict[str, int]):
    """One expert a token, more than the kernels fuse, tied embeddings, groups of experts."""
    path = write_tiny(tmp_path / "tiny.gguf", arch, **tensors)
    found = run(path, [({"ngl": 99}, CONTEXTS), ({"ngl": 99, "ncmoe": 2}, CONTEXTS)], gpu)
    assert differences(LlamaModel.load(path), found) == []


def test_an_h100_allocated_what_the_plan_says(tmp_path: Path):
    """Measured with a CUDA build without attention kernels: a third of the cells, every placement."""
    recorded = json.loads((STUDY / "memory_h100.json").read_text())
    cells = recorded["cells"][:: 1 if os.environ.get("UVMSIM_SLOW_TESTS") else 3]
    assert {c["model"] for c in cells} == {"gpt-oss-mxfp4", "qwen3moe-q8"}
    for name in ("gpt-oss-mxfp4", "qwen3moe-q8"):
        model = LlamaModel.load(write_sparse(tmp_path / f"{name}.gguf", SHAPES[name]))
        found = [(c["place"], c["config"], c["bytes"]) for c in cells if c["model"] == name]
        assert differences(model, found, flash_kernels=False) == []
        for place, config, _ in found:  # with kernels the same plan is another one
            if config.get("flash", "auto") == "auto" and place["ngl"] == 99:
                asked = config_of(place, config)
                assert memory(model, asked).flash_attention
                assert not memory(model, replace(asked, flash_kernels=False)).flash_attention
                break


def test_the_reserve_holds_what_an_h100_used_beside_buffers():
    recorded = json.loads((STUDY / "memory_h100.json").read_text())
    beside = [c for c in recorded["cells"] if "beside" in c]
    assert len(beside) > 100
    for c in beside:
        used = c["beside"]["before"] + c["beside"]["prompt"]
        assert used <= reserve_for(config_of(c["place"], c["config"]))


def test_a_context_longer_than_the_window(tmp_path: Path, gpu: Path):
    """gpt-oss-20b's blocks, half as many, with windows kept short and kept whole, on a GPU without
    attention kernels; an H100 with such a build logged three of the latter (MiB, two decimals)."""
    shape = Shape("gpt-oss", 12, 2880, 64, 8, 64, 32, 4, 2880, 65536, ctx=32768,
                  expert_type="MXFP4", other_type="Q8_0", vocab_type="Q8_0")  # fmt: skip
    path = write_sparse(tmp_path / "model.gguf", shape)
    sizes = [(4352, 512), (2048, 128), (768, 512), (2048, 2048)]
    contexts = [
        {"n_ctx": n, "n_ubatch": ub, "swa_full": full} for full in (False, True) for n, ub in sizes
    ]
    resident, offloaded = {"ngl": 99}, {"ngl": 99, "ncmoe": 12}
    model = LlamaModel.load(path)
    found = run(path, [(offloaded, contexts)], gpu, compute_capability=0)
    assert differences(model, found, flash_kernels=False) == []
    less = write_sparse(tmp_path / "less.gguf", replace(shape, experts=4, ff=256))
    found = run(less, [(resident, contexts)], gpu, compute_capability=0)
    assert differences(LlamaModel.load(less), found, flash_kernels=False) == []
    for place, n, ub, mib in (
        (offloaded, 4352, 512, 1220.37),
        (resident, 4352, 512, 6074.05),
        (resident, 2048, 128, 5496.16),
    ):
        config = config_of(place, {"n_ctx": n, "n_ubatch": ub, "swa_full": True})
        plan = memory(model, replace(config, flash_kernels=False))
        assert abs(plan.vram_bytes / 2**20 - mib) < 0.025  # a sum of four that were rounded


@pytest.mark.parametrize("arch", ["gpt-oss", "qwen3moe"])
def test_a_validation_asks_the_plan_what_it_runs(tmp_path: Path, arch: str):
    """A context as the worker makes it, for cells of `uvmsim validate`, and the plan for them."""
    pytest.importorskip("xllamacpp")
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    tests = (
        NamedTest(name="pp700@ub128", kind="pp", n=700, ubatch=128),
        NamedTest(name="tg8@d1500", kind="tg", n=8, depth=1500),
    )
    cell = ValidationCell(Subject.load(str(path)), "resident", "", tests=tests)
    contexts = cell.contexts(1)
    assert {u: c.context_tokens() for u, c in contexts.items()} == {128: 768, 512: 1536}
    answer = ask(Request(None, str(path), tuple(contexts.values()), threads=1), seconds=100)
    assert answer["status"] == "ok", answer["why"]
    assert all(len(t["ns"]) == 1 for c in answer["contexts"] for t in c["tests"])
    _, *made = "\n".join(answer["log"]).split("output buffer size")  # one a context
    sizes = [logged(text)["MiB"] for text in made]
    for context, said in zip(contexts.values(), sizes, strict=True):
        plan = memory(cell.subject.llama, cell.config(context, gpu=False, flash=True))
        assert abs(plan.host.kv_cache / 2**20 - said["KV"]["CPU"]) <= 0.01
        assert abs(plan.host.compute / 2**20 - said["compute"]["CPU"]) <= 0.005


def test_sixteen_experts_a_token_are_not_fused(tmp_path: Path, gpu: Path):
    shape = Shape("qwen3moe", 3, 512, 8, 2, 64, 48, 16, 256, 4096, expert_type="Q8_0")
    path = write_sparse(tmp_path / "model.gguf", shape)
    found = run(path, [({"ngl": 99}, CONTEXTS), ({"ngl": 99, "ncmoe": 3}, CONTEXTS)], gpu)
    assert differences(LlamaModel.load(path), found) == []


def test_rows_that_are_no_whole_tiles_are_padded(tmp_path: Path, gpu: Path):
    shape = Shape("qwen3moe", 3, 544, 8, 2, 64, 16, 4, 224, 1000, expert_type="Q4_0",
                  other_type="Q8_0", vocab_type="Q8_0")  # fmt: skip
    path = write_sparse(tmp_path / "model.gguf", shape)
    contexts = [*CONTEXTS, BASE | {"flash": "on", "type_k": "q8_0", "type_v": "q8_0"}]
    cells = [
        ({"ngl": 99}, contexts),
        ({"ngl": 99, "ncmoe": 3}, [*contexts, BASE | {"moe_cache_mib": 4}]),
    ]
    found = run(path, cells, gpu)
    model = LlamaModel.load(path)
    assert differences(model, found) == []
    plan = memory(model)
    assert plan.gpu.weights > sum(p.n_bytes for p in plan.placed if p.device == "gpu")
