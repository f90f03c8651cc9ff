"""Start a worker, hand it a request, read its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replay.llama_cpp.request import Request
from traces.capture.find_library import find_library, preload_environment

CHILD = "from replay.llama_cpp.worker import main; main()"
UNIFIED = "GGML_CUDA_ENABLE_UNIFIED_MEMORY"


def run(
    request: Request, *, seconds: float, on_line: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """What the worker found: ``status`` (``ok``, ``failed``), ``why``, and what it got done until then.

    ``contexts``: for each context its ``tests`` (``name``, ``ns``: one duration a repetition),
    ``moe_cache`` and ``trace``; ``log``: llama.cpp's lines about memory; ``build``, ``devices``.
    A worker that crashes, or needs more than ``seconds``, has failed; what it had answered is kept.
    Raises `InputError` where the library cannot be found.
    """
    file = find_library(request.library)
    environment = dict(preload_environment(file) or os.environ)
    environment.pop(UNIFIED, None)
    if request.unified:
        environment[UNIFIED] = "1"
    path = os.pathsep.join(p for p in sys.path if p)
    environment |= {"PYTHONPATH": path} | request.environment
    found: dict[str, Any] = {"status": "failed", "why": "", "contexts": []}
    with tempfile.TemporaryDirectory() as folder:
        asked, out, said = (Path(folder) / n for n in ("request.json", "answers.jsonl", "stderr"))
        asked.write_text(json.dumps(request.to_json()), encoding="utf-8")
        why = ""
        with said.open("w") as errors:
            try:
                code = subprocess.run(
                    [sys.executable, "-P", "-c", CHILD, str(asked), str(out)],
                    timeout=seconds, check=False, env=environment, stdin=subprocess.DEVNULL,
                    stdout=errors, stderr=errors,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code, why = 1, f"took more than {seconds:.0f} s"
        for line in out.read_text(encoding="utf-8").splitlines() if out.exists() else []:
            try:
                part = json.loads(line)
            except ValueError:  # cut off while it was written
                break
            if "context" in part:
                found["contexts"].append(part["context"])
            else:
                found |= part
            if on_line:
                on_line(part)
        if code:
            tail = " / ".join(said.read_text(errors="replace").strip().splitlines()[-3:])[-500:]
            found["status"] = "failed"
            found["why"] = found["why"] or why or f"exit {code}: {tail}"
    return found
