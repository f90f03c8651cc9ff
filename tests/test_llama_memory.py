"""The memory plan without llama.cpp: placement, the allocator, what is refused, the command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from llama_memory_cells import SHAPES, Shape, small, write_sparse

from traces.errors import InputError
from traces.models.gguf_header import read_header
from uvmsim.commands.memory import memory as command
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llamacpp import LlamaConfig, LlamaModel, experts_by_block, fits, memory, place
from uvmsim.machine.llamacpp.allocator import Blocks, GraphAllocator
from uvmsim.machine.llamacpp.ggml import Tensor, like
from uvmsim.machine.model import Model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "model.gguf"
    return write_sparse(file, small(SHAPES["qwen3moe-q8"]))


@pytest.fixture(scope="module")
def model(path: Path) -> LlamaModel:
    return LlamaModel.load(path)


# ---- placement ------------------------------------------------------------------------------------


@given(ngl=st.integers(0, 9), ncmoe=st.integers(0, 6))
def test_every_byte_lies_on_one_side(model: LlamaModel, ngl: int, ncmoe: int):
    placed = place(model, LlamaConfig(n_gpu_layers=ngl, n_cpu_moe=ncmoe))
    assert [p.tensor.name for p in placed] == [t.name for t in model.tensors]
    first = model.n_layers + 1 - ngl
    for p in placed:
        if p.tensor.name == "token_embd.weight" or (p.expert and p.block < ncmoe):
            assert p.device == "host"
        else:
            at = p.block if p.block >= 0 else model.n_layers
            assert p.device == ("gpu" if at >= first else "host")
    for e in experts_by_block(placed):
        assert e.gpu + e.host == sum(p.n_bytes for p in placed if p.expert and p.block == e.block)


def test_a_pattern_moves_what_it_matches_and_comes_after_ncmoe(model: LlamaModel):
    config = LlamaConfig(
        n_cpu_moe=2, overrides=((r"blk\.[01]\.ffn_up", "CUDA0"), (r"blk\.2\.ffn_up", "CPU"))
    )
    by_name = {p.tensor.name: p for p in place(model, config)}
    assert by_name["blk.0.ffn_up_exps.weight"].device == "host"  # -ncmoe was asked first
    assert by_name["blk.2.ffn_up_exps.weight"].device == "host"
    assert by_name["blk.2.ffn_up_exps.weight"].rule == r"blk\.2\.ffn_up"
    assert by_name["blk.2.ffn_down_exps.weight"].device == "gpu"
    assert by_name["blk.2.ffn_gate_inp.weight"].device == "gpu"


def test_a_tied_table_is_loaded_twice(tmp_path: Path):
    shape = Shape("qwen3", 3, 256, 4, 2, 64, 0, 0, 0, 1000, dense_ff=512, tied=True)
    model = LlamaModel.load(write_sparse(tmp_path / "m.gguf", shape))
    tables = [p for p in place(model, LlamaConfig()) if p.tensor.name == "token_embd.weight"]
    assert [p.device for p in tables] == ["host", "gpu"]
    (alone,) = [
        p for p in place(model, LlamaConfig(n_gpu_layers=0)) if p.tensor.name.startswith("token")
    ]
    assert alone.device == "host"


def test_offsets_are_those_of_the_file(path: Path, model: LlamaModel):
    """Mapped bytes depend on where tensors lie, which the header reader does not keep."""
    import gguf

    reader = gguf.GGUFReader(path)
    start = reader.data_offset
    assert [t.data_offset - start for t in reader.tensors] == [t.offset for t in model.tensors]


def test_a_split_model_is_one_model(tmp_path: Path):
    whole = small(SHAPES["qwen3moe-q8"])
    write_sparse(tmp_path / "m.gguf", whole)
    names = [t.name for t in read_header(tmp_path / "m.gguf").tensors]
    for part in (0, 1):
        write_sparse(tmp_path / f"m-{part + 1:05d}-of-00002.gguf", whole, part=(part, 2))
    both = LlamaModel.load(tmp_path / "m-00001-of-00002.gguf")
    assert sorted(t.name for t in both.tensors) == sorted(names)
    assert {t.file for t in both.tensors} == {0, 1}
    one = LlamaModel.load(tmp_path / "m.gguf")
    config = LlamaConfig(n_cpu_moe=1)
    assert memory(both, config).gpu.weights == memory(one, config).gpu.weights


# ---- what grows and what does not -------------------------------------------------------------------


@given(data=st.data())
def test_more_context_or_larger_batches_never_take_less(model: LlamaModel, data: st.DataObject):
    contexts = st.integers(256, 60000)
    a, b = sorted((data.draw(contexts), data.draw(contexts)))
    u, v = sorted((data.draw(st.integers(1, 900)), data.draw(st.integers(1, 900))))
    less = memory(model, LlamaConfig(n_ctx=a, n_ubatch=u))
    more = memory(model, LlamaConfig(n_ctx=b, n_ubatch=v))
    assert more.gpu.kv_cache >= less.gpu.kv_cache
    assert more.gpu.weights == less.gpu.weights
    assert more.vram_bytes >= less.vram_bytes


def test_the_cache_is_what_its_type_says(model: LlamaModel):
    kv = {t: memory(model, LlamaConfig(type_k=t, type_v=t)).gpu.kv_cache for t in ("f16", "q8_0")}
    elements = 2 * model.n_layers * model.n_head_kv[0] * model.head_k * 4096
    assert kv == {"f16": 2 * elements, "q8_0": elements // 32 * 34}


def test_windowed_blocks_keep_a_window(tmp_path: Path):
    shape = small(SHAPES["gpt-oss-mxfp4"])
    model = LlamaModel.load(write_sparse(tmp_path / "m.gguf", shape))
    assert sum(model.windowed) == (shape.layers + 1) // 2
    short, long = (memory(model, LlamaConfig(n_ctx=n)).gpu.kv_cache for n in (4096, 32768))
    full = memory(model, LlamaConfig(n_ctx=32768, swa_full=True)).gpu.kv_cache
    row = 2 * 2 * shape.kv_heads * shape.head
    wide = shape.layers - sum(model.windowed)
    assert long - short == wide * row * (32768 - 4096)
    assert full == shape.layers * row * 32768


def test_a_prompt_copies_experts_and_generation_does_not(model: LlamaModel):
    n = model.n_layers
    resident, offloaded = memory(model), memory(model, LlamaConfig(n_cpu_moe=n))
    on_cpu = memory(model, LlamaConfig(n_cpu_moe=n, op_offload=False))
    bank = model.by_name["blk.0.ffn_up_exps.weight"].n_bytes
    copied = {size for s in offloaded.prompt.splits for name, size in s.inputs if "exps" in name}
    assert bank in copied
    assert not any("exps" in name for s in on_cpu.prompt.splits for name, _ in s.inputs)
    assert not any("exps" in name for s in resident.prompt.splits for name, _ in s.inputs)
    assert offloaded.gpu.compute > on_cpu.gpu.compute


def test_presets_have_the_bytes_of_their_model():
    for name in Model.list_presets():
        plan, known = memory(LlamaModel.load(name)), Model.load(name)
        stored = plan.gpu.weights + plan.host.weights
        tied = known.embedding_bytes == 0
        assert stored - known.total_bytes <= 0.002 * known.total_bytes + tied * known.output_bytes
        assert stored >= known.total_bytes * 0.999


# ---- the allocator against the plainest one ---------------------------------------------------------


@st.composite
def _chains(draw: st.DrawFn) -> list[Tensor]:
    """A graph of additions and copies over earlier results."""
    nodes: list[Tensor] = [Tensor("F32", (draw(st.integers(1, 400)), 1, 1, 1), "CONT", ())]
    for _ in range(draw(st.integers(1, 25))):
        a = draw(st.sampled_from(nodes))
        if draw(st.booleans()):
            same = [t for t in nodes if t.ne == a.ne]
            nodes.append(like("ADD", a, draw(st.sampled_from(same))))
        else:
            nodes.append(Tensor("F32", (draw(st.integers(1, 400)), 1, 1, 1), "CONT", (a,)))
    nodes[-1].output = True
    return nodes


@given(nodes=_chains())
def test_what_is_needed_at_once_never_overlaps(nodes: list[Tensor]):
    """Every byte has one owner, and the peak holds all that is alive together."""
    last = {id(t): i for i, t in enumerate(nodes)}
    for i, node in enumerate(nodes):
        for src in node.src:
            if src is not None:
                last[id(src)] = i
    blocks = Blocks(64, lambda t: t.n_bytes)
    at: dict[int, int] = {}

    class Watched(GraphAllocator):
        def _allocate(self, node: Tensor, buffer: int) -> None:
            super()._allocate(node, buffer)
            at.setdefault(id(node), self._where[id(node)][1])

    (peak,) = Watched([blocks]).run([(t, 0) for t in nodes], [])
    for i, node in enumerate(nodes):
        alive = [t for t in nodes[:i] if last[id(t)] > i]
        for other in alive:
            a, b = at[id(node)], at[id(other)]
            assert a + node.n_bytes <= b or b + other.n_bytes <= a
        assert peak >= node.n_bytes + sum(t.n_bytes for t in alive)


# ---- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"flash_attention": "maybe"}, "flash attention"),
        ({"type_k": "q3_k"}, "type_k"),
        ({"n_ctx": 0}, "n_ctx"),
        ({"n_gpu_layers": -1}, "n_gpu_layers"),
        ({"overrides": (("(", "CPU"),)}, "no regular expression"),
        ({"overrides": (("x", "GPU"),)}, "CPU or CUDA0"),
    ],
)
def test_a_configuration_that_cannot_be(config: dict[str, object], says: str):
    with pytest.raises(InputError, match=says):
        LlamaConfig(**config)  # type: ignore[arg-type]


def test_what_llama_cpp_refuses(model: LlamaModel, tmp_path: Path):
    with pytest.raises(InputError, match="flash attention"):
        memory(model, LlamaConfig(type_v="q8_0", flash_attention="off"))
    with pytest.raises(InputError, match="too small"):
        memory(model, LlamaConfig(n_cpu_moe=99, moe_cache_mib=1))
    with pytest.raises(InputError, match="needs a GPU"):
        memory(model, LlamaConfig(n_cpu_moe=99, moe_cache_mib=100, gpu=False))
    dense = Shape("qwen3", 3, 256, 4, 2, 64, 0, 0, 0, 1000, dense_ff=512)
    loaded = LlamaModel.load(write_sparse(tmp_path / "m.gguf", dense))
    with pytest.raises(InputError, match="no experts"):
        memory(loaded, LlamaConfig(moe_cache_mib=100))
    narrow = Shape("qwen3", 3, 256, 4, 2, 48, 0, 0, 0, 1000, dense_ff=512)
    loaded = LlamaModel.load(write_sparse(tmp_path / "n.gguf", narrow))
    with pytest.raises(InputError, match="blocks of 32"):
        memory(loaded, LlamaConfig(type_k="q8_0"))


@pytest.mark.parametrize("arch", ["qwen3next", "deepseek32", "mamba"])
def test_another_state_is_refused(model: LlamaModel, arch: str):
    from dataclasses import replace

    with pytest.raises(InputError, match=f"{arch} keeps another state"):
        memory(replace(model, architecture=arch))


def test_an_unknown_architecture_says_that_it_is_an_estimate(model: LlamaModel):
    from dataclasses import replace

    plan = memory(replace(model, architecture="ernie4_5-moe"))
    assert any("was not compared" in note for note in plan.notes)
    assert plan.gpu.weights == memory(model).gpu.weights


def test_a_file_that_is_no_language_model(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="cut off or damaged"):
        LlamaModel.load(tmp_path / "x.gguf")


# ---- does it fit ------------------------------------------------------------------------------------


def test_fits_counts_the_reserve(model: LlamaModel):
    from dataclasses import replace

    plan = memory(model, LlamaConfig(n_cpu_moe=1))
    machine = Hardware.load("h100")
    exact = replace(machine, vram_bytes=plan.vram_bytes + 1000, host_bytes=plan.host_bytes)
    assert fits(plan, exact, 1000).fits
    assert fits(plan, exact, 1000).spare == 0
    over = fits(plan, exact, 1001)
    assert not over.fits and over.spare == -1
    assert not fits(plan, replace(exact, host_bytes=plan.host_bytes - 1), 0).fits
    managed = memory(model, LlamaConfig(n_cpu_moe=1, unified_memory=True))
    small_card = replace(exact, vram_bytes=1000, host_bytes=10 * plan.host_bytes)
    assert not fits(plan, small_card, 0).fits
    assert fits(managed, small_card, 0).fits


# ---- the command ------------------------------------------------------------------------------------


def test_the_command_tells_the_plan(path: Path, model: LlamaModel):
    flags = ["--ncmoe", "2", "--ctx", "8k", "--moe-cache-mib", "100", "--hardware", "rtx4090"]
    plan = memory(model, LlamaConfig(n_cpu_moe=2, n_ctx=8192, moe_cache_mib=100))
    out = CliRunner().invoke(command, [str(path), *flags])
    assert out.exit_code == 0, out.output
    total = re.search(r"all +([\d,.]+) +([\d,.]+)", out.output)
    assert total is not None
    assert total[1] == f"{plan.vram_bytes / 2**20:,.2f}"
    assert "2 blocks of the expert cache" in out.output
    assert "fits rtx4090" in out.output
    told = json.loads(CliRunner().invoke(command, [str(path), *flags, "--json"]).output)
    (one,) = told["plans"]
    assert (
        one["vram_bytes"]
        == plan.vram_bytes
        == sum(one["gpu"][k] for k in ("weights", "kv_cache", "compute", "output", "moe_cache"))
    )
    assert one["fit"]["fits"] is True
    moved = [t for t in one["tensors"] if t["device"] == "host"]
    assert {t["name"].split(".")[-2] for t in moved} == {
        "token_embd", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"
    }  # fmt: skip


def test_lists_make_a_table(path: Path):
    out = CliRunner().invoke(command, [str(path), "--ncmoe", "0,2,4", "--ctx", "4k,32k"])
    assert out.exit_code == 0, out.output
    rows = [line.split() for line in out.output.splitlines() if re.match(r" +\d", line)]
    assert [(r[0], r[1]) for r in rows] == [
        (c, n) for c in ("4,096", "32,768") for n in ("0", "2", "4")
    ]
    assert len({r[2] for r in rows}) == 3


@pytest.mark.parametrize("flags", [["--ctx", "4x"], ["-ot", "exps"], ["--kv", "q3"]])
def test_bad_flags_are_one_line(path: Path, flags: list[str]):
    result = CliRunner().invoke(command, [str(path), *flags])
    assert isinstance(result.exception, InputError)
    assert "\n" not in str(result.exception)
