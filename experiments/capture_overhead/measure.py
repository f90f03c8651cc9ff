"""What does recording cost? The same tokens, with and without capture, in turns.

Two contexts of one model run in one process: one plain, one with everything a capture does (the
callback, reading ids and scores, weights, matching rows, writing the trace). They decode the same
tokens alternately, so that whatever else the machine does hits both alike; the one that goes first
changes with every token. Reported are medians over tokens, and medians and means of the paired
differences (what is written for many tokens at once shows in the mean alone).

    python measure.py --make mid.gguf         # a random model of 3.8 GB, once
    python measure.py mid.gguf --threads 1 --threads 2
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from traces.capture.find_library import find_library
from traces.capture.libllama import Library, LlamaContext, LlamaModel
from traces.capture.llama_cpp import CaptureRun
from traces.capture.options import CaptureOptions, CaptureResult
from traces.capture.provenance import machine
from traces.capture.recording import Recording
from traces.capture.routing_callback import RoutingCallback
from traces.capture.row_order import Row
from traces.files.schema import DECODE, PREFILL, RoutingMeta
from traces.models.gguf import describe
from traces.routing import RoutingWriter

PROMPT = 512


def make(path: Path) -> None:
    """24 blocks of width 1024, 32 experts, top-4, float16, random weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from tiny_gguf import write_tiny

    write_tiny(path, "qwen3moe", layers=24, d=1024, heads=16, experts=32, used=4, ff=768, half=True)


class Pair:
    """A plain context and a recording one, on the same model."""

    def __init__(self, model: LlamaModel, path: Path, threads: int, stack: ExitStack) -> None:
        info = describe(path)
        self._callback = RoutingCallback(model.library, info.moe_layers)
        settings = {"n_ctx": 4096, "n_batch": PROMPT, "n_ubatch": PROMPT, "n_threads": threads}
        self._plain = stack.enter_context(LlamaContext(model, **settings))
        listening = stack.enter_context(
            LlamaContext(model, **settings, callback=self._callback.pointers)
        )
        out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "t.arrow"
        meta = RoutingMeta(model=info, ids_order="ranked")
        recording = stack.enter_context(Recording(RoutingWriter(out, meta, weights=True)))
        options, result = CaptureOptions(n_batch=PROMPT), CaptureResult(out, 1)
        self._run = CaptureRun(
            listening, self._callback, recording, info, options, result, progress=None
        )
        stack.callback(self._run.finish)

    def plain(self, rows: list[Row]) -> None:
        self._plain.decode(
            [r.token for r in rows],
            [r.pos for r in rows],
            [0] * len(rows),
            [r.output for r in rows],
        )

    def captured(self, rows: list[Row]) -> None:
        for _ in self._run.run(rows):
            pass


def timed(f: Callable[[list[Row]], None], rows: list[Row]) -> tuple[float, float]:
    """Milliseconds on the clock, and of processor time."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    f(rows)
    return (time.perf_counter_ns() - wall) / 1e6, (time.process_time_ns() - cpu) / 1e6


def alternate(pair: Pair, work: list[list[Row]]) -> dict[str, dict[str, float]]:
    """Run each piece of work in both ways, in alternating order; statistics in ms."""
    times = np.zeros((2, 2, len(work)))
    for i, rows in enumerate(work):
        ways = ((0, pair.plain), (1, pair.captured))
        for which, way in ways if i % 2 else ways[::-1]:
            times[:, which, i] = timed(way, rows)
    return {
        clock: {
            "plain_ms": round(float(np.median(plain)), 3),
            "captured_ms": round(float(np.median(captured)), 3),
            "paired_difference_ms": round(float(np.median(captured - plain)), 3),
            "mean_difference_ms": round(float(np.mean(captured - plain)), 3),
            "overhead": round(float(np.median(captured - plain) / np.median(plain)), 4),
        }
        for clock, (plain, captured) in zip(("wall", "cpu"), times, strict=True)
    }


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--make", "make_it", is_flag=True, help="Write the random model and stop.")
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--tokens", default=200, show_default=True, help="Tokens, after 8 to warm up.")
@click.option("--prefills", default=3, show_default=True, help="Prompts of 512 tokens.")
def main(model: Path, make_it: bool, threads: tuple[int, ...], tokens: int, prefills: int) -> None:
    """Print what capture costs on MODEL, as JSON."""
    if make_it:
        make(model)
        return
    library = Library(find_library())
    ids = np.random.default_rng(0).integers(0, 256, 4096).tolist()
    found = {"model_bytes": model.stat().st_size, "machine": machine(library=library.build)}
    with LlamaModel(library, model) as loaded:
        for n in threads:
            with ExitStack() as stack:
                pair = Pair(loaded, model, n, stack)
                at = 8 + tokens
                singles = [[Row(0, i, ids[i], DECODE, True)] for i in range(at)]
                blocks = [range(i, i + PROMPT) for i in range(at, at + prefills * PROMPT, PROMPT)]
                prompts = [[Row(0, i, ids[i], PREFILL, i == b[-1]) for i in b] for b in blocks]
                alternate(pair, singles[:8])
                found[f"decode_{n}_threads"] = alternate(pair, singles[8:])
                found[f"prefill_{PROMPT}_{n}_threads"] = alternate(pair, prompts)
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
