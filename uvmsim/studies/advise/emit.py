"""The command line to paste (llama.cpp b11549, common/arg.cpp)."""

from __future__ import annotations

import shlex

from uvmsim.studies.advise.candidate import Candidate

PROGRAM = "llama-server"
UNIFIED_MEMORY = "GGML_CUDA_ENABLE_UNIFIED_MEMORY=1"


def command(c: Candidate, model_file: str, n_layers: int) -> str:
    """``llama-server`` with everything that the advice rests on: one sequence, where the server's own
    default is four (tools/server/server.cpp), and ``-fit off`` so that llama.cpp does not change it."""
    words = [PROGRAM, "-m", model_file, *c.flags(n_layers), "-c", str(c.ctx), "-np", "1"]
    if c.config.n_batch > 2048:  # a micro-batch is at most a batch
        words += ["-b", str(c.config.n_batch)]
    if c.config.flash_attention != "auto":
        words += ["-fa", c.config.flash_attention]
    if c.kv_type != "f16":
        words += ["-ctk", c.kv_type, "-ctv", c.kv_type]
    words += ["-fit", "off"]
    line = " ".join(shlex.quote(w) for w in words)
    return f"{UNIFIED_MEMORY} {line}" if c.config.unified_memory else line
