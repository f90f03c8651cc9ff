"""The models of the paging validation, random weights.

python experiments/paging_driver/models.py FOLDER
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from replay.llama_cpp.synthetic import Shape, write

MODELS = {
    "f16-16x64": Shape(n_layers=16, n_experts=64, n_ff_expert=768),
    "mxfp4-6x32": Shape("gpt-oss", n_layers=6, n_embd=2880, n_heads=64, n_kv_heads=8, head_dim=64,
                        n_experts=32, top_k=4, n_ff_expert=2880, n_vocab=65536, experts="MXFP4",
                        dense="Q8_0"),
}  # fmt: skip
"""4.6 GiB in float16, an expert 4.5 MiB; six of gpt-oss-20b's blocks, an expert 13.2 MB."""


def one(job: tuple[str, str]) -> str:
    folder, name = job
    return str(write(Path(folder) / f"{name}.gguf", MODELS[name]))


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        for path in pool.map(one, [(sys.argv[1], name) for name in MODELS]):
            print(path, Path(path).stat().st_size >> 20, "MiB")
