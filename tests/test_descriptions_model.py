"""Model descriptions: presets against published totals, files good and bad, GGUF and traces."""

import csv
from dataclasses import replace

import gguf
import numpy as np
import pytest

from traces.errors import InputError
from traces.models.info import ModelInfo
from uvmsim.machine.descriptions import preset_paths, read
from uvmsim.machine.model import Model
from uvmsim.machine.model_spec import TYPES, ModelSpec, tensors_of

# Published parameter totals (model cards; safetensors metadata where exact) and those per token.
PUBLISHED = {
    "gpt-oss-20b": (20.9e9, 3.6e9),
    "gpt-oss-120b": (116.83e9, 5.1e9),
    "mixtral-8x7b": (46.7e9, 12.9e9),
    "qwen3-30b-a3b": (30.5e9, 3.3e9),
    "olmoe-1b-7b": (6.92e9, 1.3e9),
    "deepseek-v2-lite": (15.7e9, 2.4e9),
    "glm-4.5-air": (106.85e9, 12e9),
}

SMALL = """
name = "small"
summary = "a toy"
architecture = "qwen3moe"
[shape]
source = "made up"
n_layers = 3
n_embd = 64
n_vocab = 100
[experts]
source = "made up"
n_experts = 8
top_k = 2
n_ff_expert = 32
n_dense_layers = 1
n_ff_dense = 96
n_shared = 1
[attention]
source = "made up"
n_heads = 4
n_kv_heads = 2
head_dim = 16
qk_norm = "head"
[types]
source = "made up"
experts = "Q8_0"
attention = "F16"
output = "F32"
embedding = "F32"
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_there_is_a_preset_for_each():
    assert set(Model.list_presets()) == set(PUBLISHED)
    assert all(line and "\n" not in line for line in Model.list_presets().values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    m = Model.load(name)
    total, active = PUBLISHED[name]
    assert m.total_params == pytest.approx(total, rel=0.01)
    # Cards differ in whether the embedding or the head count as active.
    assert m.active_params == pytest.approx(active, rel=0.12)
    exact = read(preset_paths("models")[name], ModelSpec).params
    assert m.total_params == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_hold_together(name):
    m = Model.load(name)
    assert len(m.expert_bytes) == len(m.expert_params) == len(m.moe_layers)
    assert len(m.dense_bytes) == len(m.dense_params) == m.n_layers
    assert min(m.expert_bytes) > 0 and min(m.dense_bytes) > 0
    assert sum(n for _, _, n in m.tensors) == m.total_bytes
    assert m.active_bytes_per_token < m.total_bytes
    assert set(m.sources) == {"shape", "experts", "attention", "types"}
    assert all(m.sources.values())


def test_gpt_oss_120b_to_the_byte():
    m = Model.load("gpt-oss-120b")
    assert m.total_params == 116_829_156_672
    assert m.total_bytes == 63_374_323_968
    assert set(m.expert_bytes) == {13_219_200 + 34_560}  # three MXFP4 matrices, F32 biases
    assert set(m.dense_bytes) == {29_731_328}
    assert m.output_bytes == 615_329_280 + 11_520
    assert m.embedding_bytes == 615_329_280
    assert m.kv_bytes_per_token == 36 * 2048


@pytest.mark.shared_data
def test_gpt_oss_120b_tensor_by_tensor(shared_data):
    """Names, types, bytes and order as in llama.cpp's one CUDA weight buffer (no embedding)."""
    with (shared_data / "gpu_ext" / "gptoss120b_cuda_buffer_layout.csv").open() as f:
        rows = list(csv.DictReader(f))
    m = Model.load("gpt-oss-120b")
    ours = [t for t in m.tensors if t[0] != "token_embd.weight"]
    assert ours == [(r["tensor"], r["type"], int(r["nbytes"])) for r in rows]
    end = max(int(r["offset"]) + int(r["alloc_bytes"]) for r in rows)
    on_gpu = m.total_bytes - m.embedding_bytes
    assert 0 <= end - on_gpu < 64 * len(rows)  # alignment and row padding alone


