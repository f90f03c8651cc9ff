"""The routing of exactly the tokens that a worker times, so that a prediction can be made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replay.llama_cpp.request import Context, Request, Test
from replay.llama_cpp.tokens import Runner
from traces.capture.libllama import Library, LlamaModel
from traces.capture.llama_cpp import CaptureRun
from traces.capture.options import CaptureOptions, CaptureResult
from traces.capture.provenance import machine, tool
from traces.capture.recording import Recording
from traces.capture.routing_callback import RoutingCallback
from traces.capture.row_order import Row
from traces.files.schema import DECODE, PREFILL, RoutingMeta
from traces.models.gguf import describe
from traces.routing import RoutingWriter


def record(
    library: Library, model: LlamaModel, c: Context, request: Request, make: Any
) -> dict[str, Any]:
    """Run the tests of a context with capture and write ``c.trace``.

    ``marks``: for each repetition of each test ``[test, repetition, first step, steps]``; -1 is the
    untimed one, and what fills the context before a test has no mark.
    """
    assert c.trace is not None
    info = describe(request.model)
    callback = RoutingCallback(library, info.moe_layers, compiled=c.exact)
    meta = RoutingMeta(
        model=info, ids_order="ranked", tool=f"{tool()}, random tokens as in llama-bench",
        machine=machine(library_build=library.build),
        extra={"seed": request.seed, "n_ubatch": c.n_ubatch},
    )  # fmt: skip
    path = Path(c.trace)
    options = CaptureOptions(n_batch=max(c.n_batch, c.n_ubatch))
    result = CaptureResult(path, 1)
    marks: list[list[int]] = []
    with (
        make(c, callback=callback.pointers) as context,
        Recording(RoutingWriter(path, meta, weights=True)) as recording,
    ):
        runner = Runner(context, request.seed)
        run = CaptureRun(context, callback, recording, info, options, result, None)

        def through(rows: list[Row]) -> None:
            for _ in run.run(rows):
                pass

        def prompt(n: int, salt: int) -> None:
            runner.c.llama_memory_clear(runner.memory, False)
            ids = runner.tokens(n, salt).tolist()
            through([Row(0, i, t, PREFILL, i == n - 1) for i, t in enumerate(ids)])

        def one(t: Test, rep: int) -> None:
            if t.kind == "pp":
                prompt(t.n, rep + 1)
                return
            runner.c.llama_memory_seq_rm(runner.memory, 0, t.depth, -1)
            n = t.n if rep >= 0 else min(t.n, 8)
            for i, token in enumerate(runner.tokens(n, 1000 + rep).tolist()):
                through([Row(0, t.depth + i, token, DECODE, True)])

        for at, t in enumerate(c.tests):
            if t.kind == "tg" and t.depth:
                prompt(t.depth, 0)
                run.finish()
            for rep in range(-1, t.reps):
                before = result.steps
                one(t, rep)
                run.finish()
                marks.append([at, rep, before, result.steps - before])
    return {"trace": path.name, "marks": marks, "rows": result.rows}
