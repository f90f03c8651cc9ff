"""Kendall's tau against the definition, counted another way."""

from __future__ import annotations

import itertools
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.validate.kendall import kendall


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def by_definition(a: list[int], b: list[int]) -> float | None:
    """Correlation of the two matrices of signs (Kendall 1945, daniels' form)."""
    pairs = list(itertools.permutations(range(len(a)), 2))
    x = [sign(a[i] - a[j]) for i, j in pairs]
    y = [sign(b[i] - b[j]) for i, j in pairs]
    norm = sqrt(sum(v * v for v in x) * sum(v * v for v in y))
    return sum(p * q for p, q in zip(x, y, strict=True)) / norm if norm else None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=9))
def test_tau_is_the_definition_s(values):
    a, b = [x for x, _ in values], [y for _, y in values]
    found, want = kendall(a, b), by_definition(a, b)
    assert (found.tau is None) == (want is None)
    if want is not None:
        assert found.tau == pytest.approx(want)


@given(st.permutations(list(range(6))))
def test_discordant_pairs_are_the_inversions(order):
    found = kendall(list(range(6)), order)
    inversions = sum(order[i] > order[j] for i in range(6) for j in range(i + 1, 6))
    assert (found.discordant, found.pairs) == (inversions, 15)


def test_the_widest_gap_is_of_the_measured_side():
    assert kendall([1, 2], [100, 80]).widest == pytest.approx(0.2)
    assert kendall([1, 2], [1, 2]).widest == 0
