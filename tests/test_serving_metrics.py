"""The metrics of a served run: against a plain reading of vLLM's formulas, and its lines."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import InputError
from traces.requests import Ramp
from uvmsim.serving.answered import Answered
from uvmsim.serving.metrics import bench, parse_goodput
from uvmsim.serving.result import METRICS

NS = 1_000_000_000


def percentile(values: list[float], p: float) -> float:
    """NumPy's, by linear interpolation."""
    ranked = sorted(values)
    at = (len(ranked) - 1) * p / 100
    low = math.floor(at)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (at - low)


def slow(
    runs: list[dict[str, Any]], percentiles: list[float], goodput: dict[str, float]
) -> dict[str, Any]:
    """``calculate_metrics`` of vllm/benchmarks/serve.py, loop by loop, in seconds."""
    good = [r for r in runs if r["ok"]]
    duration = max(r["end"] for r in runs) / 1e9
    ttfts = [(r["tokens"][0] - r["sent"]) / 1e9 for r in good]
    e2els = [(r["end"] - r["sent"]) / 1e9 for r in good]
    queue = [(r["sent"] - r["arrival"]) / 1e9 for r in good]
    tpots, all_tpots, itls = [], [], []
    for r, ttft, e2el in zip(good, ttfts, e2els, strict=True):
        tpot = 0.0
        if len(r["tokens"]) > 1:
            tpot = (e2el - ttft) / (len(r["tokens"]) - 1)
            tpots.append(tpot)
        all_tpots.append(tpot)
        itls += [(b - a) / 1e9 for a, b in zip(r["tokens"], r["tokens"][1:], strict=False)]
    met = 0
    for ttft, tpot, e2el in zip(ttfts, all_tpots, e2els, strict=True):
        of = {"ttft": ttft, "tpot": tpot, "e2el": e2el}
        met += all(of[name] <= ms / 1000 for name, ms in goodput.items())
    peak_tokens = peak_requests = 0
    if good:
        start = min(r["sent"] for r in good)
        tokens: dict[int, int] = {}
        requests: dict[int, int] = {}
        for r in good:
            for t in r["tokens"]:
                tokens[(t - start) // NS] = tokens.get((t - start) // NS, 0) + 1
            for second in range((r["sent"] - start) // NS, (r["end"] - start) // NS + 1):
                requests[second] = requests.get(second, 0) + 1
        peak_tokens, peak_requests = max(tokens.values()), max(requests.values())
    n_in, n_out = sum(r["prompt"] for r in good), sum(len(r["tokens"]) for r in good)
    out: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(runs) - len(good),
        "total_input_tokens": n_in,
        "total_output_tokens": n_out,
        "request_throughput": len(good) / duration,
        "request_goodput": met / duration if goodput else None,
        "output_throughput": n_out / duration,
        "total_token_throughput": (n_in + n_out) / duration,
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
    }
    whole = [a + b for a, b in zip(e2els, queue, strict=True)]
    for name, values in zip(METRICS, (ttfts, tpots, itls, e2els, queue, whole), strict=True):
        values = values or [0.0]
        out[f"mean_{name}_ms"] = statistics.fmean(values) * 1000
        out[f"median_{name}_ms"] = statistics.median(values) * 1000
        out[f"std_{name}_ms"] = statistics.pstdev(values) * 1000
        for p in percentiles:
            word = str(int(p)) if p == int(p) else str(p)
            out[f"p{word}_{name}_ms"] = percentile(values, p) * 1000
    return out


def answered(runs: list[dict[str, Any]]) -> Answered:
    tokens = [r["tokens"] for r in runs]
    return Answered(
        arrival_ns=np.array([r["arrival"] for r in runs], np.int64),
        sent_ns=np.array([r["sent"] for r in runs], np.int64),
        first_ns=np.array([t[0] if t else r["end"] for r, t in zip(runs, tokens, strict=True)]),
        end_ns=np.array([r["end"] for r in runs], np.int64),
        prompt=np.array([r["prompt"] for r in runs], np.int32),
        output=np.array([len(t) for t in tokens], np.int32),
        ok=np.array([r["ok"] for r in runs]),
        token_ns=np.array([t for own in tokens for t in own], np.int64),
        token_lo=np.cumsum([0, *(len(t) for t in tokens)]),
    )


@st.composite
def a_run(draw: st.DrawFn) -> dict[str, Any]:
    step = st.integers(0, 3 * NS) | st.integers(0, 1000)
    arrival = draw(st.integers(0, 20 * NS))
    sent = arrival + draw(st.just(0) | step)
    ok = draw(st.booleans() | st.just(True))
    tokens, now = [], sent
    for gap in draw(st.lists(step, min_size=1 if ok else 0, max_size=8)):
        now += gap
        tokens.append(now)
    end = now + draw(st.just(0) | step)
    prompt = draw(st.integers(1, 5000))
    return {
        "arrival": arrival,
        "sent": sent,
        "tokens": tokens,
        "end": end,
        "ok": ok,
        "prompt": prompt,
    }


RUNS = st.lists(a_run(), min_size=1, max_size=12).filter(lambda runs: any(r["end"] for r in runs))
GOALS = st.dictionaries(st.sampled_from(("ttft", "tpot", "e2el")), st.floats(0, 9000), max_size=3)


@settings(max_examples=200, deadline=None)
@given(RUNS, GOALS)
def test_against_the_slow_version(runs: list[dict[str, Any]], goodput: dict[str, float]) -> None:
    percentiles = [0, 50, 99, 99.9]
    b = bench(
        answered(runs),
        rate=2.0,
        max_concurrency=4,
        percentiles=percentiles,
        metrics=METRICS,
        goodput=goodput,
    )
    found = b.record()
    for key, value in slow(runs, percentiles, goodput).items():
        if isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-6), key
        else:
            assert found[key] == value, key


