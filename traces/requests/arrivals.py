"""When requests arrive where a source does not say: as ``vllm bench serve`` sends them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from traces.requests.trace import MAX_TOKENS, Ints64, RequestTrace

_MAX_SECONDS = 2**62 / 1e9


@dataclass(frozen=True)
class Ramp:
    """``--ramp-up-strategy``: the rate goes from ``start`` to ``end`` requests/s over the requests."""

    strategy: str
    """"linear" or "exponential"."""
    start: float
    end: float

    def rates(self, n: int) -> np.ndarray:
        """float64 [n], requests/s: the rate by which each request's gap is drawn."""
        progress = np.arange(n) / max(n - 1, 1)
        if self.strategy == "linear":
            return np.asarray(self.start + (self.end - self.start) * progress)
        return np.asarray(self.start * (self.end / self.start) ** progress)


def arrivals(
    n: int,
    rate: float = math.inf,
    burstiness: float = 1.0,
    seed: int = 0,
    ramp: Ramp | None = None,
) -> Ints64:
    """Times of ``n`` requests: int64 [n], ns, the clock starting at 0.

    Gaps are gamma distributed, of shape ``burstiness`` and mean 1/``rate``: 1 is a Poisson process,
    below is burstier, infinity is one request every 1/rate seconds. Times are then scaled so that
    the last request arrives at n/rate; with a ``ramp``, which takes the rate's place, they are not.
    An infinite rate sends all at 0. ``seed`` seeds NumPy's legacy generator, as vLLM's ``--seed``
    does: the same seed gives vLLM's times for data sets that draw none of its numbers (ShareGPT,
    traces), to the nanosecond.

    Source: ``get_request`` in vllm/benchmarks/serve.py (0.33). Raises `InputError`.
    """
    if n < 1:
        raise InputError(f": {n} requests; ask for 1 or more", "n")
    _positive("burstiness", burstiness)
    _positive("rate", rate)
    if not 0 <= seed < 2**32:
        raise InputError(f": {seed}; give 0 to {2**32 - 1}", "seed")
    rates = np.full(n, float(rate)) if ramp is None else _ramp(ramp).rates(n)
    if math.isinf(rates[0]):
        return np.zeros(n, np.int64)
    with np.errstate(all="ignore"):  # what overflows is refused below
        if math.isinf(burstiness):
            gaps = 1.0 / rates
        else:
            # The legacy generator on purpose: vLLM draws from np.random.
            draw = np.random.RandomState(seed).gamma
            gaps = draw(burstiness, 1.0 / (rates * burstiness))
        times = np.cumsum(gaps)
        if ramp is None and times[-1] > 0:
            times *= (n / rate) / times[-1]
    if not times[-1] < _MAX_SECONDS:
        raise InputError(
            f": the last of {n} requests would arrive after a century; raise it", "rate"
        )
    return np.rint(times * 1e9).astype(np.int64)


def fixed(n: int, prompt_len: int, output_len: int) -> RequestTrace:
    """``n`` requests of the same lengths in tokens, without times or shared prefixes."""
    if n < 1:
        raise InputError(f": {n} requests; ask for 1 or more", "n")
    for name, tokens in (("prompt_len", prompt_len), ("output_len", output_len)):
        if not 1 <= tokens <= MAX_TOKENS:
            raise InputError(f": {tokens} tokens; give 1 to {MAX_TOKENS:,}", name)
    return RequestTrace(
        None,
        np.full(n, prompt_len, np.int32),
        np.full(n, output_len, np.int32),
        source=f"{prompt_len} tokens in, {output_len} out",
        format="fixed",
    )


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f": {value}; give a number above 0", name)


def _ramp(ramp: Ramp) -> Ramp:
    if ramp.strategy not in ("linear", "exponential"):
        raise InputError(f": {ramp.strategy!r}; choose linear or exponential", "ramp")
    for value in (ramp.start, ramp.end):
        if not 0 < value < math.inf:
            raise InputError(f": {value} requests/s; give finite rates above 0", "ramp")
    return ramp
