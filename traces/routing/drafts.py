"""Speculative decoding of a trace: a step verifies drafted tokens along with its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from traces.errors import InputError
from traces.files.schema import ACCEPTED, DECODE, NO_DRAFT, REJECTED
from traces.routing.rearrange import Tokens, rearranged
from traces.routing.trace import RoutingTrace

REJECTS = ("true", "random")
"""Whose routing a rejected draft is given: the true token's of its position, or any decoded one's."""
MOST = 64
"""Drafts a step."""


@dataclass(frozen=True)
class Draft:
    """``tokens`` drafted a step; each is accepted with probability ``rate`` if those before it were."""

    tokens: int
    rate: float

    def __str__(self) -> str:
        return f"{self.tokens}:{self.rate:g}"

    @classmethod
    def parse(cls, text: str) -> Draft | None:
        """``3:0.8``; ``0``: no drafts, None. Raises `InputError`."""
        number, colon, share = text.strip().partition(":")
        try:
            tokens, rate = int(number), float(share) if colon else 0.0
        except ValueError:
            tokens, rate = -1, 0.0
        if tokens == 0:
            return None
        if tokens < 0 or not colon:
            raise InputError(
                f"{text}: give drafts a step and their acceptance, as in 3:0.8; 0: none"
            )
        if tokens > MOST:
            raise InputError(f"{text}: at most {MOST} drafts a step")
        if not 0 <= rate <= 1:
            raise InputError(f"{text}: acceptance is a share, 0 to 1")
        return cls(tokens, rate)

    @property
    def expected(self) -> float:
        """Tokens a step: (1 - P^(k + 1)) / (1 - P)."""
        return float(sum(self.rate**i for i in range(self.tokens + 1)))


def drafted(t: RoutingTrace, draft: Draft, *, seed: int = 0, reject: str = "true") -> RoutingTrace:
    """``t`` decoded with drafts: each step computes the token that is due and the next ones of its
    sequence, as far as the recording goes; the accepted ones are done with, the others come again.

    The column ``draft`` says which is which. A token is accepted where its own random number (by
    ``seed``, the same for every ``tokens`` and ``rate``) is below the rate: so a higher rate keeps
    whatever a lower one kept. Prefill stays as it is. What a rejected draft would have been is not in
    ``t``; its routing is borrowed (``reject``): of the true token at its position, or of a random
    decoded token of the trace.

    Raises `InputError` where decode steps hold more than one token, or drafts already.
    """
    if reject not in REJECTS:
        raise InputError(f"{reject}: must be {' or '.join(REJECTS)}", argument="draft_reject")
    if t.draft is not None:
        raise InputError(f"{t.path}: was recorded with drafts; leave out `draft`")
    tokens = Tokens(t)
    decode = np.flatnonzero(tokens.of(t.phase) == DECODE)
    width = np.diff(tokens.steps)
    if (width[~tokens.is_prefill] > 1).any():
        raise InputError(
            f"{t.path}: decode steps hold more than one token; `draft` needs them one by one"
        )
    if not len(decode):
        raise InputError(f"{t.path}: no decoded tokens for `draft`; use more of it (`limit`)")
    kept = (np.random.default_rng(seed).random(t.n_tokens) < draft.rate).tolist()
    at, step, mark = _walk(tokens, draft.tokens, kept)
    order = np.argsort(step, kind="stable")
    at, step, mark = at[order], step[order], mark[order]
    source = at
    if reject == "random":
        source = at.copy()
        full = decode[np.diff(tokens.lo)[decode] == np.diff(tokens.lo).max()]
        lost = np.flatnonzero(mark == REJECTED)
        source[lost] = np.random.default_rng([seed, 1]).choice(full, len(lost))
    return rearranged(tokens, at, step, routed_as=source, draft=mark)


def _walk(tokens: Tokens, k: int, kept: list[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token, step (the number of the step in which its first one was recorded) and mark of everything
    that is computed, sequence by sequence."""
    at: list[int] = []
    step: list[int] = []
    mark: list[int] = []
    bounds, is_prefill, order = (
        x.tolist() for x in (tokens.steps, tokens.is_prefill, tokens.order)
    )
    for steps in tokens.by_sequence():
        # Runs of decode steps: a draft does not reach into the next prompt.
        cuts = [i for i in range(1, len(steps)) if is_prefill[steps[i]] != is_prefill[steps[i - 1]]]
        for a, b in pairwise([0, *cuts, len(steps)]):
            if is_prefill[steps[a]]:
                for s in steps[a:b]:
                    n = bounds[s + 1] - bounds[s]
                    at += order[bounds[s] : bounds[s + 1]]
                    step += [s] * n
                    mark += [NO_DRAFT] * n
                continue
            i = a
            while i < b:
                tried = [order[bounds[s]] for s in steps[i + 1 : min(i + 1 + k, b)]]
                good = next((j for j, x in enumerate(tried) if not kept[x]), len(tried))
                at += [order[bounds[steps[i]]], *tried]
                step += [steps[i]] * (1 + len(tried))
                mark += [NO_DRAFT, *[ACCEPTED] * good, *[REJECTED] * (len(tried) - good)]
                i += 1 + good
    return np.array(at, np.int64), np.array(step, np.int64), np.array(mark, np.uint8)
