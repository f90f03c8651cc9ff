"""A request trace: flat arrays, checked once, in the order in which requests arrive."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from traces.errors import InputError

Ints64 = NDArray[np.int64]
Ints32 = NDArray[np.int32]

MAX_TOKENS = 10_000_000
"""Tokens of one prompt or answer; more is an error of the file, not a request."""


def _no_blocks() -> Ints64:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class RequestTrace:
    """N requests. What makes one is checked; `InputError` names the request at fault.

    ``arrival_ns``: int64 [N], sorted, from 0 on where it comes from a file, or None where the
    source has lengths only (`with_arrivals` gives it some). ``prompt``, ``output``: tokens, int32
    [N], each from 1 to `MAX_TOKENS`. ``blocks``: int64 [B], the ids of the prompts' blocks of
    ``block_tokens`` tokens; those of request i are ``blocks[block_lo[i] : block_lo[i + 1]]``, and
    two requests share a prefix as far as their ids are equal. A source without them has B = 0 and
    ``block_tokens`` 0.
    """

    arrival_ns: Ints64 | None
    prompt: Ints32
    output: Ints32
    blocks: Ints64 = field(default_factory=_no_blocks)
    block_lo: Ints64 = field(default_factory=_no_blocks)
    block_tokens: int = 0
    source: str = ""
    format: str = ""
    path: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.prompt)
        if not n:
            raise InputError("a request trace needs at least one request")
        if not len(self.block_lo):
            object.__setattr__(self, "block_lo", np.zeros(n + 1, np.int64))
        for name, kind in (("prompt", np.int32), ("output", np.int32)):
            _is(name, getattr(self, name), kind, n)
            _in_range(name, getattr(self, name))
        if self.arrival_ns is not None:
            _is("arrival_ns", self.arrival_ns, np.int64, n)
            back = np.flatnonzero(np.diff(self.arrival_ns) < 0)
            if len(back):
                raise InputError(
                    f"request {back[0] + 1} arrives before request {back[0]}; sort them"
                )
            if self.arrival_ns[0] < 0:
                raise InputError("request 0 arrives before time 0; begin at 0")
        _is("blocks", self.blocks, np.int64, len(self.blocks))
        _is("block_lo", self.block_lo, np.int64, n + 1)
        self._check_blocks()

    def _check_blocks(self) -> None:
        held = np.diff(self.block_lo)
        if self.block_lo[0] or self.block_lo[-1] != len(self.blocks) or (held < 0).any():
            raise InputError("block_lo must rise from 0 to the number of blocks")
        if not len(self.blocks):
            return
        if self.block_tokens < 1:
            raise InputError("blocks without block_tokens; say how many tokens a block has")
        over = np.flatnonzero(held > -(-self.prompt.astype(np.int64) // self.block_tokens))
        if len(over):
            raise InputError(f"request {over[0]} has more blocks than its prompt fills")

    def __len__(self) -> int:
        return len(self.prompt)

    def first(self, n: int) -> RequestTrace:
        """The first ``n`` requests; all of them where there are no more."""
        if n < 1:
            raise InputError(f": {n} requests; ask for 1 or more", "limit")
        if n >= len(self):
            return self
        lo = self.block_lo[: n + 1]
        return replace(
            self,
            arrival_ns=None if self.arrival_ns is None else self.arrival_ns[:n],
            prompt=self.prompt[:n],
            output=self.output[:n],
            blocks=self.blocks[: lo[-1]],
            block_lo=lo,
        )

    def with_arrivals(self, arrival_ns: Ints64, note: str = "") -> RequestTrace:
        """The same requests at other times: int64 [N], ns, sorted. ``note`` joins the notes."""
        return replace(self, arrival_ns=arrival_ns, notes=self.notes + ((note,) if note else ()))


def _is(name: str, values: np.ndarray, kind: type, n: int) -> None:
    if values.shape != (n,) or values.dtype != kind:
        raise InputError(
            f"{name} is {values.dtype} {list(values.shape)}; it must be {np.dtype(kind)} [{n}]"
        )


def _in_range(name: str, tokens: Ints32) -> None:
    bad = np.flatnonzero((tokens < 1) | (tokens > MAX_TOKENS))
    if len(bad):
        raise InputError(
            f"request {bad[0]} has {tokens[bad[0]]} tokens of {name}; a request has 1 to {MAX_TOKENS:,}"
        )