ONE = {"arrival": 0, "sent": NS, "tokens": [2 * NS, 3 * NS], "end": 3 * NS, "ok": True, "prompt": 7}
LOST = {"arrival": 0, "sent": 0, "tokens": [], "end": 4 * NS, "ok": False, "prompt": 9}


def test_lines() -> None:
    b = bench(
        answered([ONE, LOST]),
        rate=0.5,
        max_concurrency=1,
        goodput={"ttft": 1000},
        metrics=METRICS,
        percentiles=(90, 99.5),
    )
    assert b.text().split("\n") == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     1         ",
        "Failed requests:                         1         ",
        "Maximum request concurrency:             1         ",
        "Request rate configured (RPS):           0.50      ",
        "Benchmark duration (s):                  4.00      ",
        "Total input tokens:                      7         ",
        "Total generated tokens:                  2         ",
        "Request throughput (req/s):              0.25      ",
        "Request goodput (req/s):                 0.25      ",
        "Output token throughput (tok/s):         0.50      ",
        "Peak output token throughput (tok/s):    1.00      ",
        "Peak concurrent requests:                1.00      ",
        "Total token throughput (tok/s):          2.25      ",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms):                          1000.00   ",
        "Median TTFT (ms):                        1000.00   ",
        "P90 TTFT (ms):                           1000.00   ",
        "P99.5 TTFT (ms):                         1000.00   ",
        "-----Time per Output Token (excl. 1st token)------",
        "Mean TPOT (ms):                          1000.00   ",
        "Median TPOT (ms):                        1000.00   ",
        "P90 TPOT (ms):                           1000.00   ",
        "P99.5 TPOT (ms):                         1000.00   ",
        "---------------Inter-token Latency----------------",
        "Mean ITL (ms):                           1000.00   ",
        "Median ITL (ms):                         1000.00   ",
        "P90 ITL (ms):                            1000.00   ",
        "P99.5 ITL (ms):                          1000.00   ",
        "----------------End-to-end Latency----------------",
        "Mean E2EL (ms):                          2000.00   ",
        "Median E2EL (ms):                        2000.00   ",
        "P90 E2EL (ms):                           2000.00   ",
        "P99.5 E2EL (ms):                         2000.00   ",
        "---------------Client-side Queueing---------------",
        "Mean Client Queue Time (ms):             1000.00   ",
        "Median Client Queue Time (ms):           1000.00   ",
        "P90 Client Queue Time (ms):              1000.00   ",
        "P99.5 Client Queue Time (ms):            1000.00   ",
        "--------Queue-inclusive End-to-end Latency--------",
        "Mean E2EL incl. Client Queue (ms):       3000.00   ",
        "Median E2EL incl. Client Queue (ms):     3000.00   ",
        "P90 E2EL incl. Client Queue (ms):        3000.00   ",
        "P99.5 E2EL incl. Client Queue (ms):      3000.00   ",
        "==================================================",
    ]


