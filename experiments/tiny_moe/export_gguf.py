"""Write a checkpoint as a GGUF file that llama.cpp runs (architecture qwen3moe, Q8_0)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf_weights import to_gguf
from model import Config
from tokenizer import END_OF_TEXT, load_tokenizer


def add_shape(writer: GGUFWriter, config: Config) -> None:
    """The numbers llama.cpp needs to build the graph."""
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.expert_width)
    writer.add_expert_feed_forward_length(config.expert_width)
    writer.add_expert_count(config.experts)
    writer.add_expert_used_count(config.experts_used)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocabulary)


def add_vocabulary(writer: GGUFWriter, cache: Path) -> None:
    """Byte-level BPE tokens and merges, split as GPT-2 does."""
    tokenizer = load_tokenizer(cache)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    kinds = [TokenType.CONTROL if t == END_OF_TEXT else TokenType.NORMAL for t in tokens]
    end = tokenizer.token_to_id(END_OF_TEXT)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def add_tensors(writer: GGUFWriter, tensors: dict[str, np.ndarray], quantised: bool) -> None:
    """Q8_0 for the large matrices; norms and routers stay float32."""
    for name, data in tensors.items():
        if quantised and data.ndim > 1 and "ffn_gate_inp" not in name:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)


def export(cache: Path, out: Path, quantised: bool) -> None:
    """Write the GGUF file of cache/checkpoint.pt."""
    config = Config()
    state = torch.load(cache / "checkpoint.pt", map_location="cpu")
    partial = out.with_name(out.name + ".partial")
    writer = GGUFWriter(partial, "qwen3moe")
    writer.add_name("uvmsim tiny-moe")
    writer.add_description("8 layers, 32 experts, top-4; a small trained routing workload")
    writer.add_license("mit")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if quantised else LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, config)
    add_vocabulary(writer, cache)
    add_tensors(writer, to_gguf(config, state["model"]), quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(out)
    print(out, out.stat().st_size, "bytes, step", state["step"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("build"))
    parser.add_argument("--out", type=Path, default=Path("tiny-moe.gguf"))
    parser.add_argument("--f32", action="store_true", help="no quantisation, to compare with torch")
    arguments = parser.parse_args()
    export(arguments.cache, arguments.out, not arguments.f32)


if __name__ == "__main__":
    main()
