"""Model descriptions from GGUF files, and files that are broken."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import ARCHITECTURES, N_VOCAB, write_tiny

from traces.errors import InputError
from traces.models.gguf import describe
from traces.models.gguf_header import read_header
from traces.models.gguf_tensors import GgufTensors


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_description_accounts_for_every_byte(tmp_path: Path, arch: str, half: bool) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch, half=half)
    info = describe(path)
    reader = gguf.GGUFReader(path)
    sizes = {t.name: int(t.n_bytes) for t in reader.tensors}
    assert {n: b for n, (_, b) in info.tensors.items()} == sizes
    assert (info.n_experts, info.top_k, info.n_layers) == (16, 4, 4)
    assert info.moe_layers == ((1, 2, 3) if arch in ("deepseek2", "glm4moe") else (0, 1, 2, 3))
    assert (info.n_embd, info.n_ff_expert, info.n_vocab) == (64, 32, N_VOCAB)
    assert info.quantisation == ("F16" if half else "F32")
    total = info.output_bytes + info.embedding_bytes + sum(info.dense_bytes)
    assert total + sum(info.expert_bytes) * info.n_experts == sum(sizes.values())
    matrices = 3 * 32 * 64 * (2 if half else 4)
    biases = (32 + 32 + 64) * 4 if arch == "gpt-oss" else 0
    assert set(info.expert_bytes) == {matrices + biases}
    assert info.output_bytes == sizes["output.weight"] + sizes["output_norm.weight"]


def test_tied_head_counts_the_embedding_as_output(tmp_path: Path) -> None:
    info = describe(write_tiny(tmp_path / "m.gguf", "mixtral", tied=True))
    assert info.embedding_bytes == 0
    assert info.output_bytes == 4 * (64 * N_VOCAB + 64)


@pytest.mark.parametrize(
    ("arch", "expected"),
    # 4 blocks, f16: 2 heads of 16, keys and values; latent attention: one row of 32 + 8
    [("qwen3moe", 4 * 2 * 2 * 2 * 16), ("deepseek2", 4 * 2 * (32 + 8))],
)
def test_kv_bytes(tmp_path: Path, arch: str, expected: int) -> None:
    assert describe(write_tiny(tmp_path / "m.gguf", arch)).kv_bytes_per_token == expected


def test_large_vocabulary_is_stepped_over(tmp_path: Path) -> None:
    w = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "olmoe")
    w.add_token_list([f"token-{i}" for i in range(5000)])
    w.add_token_scores([0.0] * 5000)
    w.add_block_count(1)
    w.add_tensor("x", np.zeros(3, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    header = read_header(tmp_path / "m.gguf")
    assert header.metadata == {"general.architecture": "olmoe", "olmoe.block_count": 1}
    assert [(t.name, t.shape, t.type, t.n_bytes) for t in header.tensors] == [
        ("x", (3,), "F32", 12)
    ]


def test_tensors_are_read_as_float32(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    w = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "olmoe")
    w.add_block_count(1)
    w.add_tensor("F32", x)
    w.add_tensor("F16", x.astype(np.float16))
    for name in ("BF16", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        w.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    w.add_tensor("I32", np.arange(4, dtype=np.int32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    tensors = GgufTensors(tmp_path / "m.gguf")
    assert "F16" in tensors and "F64" not in tensors
    for name, tolerance in (("F32", 0.0), ("F16", 2e-3), ("BF16", 1.5e-2), ("Q8_0", 2e-2)):
        found = tensors.read(name)
        assert (found.dtype, found.shape) == (np.float32, (3, 64))
        np.testing.assert_allclose(found, x, atol=tolerance)
    assert (tensors.read("F16") == x.astype(np.float16)).all()
    with pytest.raises(InputError, match=r"m\.gguf: tensor I32 has the type I32"):
        tensors.read("I32")
    with pytest.raises(InputError, match="no tensor F64"):
        tensors.read("F64")


def test_split_model_is_described_as_one(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(whole)
    parts = [tmp_path / f"m-{i:05d}-of-00002.gguf" for i in (1, 2)]
    for i, path in enumerate(parts):
        w = gguf.GGUFWriter(str(path), "qwen3moe")
        w.add_uint16("split.count", 2)
        if i == 0:
            w.add_block_count(4)
            w.add_embedding_length(64)
            w.add_head_count(4)
            w.add_head_count_kv(2)
            w.add_expert_count(16)
            w.add_expert_used_count(4)
        for t in reader.tensors[i::2]:
            w.add_tensor(t.name, np.array(t.data))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
    one, split = describe(whole), describe(parts[0])
    assert split.expert_bytes == one.expert_bytes
    assert split.dense_bytes == one.dense_bytes
    assert split.kv_bytes_per_token == one.kv_bytes_per_token
    tensors = GgufTensors(parts[0])
    for t in reader.tensors:
        assert (tensors.read(t.name) == t.data).all()
    with pytest.raises(InputError, match="give the first"):
        describe(parts[1])
    parts[1].unlink()
    with pytest.raises(InputError, match="no such file"):
        describe(parts[0])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as e:
        describe(path)
    text = str(e.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_every_truncation_is_one_clear_line(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "m.gguf"
    for size in (0, 3, 4, 10, 23, 24, 100, 500, 3000, 5000, 9000, 20000, len(good) - 1):
        path.write_bytes(good[:size])
        assert "cut off" in one_line(path) or size < 4


def test_wrong_files(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "m.gguf"
    assert "no such file" in one_line(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "not a GGUF file" in one_line(path)
    path.write_bytes(good[:4] + struct.pack("<I", 99) + good[8:])
    assert "version 99" in one_line(path)
    path.write_bytes(good[:8] + struct.pack("<Q", 1 << 60) + good[16:])
    assert "damaged" in one_line(path)


def test_dense_model_is_refused(tmp_path: Path) -> None:
    w = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    w.add_block_count(1)
    w.add_embedding_length(8)
    w.add_tensor("blk.0.ffn_down.weight", np.zeros((8, 8), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    assert "not a Mixture-of-Experts model" in one_line(tmp_path / "m.gguf")
