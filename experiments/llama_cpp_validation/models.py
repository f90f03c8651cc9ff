"""The models of the validation: other shapes than any the calibration runs, random weights.

python experiments/llama_cpp_validation/models.py FOLDER         # for a GPU
python experiments/llama_cpp_validation/models.py FOLDER --cpu   # for two cores
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from replay.llama_cpp.synthetic import Shape, write_all

MODELS = {
    "f16-64x16": Shape(n_layers=16, n_experts=64, n_ff_expert=768),
    "gpt-oss-mxfp4": Shape("gpt-oss", n_layers=12, n_embd=2880, n_heads=64, n_kv_heads=8, head_dim=64,
                           n_experts=32, top_k=4, n_ff_expert=2880, n_vocab=65536, experts="MXFP4",
                           dense="Q8_0"),
    "qwen3-q4k-20x64": Shape(n_layers=20, n_embd=1536, n_heads=24, n_kv_heads=8, head_dim=64,
                             n_experts=64, top_k=6, n_ff_expert=1024, n_vocab=49152, experts="Q4_K",
                             dense="Q8_0"),
    "mixtral-q8-8x8": Shape(n_layers=8, n_embd=2048, n_heads=32, n_kv_heads=8, head_dim=64,
                            n_experts=8, top_k=2, n_ff_expert=6144, n_vocab=40960, experts="Q8_0",
                            dense="Q8_0"),
}  # fmt: skip
"""4.6 GiB in float16; gpt-oss-20b's blocks, half as many; Qwen3's architecture in Q4_K; Mixtral's few
large experts in Q8_0."""


CPU_MODELS = {
    "qwen3-q4k": Shape(n_layers=10, n_embd=1280, n_heads=20, n_kv_heads=4, head_dim=64, n_experts=48,
                       top_k=6, n_ff_expert=768, n_vocab=24576, experts="Q4_K", dense="Q8_0"),
    "gpt-oss-mxfp4": Shape("gpt-oss", n_layers=6, n_embd=1440, n_heads=32, n_kv_heads=8, head_dim=64,
                           n_experts=32, top_k=4, n_ff_expert=1440, n_vocab=24576, experts="MXFP4",
                           dense="Q8_0"),
    "qwen3-f16": Shape(n_layers=6, n_embd=768, n_heads=12, n_kv_heads=4, head_dim=64, n_experts=40,
                       top_k=4, n_ff_expert=640, n_vocab=12288),
}  # fmt: skip
SHAPES = CPU_MODELS if "--cpu" in sys.argv else MODELS


if __name__ == "__main__":
    for path in write_all(sys.argv[1], SHAPES, processes=4):
        print(path, path.stat().st_size >> 20, "MiB")
