"""Write a Mixture-of-Experts model of real size with random weights, in about a minute.

16 blocks of 64 experts, top-4, float16: 4.5 MiB an expert (gate, up and down of 1.5 MiB each), 4.6 GiB
in all. Text goes in byte by byte. What it writes is noise; sizes and kernels are real.

    python make_model.py model.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / d) for d in ("", "tests")]

SHAPE = {"layers": 16, "d": 1024, "heads": 16, "experts": 64, "used": 4, "ff": 768}
TENSOR_BYTES = 2 * SHAPE["d"] * SHAPE["ff"]
"""Bytes of one of an expert's three matrices."""


def main(path: str) -> None:
    from tiny_gguf import write_tiny

    write_tiny(Path(path), "qwen3moe", **SHAPE, half=True)


if __name__ == "__main__":
    main(sys.argv[1])
