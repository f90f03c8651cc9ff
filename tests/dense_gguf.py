"""A small model without experts as a GGUF file, whole or in parts."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_dense(
    path: Path, *, arch: str = "llama", layers: int = 6, d: int = 256, ff: int = 1024,
    vocab: int = 512, parts: int = 1,
) -> Path:  # fmt: skip
    """Returns the file to give, the first part's where there are several (``parts`` tensors each)."""
    split = {"split_max_tensors": parts} if parts > 1 else {}
    w = gguf.GGUFWriter(str(path), arch, **split)
    w.add_name("tiny-dense")
    w.add_context_length(4096)
    w.add_embedding_length(d)
    w.add_block_count(layers)
    w.add_feed_forward_length(ff)
    w.add_head_count(4)
    w.add_head_count_kv(2)

    def add(name: str, *shape: int) -> None:
        w.add_tensor(name, np.zeros(shape, np.float16 if len(shape) > 1 else np.float32))

    add("token_embd.weight", vocab, d)
    add("output_norm.weight", d)
    add("output.weight", vocab, d)
    for i in range(layers):
        for name, shape in (
            ("attn_norm", (d,)), ("attn_q", (d, d)), ("attn_k", (d // 2, d)),
            ("attn_v", (d // 2, d)), ("attn_output", (d, d)), ("ffn_norm", (d,)),
            ("ffn_gate", (ff, d)), ("ffn_up", (ff, d)), ("ffn_down", (d, ff)),
        ):  # fmt: skip
            add(f"blk.{i}.{name}.weight", *shape)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    if parts == 1:
        return path
    return next(p for p in sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf")))
