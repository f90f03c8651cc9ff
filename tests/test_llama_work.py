"""What a micro-batch of llama.cpp consists of: graph against graph, counts by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import ARCHITECTURES, write_tiny

from replay.llama_cpp import design
from replay.llama_cpp.census import NO_KERNEL
from replay.llama_cpp.count import chunks, micro_batch, runs
from replay.llama_cpp.request import Context, Request
from replay.llama_cpp.request import Test as Timed
from replay.llama_cpp.synthetic import Shape, header
from uvmsim.machine.llama_terms import TERMS, term_of
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.ggml import VIEWS
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.moe_cache import expert_cache
from uvmsim.machine.llamacpp.placement import place
from uvmsim.machine.llamacpp.plan import graph_of, uses_flash
from uvmsim.machine.llamacpp.timing import managed, remote
from uvmsim.machine.llamacpp.work import work

QWEN = Shape(n_layers=3, n_embd=512, n_heads=8, n_kv_heads=2, head_dim=64, n_experts=16, top_k=4,
             n_ff_expert=256, n_vocab=1024, experts="Q4_K", dense="Q8_0")  # fmt: skip
OSS = Shape("gpt-oss", n_layers=2, n_embd=256, n_heads=4, n_kv_heads=2, head_dim=64, n_experts=8,
            top_k=2, n_ff_expert=512, n_vocab=1024, experts="MXFP4", dense="Q8_0")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def model_of(folder: Path, shape: Shape) -> LlamaModel:
    return LlamaModel.load(header(folder / f"{abs(hash(shape))}.gguf", shape))


@pytest.mark.llama
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_graph_is_llama_cpps_node_by_node(arch: str, folder: Path) -> None:
    """Operations of a real graph, in order, as the scheduler asks about them."""
    from replay.llama_cpp.process import run

    path = write_tiny(folder / f"{arch}.gguf", arch)
    sizes = (1, 12)
    request = Request(
        None, str(path), (Context((Timed("pp", 4, reps=1),)),), census=sizes, threads=1,
        environment={"OMP_WAIT_POLICY": "passive"},
    )  # fmt: skip
    answer = run(request, seconds=120)
    assert answer["status"] == "ok", answer["why"]
    model = LlamaModel.load(path)
    for n, found in zip(sizes, answer["census"], strict=True):
        config = LlamaConfig(n_ctx=256, n_ubatch=32, gpu=False)
        placed = place(model, config)
        graph = graph_of(model, config, placed, expert_cache(model, config, placed), n, 1,
                         uses_flash(model, config))  # fmt: skip
        ours = [x.op for x in graph.nodes if x.op not in VIEWS]
        theirs = [node[0] for node in found["nodes"]]
        assert Counter(ours) == Counter(theirs)
        assert set(NO_KERNEL) >= VIEWS


CUPTI = (
    ("float16", Shape(n_layers=16, n_experts=64, n_ff_expert=768), 357, 640),
    ("gpt-oss", Shape("gpt-oss", n_layers=12, n_embd=2880, n_heads=64, n_kv_heads=8, head_dim=64,
                      n_experts=32, top_k=4, n_ff_expert=2880, n_vocab=32768, experts="MXFP4",
                      dense="Q8_0"), 365, 630),
    ("Q4_K", Shape(n_layers=16, n_embd=2048, n_heads=32, n_kv_heads=4, head_dim=128, n_experts=128,
                   top_k=8, n_ff_expert=768, n_vocab=32768, experts="Q4_K", dense="Q8_0"), 422, 670),
)  # fmt: skip
"""Kernels a token, and a prompt of 512, that CUPTI recorded on an H100 (b11549 without flash attention;
copies of inputs and logits left out)."""


@pytest.mark.parametrize("shape,row,batch", [c[1:] for c in CUPTI], ids=[c[0] for c in CUPTI])
def test_kernels_are_those_cupti_recorded(shape, row, batch, folder: Path) -> None:
    model = model_of(folder, shape)
    config = LlamaConfig(n_ctx=2048, flash_kernels=False)
    assert work(model, config, 1).kernels == pytest.approx(row, rel=0.015)
    assert work(model, config, 512).kernels == pytest.approx(batch, rel=0.14)


FLASH = {
    "f16-large": 101, "f16-deep": 243, "f16-wide": 77, "q4k-large": 121, "q4k-deep": 374,
    "q4k-wide": 90, "mxfp4-large": 113, "mxfp4-deep": 329, "q8-large": 75, "q8-deep": 157,
    "q6k-deep": 190,
}  # fmt: skip
"""Kernels a token of the calibration's models, likewise, with flash attention."""


