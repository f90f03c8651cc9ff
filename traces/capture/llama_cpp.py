"""Record the expert routing of a real llama.cpp run, in process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from traces.capture.find_library import LibraryFile, find_library, preload_environment
from traces.capture.gate_scores import GateScores
from traces.capture.libllama import Library, LlamaContext, LlamaModel
from traces.capture.options import CaptureOptions, CaptureResult, Prompt, check_options
from traces.capture.provenance import machine, prompt_source, tool
from traces.capture.recording import Recording
from traces.capture.router_weights import WeightRule
from traces.capture.routing_callback import MicroBatch, RoutingCallback
from traces.capture.row_order import Row, RowMatcher
from traces.capture.sampling import Sampler
from traces.errors import InputError
from traces.files.schema import DECODE, PREDICTORS, PREFILL, RoutingMeta, guess_width
from traces.models.gguf import describe
from traces.models.info import ModelInfo
from traces.routing import RoutingWriter


def capture(
    model_path: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    options: CaptureOptions | None = None,
    *,
    library: str | Path | None = None,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> CaptureResult:
    """Run the model on the prompts and write the routing trace ``out``.

    Every prompt is prefilled, then all sequences generate in step, one token each a step, until
    ``n_predict`` tokens or an end-of-generation token. ``library`` as for `find_library`.
    ``progress`` is called with (phase, done, total) in tokens. A run that is broken off leaves
    ``out`` + ``.partial``, readable, with what was recorded until then.

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
    with ExitStack() as stack:
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
        asked = options.predictors
        gates = GateScores(lib, model_path, info, asked) if asked else None
        callback = RoutingCallback(lib, info.moe_layers, watcher=gates)
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
        writer = RoutingWriter(
            out,
            meta,
            weights=True,
            scores=options.scores,
            tokens=options.tokens,
            predictors=asked,
        )
        result = CaptureResult(out, len(prompts), notes=notes)
        with Recording(writer) as recording:
            run = CaptureRun(context, callback, recording, info, options, result, progress)
            run.prefill(ids)
            run.generate()
    result.notes += gates.notes if gates else []
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
    ) -> None:
        self.result = result
        self._context, self._callback, self._recording = context, callback, recording
        self._info, self._options, self._progress = info, options, progress
        self._next: dict[int, tuple[int, int]] = {}  # sequence -> (position, token) to run next
        self._samplers: dict[int, Sampler] = {}
        self._banned = self._end_tokens() if options.ignore_eos else None

    def _end_tokens(self) -> np.ndarray:
        model = self._context.model
        return np.array([t for t in range(model.n_vocab) if model.ends_generation(t)], np.int64)

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
        """Run rows in batches; yields each batch while its logits are there."""
        n = self._options.n_batch
        for at in range(0, len(rows), n):
            batch = rows[at : at + n]
            try:
                self._context.decode(
                    [r.token for r in batch],
                    [r.pos for r in batch],
                    [r.seq for r in batch],
                    [r.output for r in batch],
                )
            finally:
                micro_batches = self._callback.drain()
            matcher = RowMatcher(batch)
            for micro in micro_batches:
                self._write(matcher.match(micro.tokens, micro.pos), micro)
            if matcher.left:
                raise InputError(
                    f"llama.cpp ran {len(batch) - matcher.left} of {len(batch)} tokens without "
                    "calling back; use the library of the capture extra"
                )
            yield batch

    def _write(self, rows: list[Row], micro: MicroBatch) -> None:
        """One step: the micro-batch's rows, layer by layer."""
        layers, n = self._info.moe_layers, len(rows)
        k, n_experts = self._info.top_k, self._info.n_experts
        experts = np.full((len(layers), n, k), -1, np.int32)
        weights = np.full((len(layers), n, k), np.nan, np.float32)
        scores = None
        if self._options.scores:
            scores = np.full((len(layers), n, n_experts), np.nan, np.float32)
        outputs = np.array([r.output for r in rows])
        alike: dict[WeightRule, list[tuple[int, np.ndarray]]] = {}
        for i, il in enumerate(layers):
            routing = micro.layers.get(il)
            if routing is None:
                continue
            where = _rows_present(len(routing.experts), outputs, il)
            experts[i, where] = routing.experts
            if scores is not None and routing.scores is not None:
                scores[i, where] = routing.scores
            if routing.probs is None:
                continue
            rule = self._callback.rules.get(il, WeightRule())
            if len(routing.experts) == n:
                alike.setdefault(rule, []).append((i, routing.probs))
            else:
                weights[i, where] = rule.weights(routing.probs, routing.experts)
        for rule, found in alike.items():  # together: NumPy's calls cost more than its arithmetic
            which = [i for i, _ in found]
            weights[which] = rule.weights(np.stack([p for _, p in found]), experts[which])
        guesses = self._guesses(micro, outputs)
        self.result.rows += experts.shape[0] * n
        self.result.missing_rows += int((experts[:, :, 0] < 0).sum())
        columns = np.array([(r.seq, r.pos, r.phase, r.token) for r in rows], np.int32).T
        seq, pos, phase, token = (np.tile(c, len(layers)) for c in columns)
        self._recording.append(
            seq=seq,
            pos=pos,
            step=self.result.steps,
            phase=phase,
            layer=np.repeat(layers, n),
            experts=experts.reshape(-1, k),
            weights=weights.reshape(-1, k),
            scores=None if scores is None else scores.reshape(-1, n_experts),
            token=token if self._options.tokens else None,
            **guesses,
        )
        self.result.steps += 1

    def _guesses(self, micro: MicroBatch, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """The predictors' columns of a step; rows without a guess are -1 and NaN."""
        layers = self._info.moe_layers
        shape = (len(layers), len(outputs), guess_width(self._info.top_k, self._info.n_experts))
        columns: dict[str, np.ndarray] = {}
        for name in self._options.predictors:
            ids = np.full(shape, -1, np.int16)
            scores = np.full(shape, np.nan, np.float16)
            for i, il in enumerate(layers):
                if (name, il) in micro.guesses:
                    found = micro.guesses[name, il]
                    where = _rows_present(len(found[0]), outputs, il)
                    ids[i, where], scores[i, where] = found
            columns[f"{name}_ids"] = ids.reshape(-1, shape[2])
            columns[f"{name}_scores"] = scores.reshape(-1, shape[2])
        return columns

    def _report(self, phase: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(phase, done, total)


def _rows_present(n: int, outputs: np.ndarray, layer: int) -> slice | np.ndarray:
    """Which of the micro-batch's rows a layer computed: all, or those that need logits."""
    if n == len(outputs):
        return slice(None)
    where = np.flatnonzero(outputs)
    if n != len(where):
        raise InputError(
            f"layer {layer} routed {n} of {len(outputs)} rows, and {len(where)} ask for logits: "
            "this build drops rows in an unknown way; use the library of the capture extra"
        )
    return where


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
