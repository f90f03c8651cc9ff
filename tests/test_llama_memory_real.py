"""The memory plan against llama.cpp itself: every buffer, to the byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from llama_memory_cells import (
    SHAPES,
    STUDY,
    Shape,
    config_of,
    differences,
    run,
    small,
    write_sparse,
)
from tiny_gguf import ARCHITECTURES, write_tiny

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
    from dataclasses import replace

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
