"""What a serving study is asked beside its scenario: who sends what when, and what serves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.requests.arrivals import Ramp, arrivals, fixed
from traces.requests.open import open_requests
from traces.requests.trace import RequestTrace
from uvmsim.serving.metrics import DEFAULT_METRICS
from uvmsim.serving.server import server_of

WAYS = ("auto", "stream", "whole")
BORDERS = ("static", "elastic")


@dataclass(frozen=True)
class Asked:
    """Fields as the options of ``vllm bench serve`` and of the servers, where they have such."""

    requests: str | Path | RequestTrace | None = None
    """A file (`traces.requests`); None: ``prompt_len`` and ``output_len`` for all."""
    prompt_len: int = 512
    output_len: int = 128
    num_prompts: int | None = None
    """The first so many requests; None: all of a file, 20 where there is none."""
    rates: tuple[float, ...] = ()
    """Requests/s, one run each; none given: the file's own times, or 1/s. Infinite: all at once."""
    burstiness: float = 1.0
    ramp: Ramp | None = None
    server: str = "llama-server"
    parallel: int | None = None
    """Requests at once (`uvmsim.serving.server.server_of`)."""
    batch: int | None = None
    ubatch: int | None = None
    breaks: tuple[int, ...] | None = None
    """Where prompts are cut for checkpoints, in tokens before their end; None: as llama-server does for
    the model's architecture, () nowhere."""
    max_concurrency: int | None = None
    kv: str | int | float | None = None
    """Bytes for the KV cache, instead of the scenario's ``ctx`` tokens."""
    border: str = "static"
    """``elastic``: what admitted requests leave of the KV cache's memory holds experts meanwhile."""
    warmup: bool = True
    goodput: Mapping[str, float] = field(default_factory=dict)
    """ms at most, by ``ttft``, ``tpot``, ``e2el``."""
    percentiles: tuple[float, ...] = (99.0,)
    metrics: tuple[str, ...] = DEFAULT_METRICS
    more: Sequence[object] = ()
    """Further routing traces of the same model."""
    way: str = "auto"
    """``stream``: the compiled server, for an expert cache; ``whole``: any mechanism. ``auto``: the
    first where it can."""
    format: str | None = None
    output_of_all: int | None = None
    """ShareGPT: output tokens of every request."""
    tokenizer: str | None = None
    lib: str | None = None

    def __post_init__(self) -> None:
        if self.border not in BORDERS:
            raise InputError(f"{self.border}: must be {' or '.join(BORDERS)}", argument="border")
        if self.way not in WAYS:
            raise InputError(f"{self.way}: must be one of {', '.join(WAYS)}", argument="way")
        for rate in self.rates:
            if not rate > 0:
                raise InputError(
                    f"{rate:g}: give requests a second above 0, or inf", argument="rates"
                )
        for name in ("max_concurrency", "num_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{value}: give 1 or more", argument=name)
        server_of(self.server, self.parallel, self.batch, self.ubatch)

    def trace(self, seed: int) -> RequestTrace:
        """Lengths, and times where the file has some. Raises `InputError`."""
        if self.requests is None:
            return fixed(self.num_prompts or 20, self.prompt_len, self.output_len)
        if isinstance(self.requests, RequestTrace):
            found = self.requests
            return found if self.num_prompts is None else found.first(self.num_prompts)
        return open_requests(
            self.requests, format=self.format, limit=self.num_prompts, seed=seed,
            output_len=self.output_of_all, tokenizer=self.tokenizer, lib=self.lib,
        )  # fmt: skip

    def times(self, trace: RequestTrace, seed: int) -> list[tuple[float | None, np.ndarray]]:
        """One run each: its rate (None: the file's own times), and when requests arrive."""
        rates: tuple[float | None, ...] = self.rates
        if not rates:
            rates = (None,) if trace.arrival_ns is not None else (1.0,)
        found: list[tuple[float | None, np.ndarray]] = []
        for rate in rates:
            if rate is None:
                assert trace.arrival_ns is not None
                found.append((None, trace.arrival_ns))
            else:
                drawn = arrivals(len(trace), rate, self.burstiness, seed, self.ramp)
                found.append((rate, drawn))
        return found


def told_rate(rate: float | None) -> float:
    """As `uvmsim.serving.metrics.bench` takes it: times of a file have no rate."""
    return math.inf if rate is None else rate