def test_type_sizes_are_ggmls():
    for name, size in TYPES.items():
        if name == "FP8":  # not a ggml type
            continue
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == size


def test_a_users_own_file(small):
    m = Model.load(str(small))
    assert m.moe_layers == (1, 2) and m.n_experts == 8
    # By hand: 3 matrices of 64x32 in Q8_0; router F32; attention F16; norms F32; shared as F16.
    assert m.expert_bytes == (3 * 64 * 32 * 34 // 32,) * 2
    attention = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64) + 4 * 2 * 16
    assert m.dense_bytes[0] == attention + 2 * 4 * 64 + 2 * 3 * 64 * 96
    assert m.dense_bytes[1] == attention + 2 * 4 * 64 + 4 * 64 * 8 + 2 * 3 * 64 * 32
    assert (m.output_bytes, m.embedding_bytes) == (4 * (64 + 6400), 4 * 6400)
    assert m.expert_flops(0, tokens=5) == 2 * 3 * 64 * 32 * 5


def test_tied_embeddings_are_stored_once_and_read_as_the_head(tmp_path):
    path = tmp_path / "tied.toml"
    path.write_text(SMALL.replace("n_vocab = 100", "n_vocab = 100\ntied_embeddings = true"))
    m = Model.load(str(path))
    assert m.embedding_bytes == 0
    assert m.output_bytes == 4 * (64 + 6400)
    assert m.total_bytes == sum(n for _, _, n in m.tensors)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("top_k = 2", "topk = 2", "unknown key 'experts.topk'; did you mean 'top_k'?"),
        ("[shape]", "[shapes]", "unknown key 'shapes'; did you mean 'shape'?"),
        ("n_embd = 64", "wibble = 64", "known keys: source, n_layers"),
        ("n_vocab = 100\n", "", "key 'shape.n_vocab' is missing"),
        ("n_layers = 3", "n_layers = 0", "shape.n_layers"),
        ("n_layers = 3", 'n_layers = "3"', "shape.n_layers"),
        ("top_k = 2", "top_k = 9", "more than n_experts"),
        ("n_ff_dense = 96\n", "", "needs n_ff_dense"),
        ('experts = "Q8_0"', 'experts = "Q9_0"', "unknown tensor type 'Q9_0'"),
        ('experts = "Q8_0"', 'experts = "Q4_K"', "blocks of 256"),
        ("head_dim = 16\n", "", "needs head_dim"),
        ("n_dense_layers = 1", "n_dense_layers = 3", "leaves no MoE layer"),
        ("[shape]", "[shape", "not valid TOML"),
    ],
)
def test_bad_files_get_one_line(small, old, new, says):
    assert old in SMALL
    small.write_text(SMALL.replace(old, new))
    with pytest.raises(InputError) as e:
        Model.load(str(small))
    assert says in str(e.value) and str(small) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gpt-oss-12b", "did you mean gpt-oss-120b?"),
        ("no/such.toml", "no such file"),
        ("no/such.gguf", "no such file"),
        ("zzz", "presets: deepseek-v2-lite"),
    ],
)
def test_unknown_models(spec, says):
    with pytest.raises(InputError) as e:
        Model.load(spec)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_preset_names_ignore_case():
    assert Model.load("GPT-OSS-20B") == Model.load("gpt-oss-20b")


