"""One run of a server: its load, its routing, and what the client saw."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from traces.files.schema import DECODE, PREFILL
from traces.requests.arrivals import fixed
from traces.requests.trace import RequestTrace
from traces.routing import RoutingTrace, open_routing
from traces.synth.options import make
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.llamabench.workload import bench
from uvmsim.studies.scenario import Scenario
from uvmsim.studies.serve.study import serve

BREAKS_2025, BREAKS_B11549 = (64,), (516, 4)
"""Where llama-server cuts a prompt for a checkpoint of sliding windows, in tokens before its end."""
MEAN_IN, MEAN_OUT = 232.6, 223.8
"""Tokens of a ShareGPT request as published: 23,260 in and 22,380 out of 100 prompts."""
SPREAD = 1.0
"""Sigma of the log-normal lengths."""
LEAST, MOST_IN, MOST = 4, 1024, 2048
"""Bounds of vLLM's ShareGPT sampler: tokens either way, in, and in all."""
SEQUENCE, SEQUENCES = 800, 10
ZIPF, TOPIC = 0.6, 0.625
"""Popularity; overlap within a sequence over that of neighbours."""
EACH = ("output_throughput", "mean_ttft_ms", "mean_tpot_ms")
KEPT = (
    "completed", "duration", "output_throughput", "total_input_tokens", "total_output_tokens",
    *(f"{x}_{m}_ms" for m in ("ttft", "tpot", "itl") for x in ("mean", "median", "p99")),
)  # fmt: skip

Key = tuple[str, str, float, float, int]


@dataclass(frozen=True)
class Cell:
    """What is run. ``load``: ``fixed`` (8 x 512 in, 64 out), ``long`` (640 out), ``sharegpt`` (20
    requests, drawn), ``colocation`` (100, drawn). ``routing``: ``fitted``, with the overlap
    ``stickiness``, or ``random``, that of llama-bench's tokens."""

    mechanism: str
    policy: str | None = None
    ncmoe: int | None = None
    load: str = "fixed"
    breaks: tuple[int, ...] = BREAKS_2025
    prompts: bool = True
    """False: prompts of one token, so that there is nothing but decode."""
    warmup: bool = True
    routing: str = "fitted"
    stickiness: float = 0.0
    zipf: float = ZIPF
    seed: int = 0
    model: str = "gpt-oss-120b"
    slots: int | None = None


def lengths(n: int, seed: int) -> RequestTrace:
    """``n`` requests with log-normal lengths within the sampler's bounds, whose means are the published
    ones to half a token."""
    rng = np.random.Generator(np.random.PCG64(seed))
    z = rng.standard_normal((2, n)) * SPREAD
    prompt = _scaled(z[0], MEAN_IN, np.full(n, MOST_IN))
    output = _scaled(z[1], MEAN_OUT, MOST - prompt)
    return RequestTrace(
        None, prompt.astype(np.int32), output.astype(np.int32), source=f"log-normal, seed {seed}"
    )


def _scaled(z: np.ndarray, mean: float, most: np.ndarray) -> np.ndarray:
    """exp(mu + z) within bounds, with the mu that gives the mean."""
    lo, hi = 0.0, 12.0
    for _ in range(60):
        mu = (lo + hi) / 2
        found = np.clip(np.rint(np.exp(mu + z)), LEAST, most)
        lo, hi = (mu, hi) if found.mean() < mean else (lo, mu)
    return found.astype(np.int64)


def requests_of(cell: Cell) -> tuple[RequestTrace, float]:
    """The requests, and how many a second."""
    if cell.load == "sharegpt":
        made, rate = lengths(20, cell.seed), 0.2
    elif cell.load == "colocation":
        made, rate = lengths(100, cell.seed), math.inf
    else:
        made, rate = fixed(8, 512, {"fixed": 64, "long": 640}[cell.load]), math.inf
    if not cell.prompts:
        made = RequestTrace(None, np.ones(len(made), np.int32), made.output)
    return made, rate