@pytest.mark.parametrize("name", FLASH)
def test_kernels_with_flash_attention_are_those_cupti_recorded(name: str, folder: Path) -> None:
    model = model_of(folder, design.GPU_SHAPES[name])
    assert work(model, LlamaConfig(n_ctx=512), 1).kernels - FLASH[name] == 2


def test_products_of_quantised_weights_share_tiles_where_few(folder: Path) -> None:
    """With 132 multiprocessors: 40 x 3 x 8 tiles fill 7.3 waves (98 %), 20 x 4 x 1 less than one."""
    model = model_of(folder, design.GPU_SHAPES["q8-large"])
    blocks = work(model, LlamaConfig(), 384).blocks
    assert "fixup" not in blocks[0].call and blocks[0].dense["fixup"] == 4
    assert work(model, LlamaConfig(), 96).blocks[0].call["fixup"] == 3  # 320 tiles: 81 % of 3 waves


def weight_bytes(model: LlamaModel, expert: bool) -> int:
    names = ("token_embd",)
    return sum(
        t.n_bytes for t in model.tensors
        if (("_exps." in t.name) == expert) and len(t.shape) > 1
        and not t.name.startswith(names) and not t.name.endswith(".bias")
    )  # fmt: skip


def read(counts: Counter[str], *stems: str) -> float:
    return sum(n for k, n in counts.items() if k.rpartition(".")[0] in stems)


@pytest.mark.parametrize("shape", [QWEN, OSS], ids=["qwen", "gpt-oss"])
def test_a_token_reads_every_dense_weight_once_and_its_experts(shape: Shape, folder: Path) -> None:
    model = model_of(folder, shape)
    counts, _ = micro_batch(model, LlamaConfig(), 1, 1)
    assert read(counts, "row") == weight_bytes(model, expert=False)
    share = shape.top_k / shape.n_experts
    assert read(counts, "row_experts") == weight_bytes(model, expert=True) * share
    assert counts["split"] == 0 and counts["cpu.node"] == 0


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 3), st.sampled_from([1, 3, 8]))
def test_offloading_moves_bytes_and_loses_none(ncmoe: int, n: int) -> None:
    model = LlamaModel.load(header(Path(_FOLDER[0]) / "q.gguf", QWEN))
    here, _ = micro_batch(model, LlamaConfig(), n, n)
    there, _ = micro_batch(model, LlamaConfig(n_cpu_moe=ncmoe), n, n)
    on_gpu, on_cpu = read(there, "row_experts"), read(there, "cpu.row_experts")
    assert on_gpu + on_cpu == read(here, "row_experts")
    assert on_cpu == read(here, "row_experts") * ncmoe / QWEN.n_layers
    assert there["split"] == 2 * ncmoe
    assert read(there, "row") == read(here, "row")


_FOLDER: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def _remember(folder: Path) -> None:
    _FOLDER.append(str(folder))


def test_gpt_oss_behind_the_expert_cache_goes_to_the_cpu_for_its_biases(folder: Path) -> None:
    """The biases of the experts stay in host memory, so every ADD_ID is a trip there and back."""
    for shape, each in ((QWEN, 1), (OSS, 7)):
        model = model_of(folder, shape)
        counts, _ = micro_batch(
            model, LlamaConfig(n_cpu_moe=shape.n_layers, moe_cache_mib=8, mmap=False), 1, 1
        )
        assert counts["split"] == each * shape.n_layers
        assert read(counts, "cpu.row_experts") == 0


