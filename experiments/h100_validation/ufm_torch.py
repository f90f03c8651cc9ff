"""The UFM benchmark's `baseline` and `naive_offload` in PyTorch, on the same routing.

naive_offload: every expert module is moved in by ``.cuda()``, called, and moved out by ``.cpu()``,
from and to plain (pageable) memory, as the benchmark does it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rtx4090_ufm"))

import ufm_model


def study(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Rows with tokens/s of both modes at each number of experts."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU")
    counts = (6, 12) if quick else ufm_model.COUNTS
    hidden = 64 if quick else ufm_model.D_HIDDEN
    bank = [_expert(torch, hidden) for _ in range(max(counts))]
    _step(torch, bank[:4], counts[0], naive=True)  # CUDA, cuBLAS and the allocator start up
    rows = []
    for n in counts:
        naive = _step(torch, bank[:n], n, naive=True)
        rows.append({"experts": n, "name": "naive_offload (PyTorch)", "measured": naive})
        say(f"torch naive_offload, {n} experts: {naive:.1f} tok/s")
    try:
        for e in bank:
            e.cuda()
        for n in counts:
            _step(torch, bank[:n], n, naive=False)
            speed = _step(torch, bank[:n], n, naive=False)
            rows.append({"experts": n, "name": "baseline (PyTorch)", "measured": speed})
            say(f"torch baseline, {n} experts: {speed:.1f} tok/s")
    except torch.cuda.OutOfMemoryError:
        say("baseline does not fit")
    return {"torch": torch.__version__, "rows": rows}


def _expert(torch: Any, hidden: int) -> Any:
    up = torch.nn.utils.skip_init(torch.nn.Linear, ufm_model.D_MODEL, hidden, bias=False)
    down = torch.nn.utils.skip_init(torch.nn.Linear, hidden, ufm_model.D_MODEL, bias=False)
    expert = torch.nn.Sequential(up, torch.nn.GELU(), down).requires_grad_(False)
    for p in expert.parameters():
        p.fill_(0.01)
    return expert


def _step(torch: Any, experts: list[Any], n: int, naive: bool) -> float:
    """tokens/s of one step of the workload's routing."""
    import numpy as np

    ids = np.asarray(ufm_model.routing(n, 1).experts)
    chosen = torch.from_numpy(ids.astype(np.int64)).cuda()
    x = torch.randn(ufm_model.TOKENS, ufm_model.D_MODEL, device="cuda")
    out = torch.zeros_like(x)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.no_grad():
        for i, expert in enumerate(experts):
            rows = (chosen == i).any(dim=1).nonzero().flatten()
            if not len(rows):
                continue
            if naive:
                expert.cuda()
            out.index_add_(0, rows, expert(x[rows]))
            if naive:
                expert.cpu()
    torch.cuda.synchronize()
    return ufm_model.TOKENS / (time.perf_counter() - begin)
