"""Arrival times: as a plain loop with vLLM's draws makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import InputError
from traces.requests import Ramp, arrivals, fixed


def slow(n: int, rate: float, burstiness: float, seed: int, ramp: Ramp | None) -> list[int]:
    """``get_request`` of vllm/benchmarks/serve.py, request by request."""
    draw = np.random.RandomState(seed)
    times: list[float] = []
    now = 0.0
    for i in range(n):
        here = rate
        if ramp is not None:
            progress = i / max(n - 1, 1)
            if ramp.strategy == "linear":
                here = ramp.start + (ramp.end - ramp.start) * progress
            else:
                here = ramp.start * ((ramp.end / ramp.start) ** progress)
        if here == math.inf:
            gap = 0.0
        elif burstiness == math.inf:
            gap = 1.0 / here
        else:
            gap = draw.gamma(shape=burstiness, scale=1.0 / (here * burstiness))
        now += gap
        times.append(now)
    if ramp is None and times[-1] != 0:
        factor = n / rate / times[-1]
        times = [t * factor for t in times]
    return [round(t * 1e9) for t in times]


RAMPS = st.none() | st.builds(
    Ramp, st.sampled_from(("linear", "exponential")), st.floats(0.1, 50), st.floats(0.1, 50)
)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60),
    st.floats(0.01, 1000) | st.just(math.inf),
    st.floats(0.05, 20) | st.sampled_from((1.0, math.inf)),
    st.integers(0, 2**32 - 1),
    RAMPS,
)
def test_as_the_slow_version(
    n: int, rate: float, burstiness: float, seed: int, ramp: Ramp | None
) -> None:
    times = arrivals(n, rate, burstiness, seed, ramp)
    # A ns: the last bit of a power, of NumPy's and of Python's.
    np.testing.assert_allclose(times, slow(n, rate, burstiness, seed, ramp), rtol=1e-14, atol=1)
    assert times.dtype == np.int64 and (np.diff(times) >= 0).all() and times[0] >= 0
    if ramp is None and rate < math.inf:
        assert abs(int(times[-1]) - n / rate * 1e9) <= 1 + 1e-9 * times[-1]


def test_known_cases() -> None:
    assert arrivals(4, 2.0, math.inf).tolist() == [500_000_000 * i for i in (1, 2, 3, 4)]
    assert not arrivals(5).any()
    assert arrivals(3, 1.0, 1e-300).tolist() == [0, 0, 0]  # every gap underflows
    ramp = arrivals(3, burstiness=math.inf, ramp=Ramp("exponential", 1, 4))
    assert ramp.tolist() == [1_000_000_000, 1_500_000_000, 1_750_000_000]
    a = arrivals(10_000, 3.0, 0.5, seed=1)
    gaps = np.diff(a) / 1e9
    assert gaps.std() / gaps.mean() == pytest.approx(math.sqrt(2), rel=0.05)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n": 0}, "n: 0"),
        ({"rate": 0}, "rate: 0"),
        ({"rate": -1}, "rate: -1"),
        ({"rate": math.nan}, "rate: nan"),
        ({"rate": 1e-300}, "rate: .*century"),
        ({"rate": 5e-324}, "rate: .*century"),
        ({"burstiness": 0}, "burstiness: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"ramp": Ramp("quadratic", 1, 2)}, "ramp: 'quadratic'"),
        ({"ramp": Ramp("linear", 0, 2)}, "ramp: 0"),
        ({"ramp": Ramp("linear", 1, math.inf)}, "ramp: inf"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_refused(options: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=says):
        arrivals(**({"n": 4, "rate": 1.0} | options))


def test_fixed() -> None:
    t = fixed(3, 512, 64)
    assert t.prompt.tolist() == [512] * 3 and t.output.tolist() == [64] * 3
    assert t.arrival_ns is None and len(t.with_arrivals(arrivals(3, 1.0))) == 3
    for n, p, o in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 10**8, 1)):
        with pytest.raises(InputError):
            fixed(n, p, o)
