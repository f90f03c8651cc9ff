"""The process that runs llama.cpp for a paging validation: one capture, as asked on standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Answer the request in the file that it names."""
    request = json.loads(sys.stdin.read())
    Path(request["answer"]).write_text(json.dumps(answer(request)), encoding="utf-8")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """``model``, ``library``, ``out`` (routing trace), ``prompt`` and ``predict`` (tokens), ``seed``;
    ``managed`` and ``cold`` as of the capture, ``faults``: a fault trace by the driver's events."""
    from traces.capture.llama_cpp import capture
    from traces.capture.options import CaptureOptions, Prompt
    from traces.models.gguf import describe

    vocabulary = request.get("n_vocab") or describe(request["model"]).n_vocab or 256
    rng = np.random.default_rng(request["seed"])
    tokens = tuple(rng.integers(0, vocabulary, request["prompt"]).tolist())
    options = CaptureOptions(
        n_predict=request["predict"], n_gpu_layers=99, seed=request["seed"], ignore_eos=True,
        times=True, warm_up=True, unified_memory=request["managed"], cold=request["cold"],
    )  # fmt: skip
    result = capture(
        request["model"], [Prompt(tokens=tokens, source="random tokens")], request["out"], options,
        library=request["library"], faults=request.get("faults"), tracer="driver",
        command="uvmsim validate, paging",
    )  # fmt: skip
    return {"notes": result.notes, "rows": result.rows, "faults": _plain(result.faults)}


def _plain(found: dict[str, Any] | None) -> dict[str, Any] | None:
    return found and {k: str(v) if isinstance(v, Path) else v for k, v in found.items()}