def test_a_binary_file_is_not_toml(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        Model.load(str(path))


def test_a_gguf_file_and_a_toml_file_of_one_model_agree(small, tmp_path):
    want = Model.load(str(small))
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("small")
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_vocab_size(100)
    spec = read(small, ModelSpec)
    for t in tensors_of(spec):
        kind = gguf.GGMLQuantizationType[t.type]
        data = np.zeros(t.nbytes, np.uint8).reshape(*reversed(t.shape[1:]), -1)
        writer.add_tensor(t.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    got = Model.load(str(path))
    for key in ("moe_layers", "n_experts", "top_k", "expert_bytes", "dense_bytes", "output_bytes",
                "embedding_bytes", "expert_params", "dense_params", "output_params",
                "kv_bytes_per_token", "total_bytes"):  # fmt: skip
        assert getattr(got, key) == getattr(want, key), key


INFO = ModelInfo("dump", n_layers=3, moe_layers=(1, 2), n_experts=8, top_k=2)


def test_a_trace_that_knows_only_the_shape_needs_a_size():
    with pytest.raises(InputError, match="expert_size"):
        Model.from_info(INFO)
    m = Model.from_info(INFO, expert_bytes=1000)
    assert m.expert_bytes == (1000, 1000) and m.dense_bytes == (0, 0, 0)
    assert m.resident_bytes == 0 and "counted as 0" in m.sources["note"]


def test_weights_are_derived_where_a_description_lacks_them():
    known = replace(
        INFO, expert_bytes=(3400, 3400), dense_bytes=(340, 680, 680), output_bytes=34,
        embedding_bytes=34, quantisation="Q8_0",
    )  # fmt: skip
    m = Model.from_info(known)
    assert m.expert_params == (3200, 3200) and m.dense_params == (320, 640, 640)
    assert Model.from_info(replace(known, n_embd=10, n_ff_expert=20)).expert_params == (600, 600)
    assert Model.from_info(replace(known, quantisation=None)).expert_params == (3400, 3400)
    assert Model.from_info(known, expert_bytes=6800).dense_bytes == (680, 1360, 1360)


def test_weights_come_from_the_types_of_listed_tensors():
    """Also where every expert has a tensor of its own, as in files of early 2024."""
    tensors = {"token_embd.weight": ["F16", 200], "output.weight": ["Q8_0", 34]}
    for block in (0, 1, 2):
        tensors[f"blk.{block}.attn_q.weight"] = ["F32", 400]
    for block in (1, 2):
        for e in range(8):
            tensors[f"blk.{block}.ffn_up.{e}.weight"] = ["Q4_0", 18]
    m = Model.from_info(
        replace(INFO, expert_bytes=(18, 18), dense_bytes=(400,) * 3, output_bytes=34,
                embedding_bytes=200, tensors=tensors)
    )  # fmt: skip
    assert m.expert_params == (32, 32) and m.dense_params == (100,) * 3
    assert (m.output_params, m.embedding_params) == (32, 100)
    assert m.tensors[0] == ("token_embd.weight", "F16", 200)


def test_inconsistent_descriptions_are_refused():
    with pytest.raises(InputError, match="inconsistent"):
        Model.from_info(replace(INFO, expert_bytes=(1,)))
    with pytest.raises(InputError, match="no MoE layers"):
        Model.from_info(replace(INFO, moe_layers=()))


def test_scaling_keeps_the_shape():
    small, big = Model.load("gpt-oss-20b"), 13_253_760 * 4
    m = small.scaled(big)
    assert set(m.expert_bytes) == {big}
    assert m.dense_bytes == tuple(4 * n for n in small.dense_bytes)
    assert m.output_bytes == 4 * small.output_bytes
    assert (m.n_layers, m.top_k, m.moe_layers) == (small.n_layers, small.top_k, small.moe_layers)
    assert small.scaled(13_253_760).total_bytes == small.total_bytes
    with pytest.raises(InputError, match="above 0"):
        small.scaled(0)


def test_a_trace_must_fit_its_model():
    m = Model.load("gpt-oss-120b")
    m.check_fits(ModelInfo("dump", 36, tuple(range(36)), 128, 4))
    with pytest.raises(InputError) as e:
        m.check_fits(ModelInfo("dump", 24, tuple(range(24)), 32, 4))
    assert "24 MoE layers of 32 experts, top-4" in str(e.value)
    assert "`model` gpt-oss-20b fits" in str(e.value)
    with pytest.raises(InputError, match="the model that made the trace"):
        m.check_fits(INFO)
    # Routing dumps number MoE layers from 0 even where block 0 is dense.
    Model.load("glm-4.5-air").check_fits(ModelInfo("dump", 45, tuple(range(45)), 128, 8))