def key_of(cell: Cell) -> Key:
    """What a cell's routing depends on."""
    s = cell.stickiness if cell.routing == "fitted" else 0.0
    return cell.model, cell.routing, s, cell.zipf, cell.seed


def routing(key: Key) -> RoutingTrace:
    """Sequences of 800 tokens of a prompt and 800 of its answer: as ``uvmsim trace synth`` makes
    tokens, or random ones."""
    model, kind, stickiness, zipf, seed = key
    if kind == "random":
        made = bench(Model.load(model), 0, 2 * SEQUENCE, SEQUENCES, seed).trace
    else:
        made, _ = make(
            like=None, shuffle=None, bench=None, shape=model, layers=None, experts=None,
            top_k=None, zipf=zipf, stickiness=stickiness, topic=TOPIC * stickiness,
            tokens=2 * SEQUENCE * SEQUENCES, sequence=2 * SEQUENCE, seed=seed,
        )  # fmt: skip
    phase = np.where(np.asarray(made.pos) < SEQUENCE, PREFILL, DECODE).astype(np.uint8)
    return RoutingTrace(made.columns | {"phase": phase}, made.meta)


def run(cell: Cell, trace: RoutingTrace | None = None) -> dict[str, Any]:
    """What the client saw, and what moved; ``trace``: `routing` of the cell, made beforehand."""
    requests, rate = requests_of(cell)
    s = Scenario(
        trace or routing(key_of(cell)), model=cell.model, hardware="rtx5090",
        mechanisms=(cell.mechanism,),
        policies=None if cell.policy is None else (cell.policy,), ncmoe=cell.ncmoe,
        slots=() if cell.slots is None else (cell.slots,), seed=cell.seed,
        ctx=4096 if cell.load in ("sharegpt", "colocation") else None,
    )  # fmt: skip
    done = serve(
        s, requests=requests, rates=(rate,), max_concurrency=1, breaks=cell.breaks,
        warmup=cell.warmup, way="whole",
    ).runs[0]  # fmt: skip
    if done.record is None:
        raise SystemExit(f"{cell}: {done.does_not_fit}")
    row = {k: done.record[k] for k in KEPT}
    for name, cost in done.costs.items():
        row |= {
            f"{name}_passes": cost.passes,
            f"{name}_gb": cost.bytes_h2d / 1e9,
            f"{name}_hit_rate": None if cost.accesses is None else (cost.hits or 0) / cost.accesses,
        }
    return row


@lru_cache(maxsize=2)
def _opened(path: str) -> RoutingTrace:
    return open_routing(path)


def _write(key: Key, path: str) -> None:
    routing(key).save(path)


def _run(cell: Cell, path: str) -> dict[str, Any]:
    return run(cell, _opened(path))


def run_all(cells: Sequence[Cell], workers: int = 2) -> list[dict[str, Any]]:
    """`run` of each in worker processes; each routing is made once."""
    keys = sorted({key_of(c) for c in cells})
    order = sorted(range(len(cells)), key=lambda i: key_of(cells[i]))
    rows: list[dict[str, Any]] = [{}] * len(cells)
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        paths = {key: f"{folder}/{i}.arrow" for i, key in enumerate(keys)}
        list(pool.map(_write, paths.keys(), paths.values()))
        todo = [cells[i] for i in order]
        found = pool.map(_run, todo, [paths[key_of(c)] for c in todo])
        for n, (i, row) in enumerate(zip(order, found, strict=True), 1):
            rows[i] = row
            print(f"{n}/{len(cells)} {cells[i]}", file=sys.stderr, flush=True)
    return rows


def slots_at(share: float, model: str = "gpt-oss-120b") -> int:
    """Experts that ``share`` of the card's memory holds."""
    return int(share * Hardware.load("rtx5090").free_bytes // max(Model.load(model).expert_bytes))


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of every number over seeds; None where one is None."""
    return {
        k: None if any(r[k] is None for r in rows) else float(np.mean([r[k] for r in rows]))
        for k in rows[0]
    }
