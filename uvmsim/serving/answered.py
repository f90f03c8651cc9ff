"""What became of each request: the times at which the client saw things happen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints64 = NDArray[np.int64]


@dataclass(frozen=True)
class Answered:
    """N requests, in any order. Times are ns of one clock; `ValueError` where they contradict each
    other.

    ``arrival_ns`` [N]: when the client had the request. ``sent_ns`` [N]: when it left the client;
    with a maximum concurrency the wait for a free place lies between the two. ``first_ns``,
    ``end_ns`` [N]: the first token, and the end of the answer (of the failure, where it failed).
    ``prompt``, ``output`` [N]: tokens in, tokens got. ``ok`` [N]: answered; such a request got at
    least one token. ``token_ns`` [sum of output]: each token's time, request by request, those of
    request i being ``token_ns[token_lo[i] : token_lo[i + 1]]``.
    """

    arrival_ns: Ints64
    sent_ns: Ints64
    first_ns: Ints64
    end_ns: Ints64
    prompt: NDArray[np.int32]
    output: NDArray[np.int32]
    ok: NDArray[np.bool_]
    token_ns: Ints64
    token_lo: Ints64

    def __post_init__(self) -> None:
        n = len(self.arrival_ns)
        if not n:
            raise ValueError("no requests")
        for name in ("sent_ns", "first_ns", "end_ns", "prompt", "output", "ok"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{name} is not [{n}]")
        if self.token_lo.shape != (n + 1,) or self.token_lo[0] != 0:
            raise ValueError(f"token_lo is not [{n + 1}] from 0")
        self._hold(np.diff(self.token_lo) == self.output, "has other tokens than its output")
        if len(self.token_ns) != self.token_lo[-1]:
            raise ValueError(f"{len(self.token_ns)} token times for {self.token_lo[-1]} tokens")
        self._hold(self.arrival_ns <= self.sent_ns, "was sent before it arrived")
        self._hold(self.sent_ns <= self.end_ns, "ended before it was sent")
        self._hold(~self.ok | (self.output > 0), "was answered without a token")
        some = np.flatnonzero(self.output > 0)
        first, last = self.token_ns[self.token_lo[some]], self.token_ns[self.token_lo[some + 1] - 1]
        self._hold(first == self.first_ns[some], "has another first token than first_ns", some)
        self._hold(first >= self.sent_ns[some], "got a token before it was sent", some)
        self._hold(last <= self.end_ns[some], "got a token after its end", some)
        back = np.flatnonzero(np.diff(self.token_ns) < 0) + 1
        inside = back[~np.isin(back, self.token_lo)]
        if len(inside):
            at = int(np.searchsorted(self.token_lo, inside[0], "right")) - 1
            raise ValueError(f"request {at} has tokens out of order")

    @staticmethod
    def _hold(right: NDArray[np.bool_], what: str, which: NDArray[np.intp] | None = None) -> None:
        wrong = np.flatnonzero(~right)
        if len(wrong):
            raise ValueError(f"request {wrong[0] if which is None else which[wrong[0]]} {what}")

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def gaps_ns(self) -> Ints64:
        """Between one token and the next of the same answered request: int64 [pooled]."""
        if len(self.token_ns) < 2:
            return np.zeros(0, np.int64)
        inner = np.repeat(self.ok, self.output)[1:]
        begins = self.token_lo[(self.token_lo > 0) & (self.token_lo < len(self.token_ns))]
        inner[begins - 1] = False
        return np.diff(self.token_ns)[inner]
