"""Record the expert routing of a real llama.cpp run, in process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from traces.capture import cuda_driver
from traces.capture.beside import check_beside, managed_memory, recorded_faults, send_away
from traces.capture.find_library import LibraryFile, find_library, preload_environment
from traces.capture.gate_scores import GateScores
from traces.capture.libllama import Library, LlamaContext, LlamaModel
from traces.capture.options import CaptureOptions, CaptureResult, Prompt, check_options
from traces.capture.provenance import machine, prompt_source, tool
from traces.capture.recording import Recording
from traces.capture.routing_callback import MicroBatch, RoutingCallback
from traces.capture.row_order import Row, RowMatcher
from traces.capture.sampling import Sampler
from traces.capture.steps import StepWriter
from traces.capture.tracers import CUPTI, chosen
from traces.errors import InputError
from traces.files.schema import DECODE, PREDICTORS, PREFILL, RoutingMeta
from traces.models.gguf import describe
from traces.models.info import ModelInfo
from traces.routing import RoutingWriter

TOGETHER = 32
"""Batches whose routing is written together."""
WAIT_NS = 500_000_000
"""... or what came in this time: so much of a run may be lost when it is killed, and the time
between two flushes (`traces.capture.recording`)."""


def capture(
    model_path: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    options: CaptureOptions | None = None,
    *,
    library: str | Path | None = None,
    faults: str | Path | None = None,
    tracer: str = "cupti",
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> CaptureResult:
    """Run the model on the prompts and write the routing trace ``out``.

    Every prompt is prefilled, then all sequences generate in step, one token each a step, until
    ``n_predict`` tokens or an end-of-generation token. ``library`` as for `find_library`.
    ``progress`` is called with (phase, done, total) in tokens. A run that is broken off leaves
    ``out`` + ``.partial``, readable, with what was recorded until then.

    ``faults``: where to write the page faults and migrations of the same run, by ``tracer``; the
    model is in managed memory then, and both traces have one time axis: steps get times, counted
    from the same moment. No CUDA call may have been made in this process before. ``tracer``: one of
    `traces.capture.tracers.TRACERS`.

    Raises `InputError` where the model, the prompt, the library or an option cannot be used.
    """
    options, out = options or CaptureOptions(), Path(out)
    check_options(options, prompts, out)
    info = describe(model_path)
    file = find_library(library)
    if preload_environment(file) is not None:
        raise InputError(
            f"{file.path.name} is a CUDA build, which crashes beside NumPy unless the C++ run-time "
            "library is preloaded: start Python with LD_PRELOAD=libstdc++.so.6"
        )
    fault_path = None if faults is None else Path(faults)
    check_beside(options, file, out, fault_path)
    result = CaptureResult(out, len(prompts))
    with ExitStack() as stack:
        managed = options.unified_memory or fault_path is not None
        stack.enter_context(managed_memory(managed))
        if fault_path is not None:
            tracer = chosen(tracer)
        beside = stack.enter_context(recorded_faults(fault_path, out, command, result, tracer))
        # The recording of faults is the outermost: loading the model is in it.
        if options.vram_left_mib:
            cuda_driver.occupy(options.vram_left_mib << 20)
        lib = Library(file)
        model = stack.enter_context(
            LlamaModel(
                lib,
                model_path,
                n_gpu_layers=options.n_gpu_layers,
                n_cpu_moe=options.n_cpu_moe,
                no_mmap=options.no_mmap,
            )
        )
        ids = [_tokens_of(p, model) for p in prompts]
        n_ctx, notes = _context_size(ids, options, model)
        result.notes += notes
        asked = options.predictors
        gates = GateScores(lib, model_path, info, asked) if asked else None
        callback = RoutingCallback(
            lib,
            info.moe_layers,
            scores=options.scores,
            stop_at_layers=options.stops == "layer",
            tensors=beside is not None,
            watcher=gates,
        )
        context = stack.enter_context(
            LlamaContext(
                model,
                n_ctx=n_ctx,
                n_batch=options.n_batch,
                n_ubatch=min(options.n_ubatch, options.n_batch),
                n_seq=len(prompts),
                n_threads=options.threads,
                callback=callback.pointers,
                moe_cache_bytes=options.moe_cache_mib << 20,
            )
        )
        meta = _meta(info, prompts, options, file, lib.build, command, n_ctx)
        origin_ns = None
        if beside is not None and fault_path is not None:
            origin_ns = beside.clock.origin_monotonic_ns
            shared = {
                "clock": "CUPTI" if tracer == CUPTI else "driver",
                "origin_ns": beside.origin_ns,
                "faults": fault_path.name,
            }
            meta.extra["time"] = shared
        elif options.times:
            origin_ns = time.monotonic_ns()
            meta.extra["time"] = {"clock": "CLOCK_MONOTONIC", "origin_ns": origin_ns}
        timed = origin_ns is not None
        writer = RoutingWriter(
            out,
            meta,
            weights=True,
            scores=options.scores,
            tokens=options.tokens,
            times=timed,
            durations=timed,
            predictors=asked,
        )
        with Recording(writer) as recording:
            run = CaptureRun(
                context, callback, recording, info, options, result, progress, origin_ns=origin_ns
            )
            if options.warm_up or options.cold:
                run.warm_up(ids[0])
            if options.cold:
                send_away(beside, result)
            try:
                run.prefill(ids)
                run.generate()
            except BaseException:
                with suppress(Exception):  # what was routed until then is kept, as far as it goes
                    run.finish()
                raise
            run.finish()
            if beside is not None:
                beside.look()
        result.notes += gates.notes if gates else []
        if beside is not None:
            beside.remarks = {
                "tensors": callback.tensors,
                "capture_memory": callback.kept_memory,
            }
    counts = lib.take_moe_cache()
    result.moe_cache = counts.to_json() if counts else None
    result.file_bytes = out.stat().st_size
    return result


class CaptureRun:
    """One capture in progress."""

    def __init__(
        self,
        context: LlamaContext,
        callback: RoutingCallback,
        recording: Recording,
        info: ModelInfo,
        options: CaptureOptions,
        result: CaptureResult,
        progress: Callable[[str, int, int], None] | None,
        *,
        origin_ns: int | None = None,
    ) -> None:
        """``origin_ns``: steps get times, counted from there on CLOCK_MONOTONIC."""
        self.result = result
        self._context, self._callback = context, callback
        self._options, self._progress = options, progress
        self._waiting: list[list[Row]] = []
        self._settled = time.monotonic_ns()
        self._steps = StepWriter(recording, info, options, result, origin_ns=origin_ns)
        self._next: dict[int, tuple[int, int]] = {}  # sequence -> (position, token) to run next
        self._samplers: dict[int, Sampler] = {}
        self._banned = self._end_tokens() if options.ignore_eos else None

    def _end_tokens(self) -> np.ndarray:
        model = self._context.model
        return np.array([t for t in range(model.n_vocab) if model.ends_generation(t)], np.int64)

    def warm_up(self, tokens: list[int]) -> None:
        """Run ``tokens``, and one more where some are generated, and forget them."""
        self._callback.need_positions(False)
        whole = tokens[: self._options.n_batch]
        after = [(tokens[:1], len(whole))] if self._options.n_predict else []
        for part, first in ((whole, 0), *after):
            n = len(part)
            outputs = [i + 1 == n for i in range(n)]
            self._context.decode(part, [first + i for i in range(n)], [0] * n, outputs)
            self._callback.finish_graph()
        self._callback.drain()
        self._context.forget()

    def prefill(self, prompts: list[list[int]]) -> None:
        """Run all prompts, in batches of ``n_batch`` tokens."""
        start = time.monotonic_ns()
        o, rows = self._options, []
        for seq, tokens in enumerate(prompts):
            self._samplers[seq] = Sampler(
                seed=o.seed, seq=seq, temperature=o.temperature, top_k=o.top_k
            )
            last = len(tokens) - 1
            rows += [
                Row(seq, pos, token, PREFILL, o.all_outputs or pos == last)
                for pos, token in enumerate(tokens)
            ]
        ends = {seq: len(tokens) - 1 for seq, tokens in enumerate(prompts)}
        for done in self.run(rows):
            for i, row in enumerate(done):
                if row.pos == ends[row.seq] and o.n_predict:
                    self._sample(row, i)
            self.result.prompt_tokens += len(done)
            self._report("prefill", self.result.prompt_tokens, len(rows))
        self.result.prefill_ns = time.monotonic_ns() - start

    def generate(self) -> None:
        """Generate until every sequence has ended."""
        start = time.monotonic_ns()
        o = self._options
        for step in range(o.n_predict):
            rows = [Row(s, pos, token, DECODE, True) for s, (pos, token) in self._next.items()]
            if not rows:
                break
            self._next = {}
            for done in self.run(rows):
                if step + 1 < o.n_predict:
                    for i, row in enumerate(done):
                        self._sample(row, i)
                self.result.generated_tokens += len(done)
            self._report("decode", step + 1, o.n_predict)
        self.result.decode_ns = time.monotonic_ns() - start

    def _sample(self, row: Row, i: int) -> None:
        token = self._samplers[row.seq].next(self._context.logits(i), self._banned)
        if self._banned is not None or not self._context.model.ends_generation(token):
            self._next[row.seq] = (row.pos + 1, token)

    def run(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Run rows in batches; yields each batch while its logits are there. What was routed is
        written some time later, with that of other batches; `finish` writes what is left."""
        n = self._options.n_batch
        for at in range(0, len(rows), n):
            batch = rows[at : at + n]
            self._callback.need_positions(any(r.seq != batch[0].seq for r in batch))
            try:
                self._context.decode(
                    [r.token for r in batch],
                    [r.pos for r in batch],
                    [r.seq for r in batch],
                    [r.output for r in batch],
                )
            finally:
                self._callback.finish_graph()
                if self._callback.failed:
                    self._callback.drain()
            self._waiting.append(batch)
            if len(self._waiting) >= TOGETHER or time.monotonic_ns() - self._settled > WAIT_NS:
                self.finish()
            yield batch

    def finish(self) -> None:
        """Write what was routed so far."""
        waiting, self._waiting = self._waiting, []
        shown = iter(self._callback.drain())
        steps: list[tuple[list[Row], MicroBatch]] = []
        for batch in waiting:
            matcher = RowMatcher(batch)
            while matcher.left:
                micro = next(shown, None)
                if micro is None:
                    raise InputError(
                        f"llama.cpp ran {len(batch) - matcher.left} of {len(batch)} tokens without "
                        "calling back; use the library of the capture extra"
                    )
                steps.append((matcher.match(micro.tokens, micro.pos), micro))
        self._steps.add(steps)
        self._settled = time.monotonic_ns()

    def _report(self, phase: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(phase, done, total)


def _tokens_of(prompt: Prompt, model: LlamaModel) -> list[int]:
    ids = list(prompt.tokens) or model.tokenize(prompt.text)
    if not ids:
        raise InputError(f"prompt {prompt.source}: empty; give it some text")
    wrong = [t for t in ids if not 0 <= t < model.n_vocab]
    if wrong:
        raise InputError(
            f"prompt {prompt.source}: token {wrong[0]} is outside the vocabulary of {model.n_vocab}"
        )
    return ids


def _context_size(
    ids: list[list[int]], options: CaptureOptions, model: LlamaModel
) -> tuple[int, list[str]]:
    """Context of all sequences together (llama.cpp shares it out evenly), and remarks."""
    longest = max(len(x) for x in ids) + options.n_predict
    needed = -(-longest // 256) * 256 * len(ids)
    if options.n_ctx is not None and options.n_ctx // len(ids) < longest:
        raise InputError(
            f"--n-ctx {options.n_ctx}: {len(ids)} sequence(s) of up to {longest} tokens need "
            f"{needed}; raise it, leave it out, or shorten the prompt"
        )
    notes = []
    if longest > model.n_ctx_train > 0:
        notes.append(
            f"{longest} positions exceed the {model.n_ctx_train} the model was trained for; "
            "routing beyond them means little"
        )
    return options.n_ctx or needed, notes


def _meta(
    info: ModelInfo,
    prompts: Sequence[Prompt],
    options: CaptureOptions,
    file: LibraryFile,
    build: str,
    command: str,
    n_ctx: int,
) -> RoutingMeta:
    asked = options.predictors
    return RoutingMeta(
        model=info,
        ids_order="ranked",
        tool=f"{tool()}, capture llama-cpp",
        command=command,
        prompt_source=prompt_source(prompts),
        machine=machine(library=file.path.name, library_build=build),
        extra={
            "options": {n: getattr(options, n) for n in options.__dataclass_fields__},
            "n_ctx": n_ctx,
            "sequences": len(prompts),
        }
        | ({"predictors": {name: PREDICTORS[name] for name in asked}} if asked else {}),
    )
