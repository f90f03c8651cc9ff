"""The process that loads a libllama, runs what a `Request` asks for and writes JSON lines.

Timing follows llama-bench (tools/llama-bench/llama-bench.cpp): uniformly random tokens, the KV cache
cleared before each repetition, one untimed run first, `llama_synchronize` inside the time. Contexts are
llama-bench's too: libllama's defaults, but blocks with a sliding window keep no more than that.
"""

from __future__ import annotations

import ctypes as C
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from replay.llama_cpp.census import Census
from replay.llama_cpp.request import Context, Request, Test
from replay.llama_cpp.tokens import Runner
from traces.capture.find_library import find_library
from traces.capture.libllama import EVAL_CALLBACK, Library, LlamaContext, LlamaModel
from traces.errors import InputError

LOG_CALLBACK = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
WORDS = (
    "buffer size",
    "graph nodes",
    "graph splits",
    "compute capability",
    "moe_cache",
    "MoE cache",
)
"""What of llama.cpp's log is kept."""


def main() -> None:
    """Answer the request in the file named first in the file named second."""
    request = Request.from_json(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    with Path(sys.argv[2]).open("w", encoding="utf-8") as out:

        def write(part: dict[str, Any]) -> None:
            out.write(json.dumps(part) + "\n")
            out.flush()

        try:
            Worker(request, write).run()
            write({"status": "ok"})
        except InputError as err:
            write({"status": "failed", "why": str(err)})


class Worker:
    """One request being answered."""

    def __init__(self, request: Request, write: Any) -> None:
        self.request, self.write = request, write
        self.lines: list[str] = []

    def run(self) -> None:
        r = self.request
        self.library = Library(find_library(r.library), passive=False)
        self._listen()
        start = time.perf_counter()
        with LlamaModel(
            self.library, r.model, n_gpu_layers=r.n_gpu_layers, n_cpu_moe=r.n_cpu_moe,
            no_mmap=r.no_mmap,
        ) as self.model:  # fmt: skip
            self.write({"build": self.library.build, "load_s": time.perf_counter() - start})
            if r.census:
                self.write({"census": [self.census(n) for n in r.census]})
            for context in r.contexts:
                self.write({"context": self.context(context)})
                self.write({"log": self.lines})
        self.write({"log": self.lines})

    def _listen(self) -> None:
        inner = self.library._on_log

        def log(level: int, text: bytes, user: Any) -> None:
            inner(level, text, user)
            line = (text or b"").decode("utf-8", "replace").strip()
            if any(word in line for word in WORDS):
                self.lines.append(line)

        self._log = LOG_CALLBACK(log)
        self.library.c.llama_log_set(C.cast(self._log, C.c_void_p), None)

    # ---- contexts ------------------------------------------------------------------------------

    def _made(self, c: Context, **more: Any) -> LlamaContext:
        return LlamaContext(
            self.model, n_ctx=c.context_tokens(), n_batch=max(c.n_batch, c.n_ubatch),
            n_ubatch=c.n_ubatch, n_threads=self.request.threads,
            moe_cache_bytes=c.moe_cache_mib << 20, swa_full=False, **more,
        )  # fmt: skip

    def context(self, c: Context) -> dict[str, Any]:
        """The tests of one context; what each repetition took, and llama.cpp's own cache counters."""
        found: dict[str, Any] = {"n_ubatch": c.n_ubatch, "moe_cache_mib": c.moe_cache_mib}
        if c.trace is not None:
            return found | self._captured(c)
        with self._made(c) as context:
            if c.on_host:
                found["host_bytes"] = self._keep_on_host(context, c)
            runner = Runner(context, self.request.seed)
            found["tests"] = [runner.test(t) for t in c.tests]
        counts = self.library.take_moe_cache()
        found["moe_cache"] = counts.to_json() if counts else None
        return found

    def _captured(self, c: Context) -> dict[str, Any]:
        """The routing of the same tokens, in a file."""
        from replay.llama_cpp.routing import record

        return record(self.library, self.model, c, self.request, self._made)

    def _keep_on_host(self, context: LlamaContext, c: Context) -> int:
        """Advise all managed buffers that graphs of this context use; they are those of the model,
        which stay, and the context's own, found through a callback in a twin context."""
        from replay.llama_cpp.advice import keep_on_host

        buffers: dict[int, int] = {}
        seen = Buffers(buffers)
        parameters = (C.cast(seen.callback, C.c_void_p).value or 0, 0)
        with self._made(c, callback=parameters) as twin:
            for n in (1, min(c.n_ubatch, 64)):
                Runner(twin, 0).prompt(n)
            return keep_on_host(self.library, buffers)

    # ---- the graph -----------------------------------------------------------------------------

    def census(self, n: int) -> dict[str, Any]:
        """The nodes of a graph of ``n`` tokens: ``[op, name, weight's name]`` in order."""
        seen = Census(self.library)
        c = Context((Test("pp", n),), n_ubatch=max(n, 32))
        with self._made(c, callback=seen.pointers) as context:
            Runner(context, 0).prompt(n)
        return {"tokens": n, "nodes": seen.nodes}


class Buffers:
    """Collects the buffers of all tensors that a graph reads and writes."""

    def __init__(self, found: dict[int, int]) -> None:
        from traces.capture.ggml_tensor import Tensor

        def on_node(address: int, ask: bool, _: Any) -> bool:
            if ask:
                t = Tensor.from_address(address)
                for a in (address, *(s for s in t.src if s)):
                    one = Tensor.from_address(a)
                    view = Tensor.from_address(one.view_src) if one.view_src else one
                    for buffer in (one.buffer, view.buffer):
                        if buffer:
                            found[buffer] = 0
            return not ask

        self.callback = EVAL_CALLBACK(on_node)


if __name__ == "__main__":
    main()
    os._exit(0)
