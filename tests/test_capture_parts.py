"""The parts of a capture that need no model: row matching, sampling."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.capture.row_order import Row, RowMatcher
from traces.capture.sampling import Sampler
from traces.errors import InputError


def split_equal(lengths: list[int], n_ubatch: int) -> list[list[tuple[int, int]]]:
    """How llama.cpp cuts a batch of whole prompts when each sequence has a KV cache of its own:
    (sequence, position) of each micro-batch. Sequences of one micro-batch have consecutive ids and
    give equally many tokens."""
    at = dict.fromkeys(range(len(lengths)), 0)
    out = []
    while any(at[s] < lengths[s] for s in at):
        chosen: list[int] = []
        for s in at:
            if at[s] < lengths[s] and (not chosen or s == chosen[-1] + 1):
                chosen.append(s)
        chosen = chosen[:n_ubatch]
        n = min(lengths[s] - at[s] for s in chosen)
        n = max(min(n, n_ubatch // len(chosen)), 1)
        out.append([(s, at[s] + i) for s in chosen for i in range(n)])
        for s in chosen:
            at[s] += n
    return out


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(5, 40),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_regrouped_prompts_find_their_sequences(
    lengths: list[int], n_ubatch: int, n_vocab: int, rng: random.Random
) -> None:
    # Few different tokens, so that different sequences often hold the same at a position.
    tokens = {(s, p): rng.randrange(n_vocab) for s, n in enumerate(lengths) for p in range(n)}
    matcher = RowMatcher([Row(s, p, t, 0, False) for (s, p), t in tokens.items()])
    for batch in split_equal(lengths, n_ubatch):
        rows = matcher.match(
            np.array([tokens[key] for key in batch]), np.array([p for _, p in batch])
        )
        assert [(r.seq, r.pos) for r in rows] == batch
    assert matcher.left == 0


def test_rows_that_were_not_submitted_are_an_error() -> None:
    rows = [Row(0, 0, 5, 0, False), Row(0, 1, 6, 0, True)]
    wrong = (([5, 7], [0, 1]), ([5, 6], [0, 2]), ([6, 5], [1, 0]), ([5, 6, 6], [0, 1, 2]))
    for tokens, pos in wrong:
        with pytest.raises(InputError, match="was not submitted"):
            RowMatcher(rows).match(np.array(tokens), np.array(pos))


def test_graphs_without_positions() -> None:
    one = [Row(0, 3, 5, 0, False), Row(0, 4, 6, 0, True)]
    assert RowMatcher(one).match(np.array([5, 6]), None) == one
    with pytest.raises(InputError, match="one sequence at a time"):
        RowMatcher([*one, Row(1, 0, 5, 0, True)]).match(np.array([5, 6, 5]), None)
    with pytest.raises(InputError, match="inp_tokens"):
        RowMatcher(one).match(None, None)


def test_sampler() -> None:
    logits = np.array([0.0, 3.0, 1.0, 3.5], np.float32)
    assert Sampler(seed=0, seq=0, temperature=0).next(logits) == 3
    assert Sampler(seed=0, seq=0, temperature=0).next(logits, np.array([3])) == 1
    draws = [Sampler(seed=s, seq=0, temperature=1.0, top_k=0).next(logits) for s in range(4000)]
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 4000, p, atol=0.03)
    few = {Sampler(seed=s, seq=0, temperature=5.0, top_k=2).next(logits) for s in range(200)}
    assert few == {1, 3}
    a, b = (Sampler(seed=1, seq=q, temperature=5.0) for q in (0, 1))
    assert [a.next(logits) for _ in range(20)] != [b.next(logits) for _ in range(20)]
