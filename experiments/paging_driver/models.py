"""The models of the paging validation, random weights.

python experiments/paging_driver/models.py FOLDER
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
}  # fmt: skip
"""4.6 GiB in float16, an expert 4.5 MiB; six of gpt-oss-20b's blocks, an expert 13.2 MB."""


if __name__ == "__main__":
    for path in write_all(sys.argv[1], MODELS, processes=2):
        print(path, path.stat().st_size >> 20, "MiB")
