"""Run the calibration's models and put what was timed beside what it consisted of."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from replay.llama_cpp import design
from replay.llama_cpp.count import Routing, chunks, micro_batch
from replay.llama_cpp.process import run
from replay.llama_cpp.request import Context, Request, Test
from replay.llama_cpp.synthetic import write
from traces.errors import InputError
from traces.routing import open_routing
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.timing import GRAPH_AFTER, managed, remote

Progress = Callable[[int, int, str], None]
UNTIMED = {"managed": managed, "remote": remote}


@dataclass
class Equation:
    """One timed test: ``counts`` of its terms, and nanoseconds (the median repetition)."""

    name: str
    mode: str
    test: str
    counts: dict[str, float]
    ns: float
    spread: tuple[float, float]
    """Fastest and slowest repetition over the median."""
    kernels: int = 0
    """Launched without a CUDA graph."""

    @property
    def key(self) -> str:
        """Unique among the equations of a calibration."""
        cached = f" {self.counts.get('upload', 0):.0f} uploads" if self.mode == "cache" else ""
        return f"{self.name} {self.mode} {self.test}{cached}"

    @property
    def row(self) -> bool:
        """Tokens one by one."""
        return self.test.startswith("tg")


@dataclass
class Collected:
    """Everything a calibration measured."""

    equations: list[Equation] = field(default_factory=list)
    build: str = ""
    gpu: bool = False
    flash: bool = True
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def collect(
    library: str | None,
    *,
    gpu: bool,
    threads: int | None,
    quick: bool = False,
    model: str | None = None,
    synthetic: bool = True,
    deadline_s: float = 200.0,
    progress: Progress | None = None,
) -> Collected:
    """Write each model, run it in all its modes, count it.

    ``model``: a GGUF of the user's, run last; without ``synthetic`` the only one. A run that fails is
    named in ``errors`` and the others go on; none begins after ``deadline_s``. Raises `InputError`
    where nothing could be run.
    """
    shapes = design.GPU_SHAPES if gpu else design.QUICK_SHAPES if quick else design.CPU_SHAPES
    if not synthetic:
        shapes = {}
    found = Collected(gpu=gpu)
    begin = time.monotonic()
    names = [*shapes, *(["model"] if model else [])]
    with tempfile.TemporaryDirectory(prefix="uvmsim-") as folder:
        for i, name in enumerate(names):
            if progress:
                progress(i, len(names), name)
            late = time.monotonic() - begin > deadline_s
            if late and name != "model":
                found.errors[name] = "left out: no time"
                continue
            start = time.monotonic()
            path = Path(model) if name == "model" and model else Path(folder) / f"{name}.gguf"
            if name != "model":
                write(path, shapes[name])
            one = _One(found, name, path, library, gpu, threads, Path(folder), quick)
            runs = design.gpu_runs(name) if gpu else design.cpu_runs(quick)
            one.run(runs if name != "model" else design.model_runs(gpu), shapes.get(name))
            if i == 0 and name != "model" and not quick:  # a machine is slow at first: once more
                found.equations.clear()
                one.run(runs, shapes.get(name))
            if name != "model":
                path.unlink()
            found.seconds[name] = round(time.monotonic() - start, 2)
    if progress:
        progress(len(names), len(names), "")
    if not found.equations:
        why = next(iter(found.errors.values()), "nothing ran")
        raise InputError(f"llama.cpp could not be calibrated: {why}")
    return found


class _One:
    """One model in its modes."""

    def __init__(
        self, found: Collected, name: str, path: Path, library: str | None, gpu: bool,
        threads: int | None, folder: Path, quick: bool,
    ) -> None:  # fmt: skip
        self.found, self.name, self.path, self.library = found, name, path, library
        self.gpu, self.threads, self.folder, self.quick = gpu, threads, folder, quick
        self.model = LlamaModel.load(path)
        self.routing: dict[tuple[int, int], list[Routing]] = {}
        """By tokens and micro-batch of a prompt: the routing of each of its micro-batches."""

    def run(self, runs: list[design.Run], shape: Any) -> None:
        """All runs; the first finds out the routing of every prompt, which the others share."""
        prompts: dict[int, set[int]] = {}
        for what in runs:
            for _, c in what.contexts:
                for t in c.tests:
                    if t.kind == "pp":
                        prompts.setdefault(c.n_ubatch, set()).add(t.n)
        for number, what in enumerate(runs):
            contexts = [
                (mode, replace(c, moe_cache_mib=design.cache_mib(shape, -c.moe_cache_mib))
                 if c.moe_cache_mib < 0 else c)
                for mode, c in what.contexts
            ]  # fmt: skip
            captures = self._captures(prompts) if number == 0 else []
            answer = run(self._request(what, [c for _, c in contexts] + captures), seconds=90)
            self.found.build = answer.get("build", self.found.build)
            if answer["status"] != "ok":
                self.found.errors[f"{self.name} {contexts[0][0]}"] = answer["why"]
            if census := answer.get("census"):
                self.found.flash = any(node[0] == "FLASH_ATTN_EXT" for node in census[0]["nodes"])
            done = answer["contexts"]
            for c, marked in zip(captures, done[len(contexts) :], strict=False):
                self._learn(c, marked)
            for (mode, c), timed in zip(contexts, done, strict=False):
                self._equations(what, mode, c, timed)

    def _captures(self, prompts: dict[int, set[int]]) -> list[Context]:
        return [
            Context(
                tuple(Test("pp", n, reps=1) for n in sorted(sizes)), n_ubatch=ubatch,
                trace=str(self.folder / f"{self.name}-{ubatch}.arrow"), exact=False,
            )
            for ubatch, sizes in prompts.items()
        ]  # fmt: skip

    def _request(self, what: design.Run, contexts: list[Context]) -> Request:
        return Request(
            self.library, str(self.path), tuple(contexts),
            n_gpu_layers=999 if self.gpu else 0,
            n_cpu_moe=self.model.n_layers if what.offload else 0,
            no_mmap=what.no_mmap, unified=what.unified, threads=self.threads,
            census=() if what.offload or what.unified else (1,),
            environment={"OMP_WAIT_POLICY": "passive"} if self.quick else {},
        )  # fmt: skip

    def _learn(self, c: Context, marked: dict[str, Any]) -> None:
        trace = open_routing(str(c.trace))
        step, layer = np.asarray(trace.step), np.asarray(trace.layer)
        experts = np.asarray(trace.experts)
        layers = sorted(set(layer.tolist()))
        for test, rep, first, n in marked["marks"]:
            if rep != 0:
                continue
            self.routing[c.tests[test].n, c.n_ubatch] = [
                [
                    np.bincount(e[e >= 0], minlength=self.model.n_expert)
                    for e in (experts[(step == first + k) & (layer == i)].ravel() for i in layers)
                ]
                for k in range(n)
            ]
        del trace
        Path(str(c.trace)).unlink(missing_ok=True)

    def _equations(self, what: design.Run, mode: str, c: Context, done: dict[str, Any]) -> None:
        config = LlamaConfig(
            n_cpu_moe=self.model.n_layers if what.offload else 0,
            n_ctx=c.context_tokens(), n_batch=max(c.n_batch, c.n_ubatch), n_ubatch=c.n_ubatch,
            moe_cache_mib=c.moe_cache_mib, mmap=not what.no_mmap, gpu=self.gpu,
            flash_kernels=self.found.flash,
        )  # fmt: skip
        for test, timed in zip(c.tests, done.get("tests", ()), strict=True):
            ns = np.array(timed["ns"], np.float64)
            counts, kernels = self._counts(mode, c, config, test, done)
            if counts is None or not len(ns):
                continue
            steady = ns[min(GRAPH_AFTER, len(ns) - 1) :] if test.kind == "pp" else ns
            middle = float(np.median(steady))
            self.found.equations.append(Equation(
                self.name, mode, f"{test.name}@{c.n_ubatch}", dict(counts), middle,
                (float(steady.min() / middle), float(steady.max() / middle)), kernels,
            ))  # fmt: skip

    def _counts(
        self, mode: str, c: Context, config: LlamaConfig, test: Test, done: dict[str, Any]
    ) -> tuple[Counter[str] | None, int]:
        variant = UNTIMED.get(mode)
        total: Counter[str] = Counter()
        if test.kind == "tg":
            for i in range(test.n):
                one, _ = micro_batch(self.model, config, 1, test.depth + i + 1, variant=variant)
                total.update(one)
            if mode == design.CACHE:
                total.update(_uploads(done, test, self.model))
            return total, 0
        routing = self.routing.get((test.n, c.n_ubatch))
        if routing is None:
            return None, 0
        kernels = 0
        for (n, n_kv), used in zip(chunks(test.n, c.n_ubatch), routing, strict=True):
            counts, launched = micro_batch(self.model, config, n, n_kv, used, variant=variant)
            total.update(counts)
            kernels += launched
        return total, 0 if test.n <= c.n_ubatch else kernels


def _uploads(done: dict[str, Any], test: Test, model: LlamaModel) -> dict[str, float]:
    """Copies and bytes of one repetition, from llama.cpp's own count of misses."""
    counts = done.get("moe_cache") or {}
    tokens = test.reps * test.n + min(test.n, 8)
    misses = counts.get("misses", 0) * test.n / tokens
    matrices = sum(f"blk.0.ffn_{n}_exps.weight" in model.by_name for n in ("gate", "up", "down"))
    nbytes = counts.get("uploaded_mib", 0.0) * (1 << 20) * test.n / tokens
    return {"upload": misses * matrices, "pinned": nbytes}
