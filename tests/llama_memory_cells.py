"""What a real libllama allocates, for tests: `experiments/llama_cpp_validation/memory_cells.py` in a
process of its own, on the CPU or on a GPU without cores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).parents[1] / "experiments" / "llama_cpp_validation"
sys.path.insert(0, str(STUDY))

from memory_cells import logged  # noqa: E402
from sparse_gguf import SHAPES, Shape, small, write_sparse  # noqa: E402
from virtual_gpu import build, compiler  # noqa: E402

__all__ = [
    "SHAPES", "Cell", "Shape", "config_of", "differences", "logged", "run", "small", "write_sparse",
]  # fmt: skip

Cell = tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, int]]]
"""Placement, context, and bytes by buffer type and kind."""


def run(
    model: Path,
    cells: list[tuple[dict[str, Any], list[dict[str, Any]]]],
    gpu: Path | None,
    *,
    compute_capability: int = 900,
) -> list[Cell]:
    """Load ``model`` with each placement and make the contexts. ``gpu``: a folder to build the
    virtual GPU in; None: the CPU alone. ``compute_capability`` 0: a build without attention kernels.
    Skips where there is no libllama or no compiler."""
    pytest.importorskip("xllamacpp")
    from traces.capture.find_library import find_library

    library = str(find_library().path)
    specs = [
        {"lib": library, "model": str(model), "place": place, "contexts": contexts}
        for place, contexts in cells
    ]
    if gpu is not None:
        if compiler() is None:
            pytest.skip("no C++ compiler for the virtual GPU")
        build(gpu)
        specs[0]["device"] = {"folder": str(gpu), "compute_capability": compute_capability}
    child = subprocess.run(
        [sys.executable, str(STUDY / "memory_cells.py"), "--child", json.dumps(specs)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    found: list[Cell] = []
    place: dict[str, Any] = {}
    for line in child.stdout.splitlines():
        record = json.loads(line)
        assert "error" not in record, record
        place = record.get("place", place)
        if "bytes" in record:
            found.append((place, record["config"], record["bytes"]))
    assert len(found) == sum(len(c) for _, c in cells)
    return found


def config_of(
    place: dict[str, Any], context: dict[str, Any], *, gpu: bool = True, **more: Any
) -> Any:
    """The same configuration for the plan."""
    from uvmsim.machine.llamacpp import LlamaConfig

    same = ("n_ctx", "n_ubatch", "kv_unified", "type_k", "type_v", "op_offload", "moe_cache_mib",
            "n_outputs_max", "swa_full")  # fmt: skip
    return LlamaConfig(
        n_gpu_layers=None if place["ngl"] == 99 else place["ngl"],
        n_cpu_moe=place.get("ncmoe", 0),
        overrides=tuple((p, d) for p, d in place.get("ot", ())),
        mmap=not place.get("no_mmap", False),
        n_batch=max(2048, context["n_ubatch"]),
        n_seq_max=context.get("n_seq", 1),
        flash_attention=context.get("flash", "auto"),
        gpu=gpu,
        **more,
        **{k: context[k] for k in same if k in context},
    )


def differences(model: Any, cells: list[Cell], *, gpu: bool = True, **more: Any) -> list[str]:
    """Every number of the plan that is not llama.cpp's; weights on the host only with a GPU, because a
    CPU build repacks them."""
    from uvmsim.machine.llamacpp import memory

    out = []
    for place, context, reported in cells:
        plan = memory(model, config_of(place, context, gpu=gpu, **more))
        card = reported.get("CUDA0", {"model": 0, "context": 0, "compute": 0})
        host = [v for k, v in reported.items() if k != "CUDA0"]
        pairs = {
            "GPU weights": (plan.gpu.weights, card["model"]),
            "GPU cache": (plan.gpu.kv_cache + plan.gpu.moe_cache, card["context"]),
            "GPU compute": (plan.gpu.compute, card["compute"]),
            "host cache": (
                plan.host.kv_cache + plan.host.moe_cache,
                sum(v["context"] for v in host),
            ),
            "host compute": (plan.host.compute, sum(v["compute"] for v in host)),
        }
        if gpu:
            in_host = plan.mapped_bytes or plan.host.weights
            pairs["host weights"] = (in_host, sum(v["model"] for v in host))
        out += [f"{place} {context} {k}: {a} for {b}" for k, (a, b) in pairs.items() if a != b]
    return out
