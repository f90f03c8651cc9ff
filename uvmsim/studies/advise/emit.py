"""The command line to paste (llama.cpp b11549, common/arg.cpp)."""

from __future__ import annotations

import shlex

from uvmsim.studies.advise.candidate import UNIFIED, Candidate

PROGRAM = "llama-server"
UNIFIED_MEMORY = "GGML_CUDA_ENABLE_UNIFIED_MEMORY=1"


def command(c: Candidate, model_file: str, n_layers: int) -> str:
    """``llama-server`` with everything that the advice rests on; ``-fit off`` so that llama.cpp does
    not change it."""
    words = [PROGRAM, "-m", model_file, *c.flags(n_layers), "-c", str(c.ctx)]
    if c.ubatch > 2048:  # a micro-batch is at most a batch
        words += ["-b", str(c.ubatch)]
    words += ["-fa", "on"]
    if c.kv_type != "f16":
        words += ["-ctk", c.kv_type, "-ctv", c.kv_type]
    words += ["-fit", "off"]
    line = " ".join(shlex.quote(w) for w in words)
    return f"{UNIFIED_MEMORY} {line}" if c.kind == UNIFIED else line