def test_a_long_prompt_copies_the_experts_it_uses(folder: Path) -> None:
    """In all blocks but the last, whose experts see the one token that gives logits: the CPU's."""
    many = QWEN.n_layers - 1
    model = model_of(folder, QWEN)
    used = np.array([3, 0, 0, 40, 2, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0])
    one = np.zeros(QWEN.n_experts, np.int64)
    one[:4] = 1
    routing = [*[used] * many, one]
    config = LlamaConfig(n_cpu_moe=QWEN.n_layers)
    counts, _ = micro_batch(model, config, 48, 48, routing)
    each = sum(t.n_bytes for t in model.tensors if "_exps." in t.name) / QWEN.n_experts
    each /= QWEN.n_layers
    assert counts["pageable"] == each * 6 * many and counts["pinned"] == 0
    assert runs(used) == 3
    assert counts["copy"] == 3 * 3 * many
    whole = sum(-(-x // 48) * 48 for x in used.tolist() if x)
    products = 3 * 2 * QWEN.n_embd * QWEN.n_ff_expert
    assert counts["experts.Q4_K"] == whole * products * many
    assert counts["cpu.row_experts.Q4_K"] == each * QWEN.top_k
    small, _ = micro_batch(model, config, 16, 16, [np.minimum(used, 3)] * QWEN.n_layers)
    assert small["pageable"] == 0 and read(small, "cpu.experts") > 0


def test_without_a_gpu_everything_is_the_cpus(folder: Path) -> None:
    model = model_of(folder, QWEN)
    for n in (1, 5, 40):
        routing = [np.full(QWEN.n_experts, n)] * QWEN.n_layers
        counts, kernels = micro_batch(model, LlamaConfig(gpu=False), n, n, routing)
        assert kernels == 0
        assert all(k.startswith("cpu.") for k in counts)
    assert counts["cpu.batch"] == 1


def test_what_lies_elsewhere_is_the_same_work(folder: Path) -> None:
    model = model_of(folder, OSS)
    x = work(model, LlamaConfig(), 1)
    away = remote(x)
    plain, moved = Counter(x.once), Counter(away.once)
    for a, b in zip(x.blocks, away.blocks, strict=True):
        for part in ("dense", "call", "expert"):
            plain.update(getattr(a, part))
            moved.update(getattr(b, part))
    assert read(moved, "remote") == read(plain, "row", "row_experts")
    assert moved["remote_kernel"] == x.kernels == managed(x).once["managed_kernel"]
    assert read(moved, "row", "row_experts") == 0


def test_a_windowed_block_attends_to_its_window(folder: Path) -> None:
    model = model_of(folder, OSS)
    config = LlamaConfig(n_ctx=8192)
    near, _ = micro_batch(model, config, 1, 256)
    far, _ = micro_batch(model, config, 1, 8192)
    each = 2 * OSS.n_kv_heads * 2 * OSS.head_dim
    assert near["attend"] == 2 * 256 * each
    assert far["attend"] == (8192 + 768) * each  # a window of 128 and a micro-batch of 512, padded


def test_chunks_of_a_prompt() -> None:
    assert list(chunks(1000, 512)) == [(512, 512), (488, 1000)]


def test_every_counted_term_is_known(folder: Path) -> None:
    seen: set[str] = set()
    for shape in (
        QWEN,
        OSS,
        Shape(n_layers=2, n_embd=256, n_heads=4, n_experts=8, n_ff_expert=256),
    ):
        model = model_of(folder, shape)
        for ncmoe in (0, shape.n_layers):
            for n in (1, 16, 40, 700):
                config = LlamaConfig(n_cpu_moe=ncmoe, n_ubatch=1024, flash_kernels=False)
                routing = [np.full(shape.n_experts, n)] * shape.n_layers
                seen |= set(micro_batch(model, config, n, n, routing)[0])
    assert {term_of(key) for key in seen} <= set(TERMS.values())
