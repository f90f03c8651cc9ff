"""The models of the paging validation, random weights.

python experiments/paging_driver/models.py FOLDER [NAME ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from replay.llama_cpp.synthetic import Shape, write_all

MODELS = {
    "f16-16x64": Shape(n_layers=16, n_experts=64, n_ff_expert=768),
    "mxfp4-6x32": Shape("gpt-oss", n_layers=6, n_embd=2880, n_heads=64, n_kv_heads=8, head_dim=64,
                        n_experts=32, top_k=4, n_ff_expert=2880, n_vocab=65536, experts="MXFP4",
                        dense="Q8_0"),
    "f16-24x32": Shape(n_layers=24, n_experts=32, n_ff_expert=1024),
    "mxfp4-8x64": Shape("gpt-oss", n_layers=8, n_embd=2048, n_heads=32, n_kv_heads=8, head_dim=64,
                        n_experts=64, top_k=4, n_ff_expert=2048, n_vocab=32768, experts="MXFP4",
                        dense="Q8_0"),
}  # fmt: skip
"""4.6 GiB in float16, an expert 4.5 MiB; six of gpt-oss-20b's blocks, an expert 13.2 MB. Of other
shapes: experts of 6 MiB and of 6.7 MB."""


if __name__ == "__main__":
    wanted = {k: v for k, v in MODELS.items() if k in sys.argv[2:] or not sys.argv[2:]}
    for path in write_all(sys.argv[1], wanted, processes=2):
        print(path, path.stat().st_size >> 20, "MiB")