def test_lines_that_are_left_out() -> None:
    text = bench(answered([ONE])).text()
    for label in ("Maximum request", "Request rate", "goodput", "E2EL", "Queue"):
        assert label not in text
    assert "P99 ITL (ms):" in text
    # The queue's sections need a maximum concurrency, the last one a rate too.
    names = bench(answered([ONE]), max_concurrency=3, metrics=METRICS).spreads
    assert list(names) == list(METRICS[:-1])
    assert list(bench(answered([ONE]), rate=1, metrics=METRICS).spreads) == list(METRICS[:4])


def test_keys_of_the_file() -> None:
    b = bench(answered([ONE, LOST]))
    out = b.record(
        date="20260101-000000",
        model_id="m",
        metadata={"hardware": "x"},
        ramp=Ramp("linear", 1, 2),
        detailed=answered([ONE, LOST]),
    )
    assert list(out)[:17] == [
        "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts",
        "hardware", "request_rate", "burstiness", "max_concurrency",
        "ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps",
        "duration", "completed", "failed",
    ]  # fmt: skip
    assert out["request_rate"] == "inf" and out["request_goodput"] is None
    assert (
        out["output_lens"] == [2, 0] and out["ttfts"] == [1.0, 0.0] and out["itls"] == [[1.0], []]
    )
    assert out["queue_times"] == [1.0, 0.0] and out["latencies"] == [2.0, 0.0]
    json.dumps(out, allow_nan=False)
    assert "ttfts" not in b.record() and b.record() == b.record()
    assert math.isinf(b.rate)


def test_nothing_answered() -> None:
    b = bench(answered([LOST]), goodput={"ttft": 1}, metrics=METRICS)
    assert (b.completed, b.failed, b.max_output_tokens_per_s, b.max_concurrent_requests) == (
        0,
        1,
        0,
        0,
    )
    assert b.spreads["ttft"].mean == 0 and b.request_goodput == 0
    assert b.output_throughput == 0 and b.duration == 4


def test_start_of_the_clock() -> None:
    assert bench(answered([ONE]), start_ns=NS).duration == 2
    with pytest.raises(ValueError, match="ends at its start"):
        bench(answered([ONE]), start_ns=3 * NS)


def test_options_are_checked() -> None:
    assert parse_goodput(["ttft:2000", "tpot:50.5"]) == {"ttft": 2000, "tpot": 50.5}
    for pair in ("itl:3", "ttft", "ttft:", "ttft:x", "ttft:-1", "ttft:nan", ":3", "ttft:1:2"):
        with pytest.raises(InputError, match="goodput"):
            parse_goodput([pair])
    run = answered([ONE])
    assert bench(run, percentiles=()).spreads["itl"].percentiles == ()
    for bad in (-1, 101, math.nan):
        with pytest.raises(InputError, match="percentiles"):
            bench(run, percentiles=[bad])
    with pytest.raises(InputError, match="metrics"):
        bench(run, metrics=["ttfx"])
    with pytest.raises(InputError, match="goodput"):
        bench(run, goodput={"itl": 3})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sent": -1}, "sent before it arrived"),
        ({"tokens": []}, "without a token"),
        ({"tokens": [3 * NS, 2 * NS]}, "out of order"),
        ({"tokens": [0, 3 * NS]}, "before it was sent"),
        ({"end": 2 * NS}, "after its end"),
        ({"end": 0, "tokens": []}, "ended before"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"request 1 .*{says}"):
        answered([ONE, ONE | change])


def test_shapes_are_checked() -> None:
    good = answered([ONE, LOST]).__dict__
    for name in good:
        with pytest.raises(ValueError):
            Answered(**(good | {name: good[name][:-1]}))
    with pytest.raises(ValueError, match="first token than"):
        Answered(**(good | {"first_ns": good["first_ns"] + 1}))
    with pytest.raises(ValueError, match="no requests"):
        answered([])
