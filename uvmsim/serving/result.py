"""Metrics of a run as ``vllm bench serve`` writes them: its lines, and the keys of its JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traces.requests.arrivals import Ramp
from uvmsim.serving.answered import Answered

WIDTH = 50
HEADINGS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": (
        "E2EL incl. Client Queue",
        "Queue-inclusive End-to-end Latency",
    ),
}
METRICS = tuple(HEADINGS)
"""Names of ``--percentile-metrics``, in the order in which they are printed."""


@dataclass(frozen=True)
class Spread:
    """One metric over all its values, in ms; 0 where there are none."""

    mean: float
    median: float
    std: float
    percentiles: tuple[tuple[float, float], ...]
    """(percentile, ms), as asked for."""


@dataclass(frozen=True)
class Bench:
    """The metrics of a run."""

    rate: float
    burstiness: float
    max_concurrency: int | None
    duration: float
    """Seconds from the start of the clock to the end of the last request."""
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    request_goodput: float | None
    """Requests/s that met every objective; None where none was set."""
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    """The metrics that were asked for, by name, in the order of `METRICS`."""

    def text(self) -> str:
        """The lines, character for character, without a last line end."""
        lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
        lines.append(_count("Successful requests:", self.completed))
        lines.append(_count("Failed requests:", self.failed))
        if self.max_concurrency is not None:
            lines.append(_count("Maximum request concurrency:", self.max_concurrency))
        if not math.isinf(self.rate):
            lines.append(_value("Request rate configured (RPS):", self.rate))
        lines.append(_value("Benchmark duration (s):", self.duration))
        lines.append(_count("Total input tokens:", self.total_input_tokens))
        lines.append(_count("Total generated tokens:", self.total_output_tokens))
        lines.append(_value("Request throughput (req/s):", self.request_throughput))
        if self.request_goodput is not None:
            lines.append(_value("Request goodput (req/s):", self.request_goodput))
        lines.append(_value("Output token throughput (tok/s):", self.output_throughput))
        lines.append(_value("Peak output token throughput (tok/s):", self.max_output_tokens_per_s))
        lines.append(_value("Peak concurrent requests:", self.max_concurrent_requests))
        lines.append(_value("Total token throughput (tok/s):", self.total_token_throughput))
        for metric, spread in self.spreads.items():
            name, heading = HEADINGS[metric]
            lines.append(f"{heading:-^{WIDTH}}")
            lines.append(_value(f"Mean {name} (ms):", spread.mean))
            lines.append(_value(f"Median {name} (ms):", spread.median))
            lines += [_value(f"P{_word(p)} {name} (ms):", ms) for p, ms in spread.percentiles]
        lines.append("=" * WIDTH)
        return "\n".join(lines)

    def record(
        self,
        *,
        date: str | None = None,
        backend: str = "uvmsim",
        label: str | None = None,
        model_id: str | None = None,
        tokenizer_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ramp: Ramp | None = None,
        detailed: Answered | None = None,
    ) -> dict[str, Any]:
        """The keys of vLLM's result file, in its order, ready for JSON.

        ``date``: its ``%Y%m%d-%H%M%S``; None keeps the file the same from run to run. ``metadata``:
        keys that ``--metadata`` would add. ``ramp``: by which requests arrived, where by one.
        ``detailed``: what the metrics were made of, which adds the lists of ``--save-detailed``; a
        failed request has zeros in them.
        """
        count = self.completed + self.failed
        out: dict[str, Any] = {
            "date": date,
            "endpoint_type": backend,
            "backend": backend,
            "label": label,
            "model_id": model_id,
            "tokenizer_id": tokenizer_id,
            "num_prompts": count,
        }
        out |= metadata or {}
        out["request_rate"] = "inf" if math.isinf(self.rate) else self.rate
        # JSON has no infinity; the rate's word is used for this one too.
        out["burstiness"] = "inf" if math.isinf(self.burstiness) else self.burstiness
        out["max_concurrency"] = self.max_concurrency
        if ramp is not None:
            out["ramp_up_strategy"] = ramp.strategy
            out["ramp_up_start_rps"] = ramp.start
            out["ramp_up_end_rps"] = ramp.end
        for key in (
            "duration",
            "completed",
            "failed",
            "total_input_tokens",
            "total_output_tokens",
            "request_throughput",
            "request_goodput",
            "output_throughput",
            "total_token_throughput",
        ):
            out[key] = getattr(self, key)
        if detailed is not None:
            out |= _lists(detailed)
        out["max_output_tokens_per_s"] = self.max_output_tokens_per_s
        out["max_concurrent_requests"] = self.max_concurrent_requests
        out["rtfx"] = 0.0
        for metric, spread in self.spreads.items():
            out[f"mean_{metric}_ms"] = spread.mean
            out[f"median_{metric}_ms"] = spread.median
            out[f"std_{metric}_ms"] = spread.std
            out |= {f"p{_word(p)}_{metric}_ms": ms for p, ms in spread.percentiles}
        return out


def _lists(a: Answered) -> dict[str, list[Any]]:
    ttft = np.where(a.ok, a.first_ns - a.sent_ns, 0) / 1e9
    latency = np.where(a.ok, a.end_ns - a.sent_ns, 0) / 1e9
    spans = zip(a.ok.tolist(), a.token_lo[:-1].tolist(), a.token_lo[1:].tolist(), strict=True)
    return {
        "input_lens": a.prompt.tolist(),
        "output_lens": np.where(a.ok, a.output, 0).tolist(),
        "ttfts": ttft.tolist(),
        "itls": [(np.diff(a.token_ns[lo:hi]) / 1e9).tolist() if ok else [] for ok, lo, hi in spans],
        "latencies": latency.tolist(),
        "start_times": (a.sent_ns / 1e9).tolist(),
        "queue_times": ((a.sent_ns - a.arrival_ns) / 1e9).tolist(),
        "generated_texts": [""] * len(a),
        "errors": ["" if ok else "failed" for ok in a.ok.tolist()],
    }


def _count(label: str, value: int) -> str:
    return f"{label:<40} {value:<10}"


def _value(label: str, value: float) -> str:
    return f"{label:<40} {value:<10.2f}"


def _word(percentile: float) -> str:
    return str(int(percentile)) if int(percentile) == percentile else str(percentile)
