"""What ``vllm bench serve`` would print of a run, by its formulas.

Source: ``calculate_metrics`` and ``benchmark`` in vllm/benchmarks/serve.py (0.33). Differences of
times are taken in ns and turned to seconds, on which everything else is computed as there, in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from traces.errors import InputError
from uvmsim.serving.answered import Answered, Ints64
from uvmsim.serving.result import METRICS, Bench, Spread

DEFAULT_METRICS = ("ttft", "tpot", "itl")
GOODPUT = ("ttft", "tpot", "e2el")

_Seconds = NDArray[np.float64]


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """``["ttft:2000", "tpot:50"]`` as ms by metric. Raises `InputError`."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if name not in GOODPUT or not colon:
            raise InputError(
                f": {pair!r} is no KEY:ms; KEY is one of {', '.join(GOODPUT)}", "goodput"
            )
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f": {pair!r}: {value!r} is not a number of ms", "goodput") from None
    _check_goodput(found)
    return found


def bench(
    answered: Answered,
    *,
    rate: float = math.inf,
    burstiness: float = 1.0,
    max_concurrency: int | None = None,
    percentiles: Sequence[float] = (99.0,),
    metrics: Sequence[str] = DEFAULT_METRICS,
    goodput: Mapping[str, float] | None = None,
    start_ns: int = 0,
) -> Bench:
    """Metrics of a run whose clock started at ``start_ns``.

    ``rate`` (requests/s) and ``max_concurrency`` are what the client was told; infinite and None
    leave their lines out. ``percentiles``: 0 to 100. ``metrics``: of `METRICS`; the two with the
    client's queue are there with a maximum concurrency only, the last only with a finite rate too.
    ``goodput``: ms that a request may take at most, by metric. A request is *sent* when it leaves
    the client's queue, so no latency but the last two holds the wait there. Raises `InputError` for
    options, `ValueError` for a run that takes no time.
    """
    _check_options(percentiles, metrics)
    ok = answered.ok
    duration = (int(answered.end_ns.max()) - start_ns) / 1e9
    if duration <= 0:
        raise ValueError(f"the run ends at its start ({start_ns} ns)")
    output = answered.output[ok]
    ttft = (answered.first_ns - answered.sent_ns)[ok] / 1e9
    e2el = (answered.end_ns - answered.sent_ns)[ok] / 1e9
    several = output > 1
    tpot = np.zeros(len(output))
    tpot[several] = (e2el[several] - ttft[several]) / (output[several] - 1)
    queue = (answered.sent_ns - answered.arrival_ns)[ok] / 1e9

    def values(name: str) -> _Seconds | None:
        if name == "ttft":
            return ttft
        if name == "tpot":
            return tpot[several]
        if name == "itl":
            return answered.gaps_ns() / 1e9
        if name == "e2el":
            return e2el
        if max_concurrency is None:
            return None
        if name == "client_queue_time":
            return queue
        return None if math.isinf(rate) else e2el + queue

    spreads = {}
    for name in METRICS:
        if name in metrics and (found := values(name)) is not None:
            spreads[name] = _spread(found, percentiles)
    completed, total_in = len(output), int(answered.prompt[ok].sum(dtype=np.int64))
    total_out = int(output.sum(dtype=np.int64))
    return Bench(
        rate=rate,
        burstiness=burstiness,
        max_concurrency=max_concurrency,
        duration=duration,
        completed=completed,
        failed=len(answered) - completed,
        total_input_tokens=total_in,
        total_output_tokens=total_out,
        request_throughput=completed / duration,
        request_goodput=_good(goodput, ttft, tpot, e2el) / duration if goodput else None,
        output_throughput=total_out / duration,
        total_token_throughput=(total_in + total_out) / duration,
        max_output_tokens_per_s=_peak_tokens(answered),
        max_concurrent_requests=_peak_requests(answered),
        spreads=spreads,
    )


def _spread(seconds: _Seconds, percentiles: Sequence[float]) -> Spread:
    if not len(seconds):
        seconds = np.zeros(1)
    at = np.percentile(seconds, list(percentiles)) * 1000
    return Spread(
        float(np.mean(seconds) * 1000),
        float(np.median(seconds) * 1000),
        float(np.std(seconds) * 1000),
        tuple((float(p), float(v)) for p, v in zip(percentiles, at, strict=True)),
    )


def _good(goodput: Mapping[str, float], ttft: _Seconds, tpot: _Seconds, e2el: _Seconds) -> int:
    """Requests within every objective; one of a single token has a TPOT of 0."""
    _check_goodput(goodput)
    good = np.ones(len(ttft), bool)
    for name, values in (("ttft", ttft), ("tpot", tpot), ("e2el", e2el)):
        if name in goodput:
            good &= values <= goodput[name] / 1000
    return int(good.sum())


def _seconds_since(times: Ints64, answered: Answered) -> Ints64:
    """Whole seconds since the first answered request was sent."""
    return (times - answered.sent_ns[answered.ok].min()) // 1_000_000_000


def _peak_tokens(answered: Answered) -> float:
    """The most tokens in any of the seconds from the first request on."""
    if not answered.ok.any():
        return 0.0
    tokens = answered.token_ns
    if not answered.ok.all():
        tokens = tokens[np.repeat(answered.ok, answered.output)]
    return float(np.unique(_seconds_since(tokens, answered), return_counts=True)[1].max())


def _peak_requests(answered: Answered) -> int:
    """The most requests in any second, each counted in every second that it touches."""
    if not answered.ok.any():
        return 0
    begin = np.sort(_seconds_since(answered.sent_ns[answered.ok], answered))
    end = np.sort(_seconds_since(answered.end_ns[answered.ok], answered))
    # The count rises only where a request begins.
    here = np.searchsorted(begin, begin, "right") - np.searchsorted(end, begin, "left")
    return int(here.max())


def _check_goodput(goodput: Mapping[str, float]) -> None:
    for name, ms in goodput.items():
        if name not in GOODPUT:
            raise InputError(f": {name!r}; choose among {', '.join(GOODPUT)}", "goodput")
        if not ms >= 0:
            raise InputError(f": {name}:{ms} ms; give 0 or more", "goodput")


def _check_options(percentiles: Sequence[float], metrics: Sequence[str]) -> None:
    for p in percentiles:
        if not 0 <= p <= 100:
            raise InputError(f": {p}; give 0 to 100", "percentiles")
    for name in metrics:
        if name not in METRICS:
            raise InputError(f": {name!r}; choose among {', '.join(METRICS)}", "metrics")
