"""Capture the sample traces that ship in traces/samples/, with our own command, on held-out text.

    python experiments/tiny_moe/fetch_text.py --heldout heldout.txt
    python experiments/tiny_moe/make_samples.py heldout.txt

`tiny-moe.arrow`: a prefill in micro-batches of 512 tokens and a long decode. `tiny-moe-scores.arrow`:
a short run with all router scores, for policies that need them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "traces" / "samples"
RUNS = {
    "tiny-moe.arrow": ["--n-predict", "1536"],
    "tiny-moe-scores.arrow": ["--n-predict", "192", "--scores"],
}


def main(prompt: str) -> None:
    """Record each sample; the sampling seed is fixed, so a repeat gives the same routing."""
    text = Path(prompt).read_text(encoding="utf-8")
    for name, settings in RUNS.items():
        cut = Path(prompt).with_name(f"{Path(name).stem}-prompt.txt")
        cut.write_text(text if "--scores" not in settings else text[:800], encoding="utf-8")
        command = [
            "uvmsim", "capture", "llama-cpp", str(HERE / "tiny-moe.gguf"),
            "--prompt-file", str(cut), "--ignore-eos", "--seed", "0",
            "--temperature", "1.1",  # cooler, and so small a model ends in a loop
            "--out", str(SAMPLES / name), *settings,
        ]  # fmt: skip
        subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
