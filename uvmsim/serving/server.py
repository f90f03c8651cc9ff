"""What serves: how many requests at once, and how many tokens a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.errors import InputError

SLOT_ORDER, ARRIVAL_ORDER = 0, 1
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Server:
    """A scheduler's parameters; `LLAMA` and `VLLM` are those of the programs.

    In each *iteration* every request that generates gets one token, then prompts fill what is left of
    ``batch`` tokens, in chunks. The iteration's tokens run in forward passes of up to ``ubatch``
    tokens; what they make comes out at the iteration's end. Requests wait in the order in which
    they were sent.
    """

    kind: str = "llama-server"
    slots: int = 1
    """Requests at once: llama-server's ``-np``, vLLM's ``--max-num-seqs``."""
    batch: int = 2048
    """Tokens an iteration: ``-b``, ``--max-num-batched-tokens``."""
    ubatch: int = 512
    """Tokens a forward pass: ``-ub``; vLLM runs an iteration in one."""
    kv_tokens: int = 0
    """Tokens the KV cache holds, 0: as many as come. A request is admitted when all its tokens,
    those to come too, have room; none is put out again."""
    max_concurrency: int = 0
    """Requests that the client has under way at most, 0: no limit. Waiting for it is not in a request's
    times, as in vLLM's client."""
    warmup: bool = True
    """The first request is sent once before the clock starts, as vLLM's client does."""
    breaks: tuple[int, ...] = ()
    """A prompt's chunk ends where so many tokens are left, largest first. llama-server stops there to
    keep a checkpoint of a cache that cannot be rolled back (sliding windows, recurrent layers):
    4 + ubatch and 4 tokens before the end (b11549, server-context.cpp), 64 in builds of late 2025."""

    def __post_init__(self) -> None:
        for name in ("slots", "batch", "ubatch"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)}: give 1 or more", argument=name)
        if any(b < 1 for b in self.breaks):
            raise InputError(f"{min(self.breaks)}: give 1 or more", argument="breaks")
        object.__setattr__(self, "breaks", tuple(sorted(set(self.breaks), reverse=True)))
        if self.batch < self.slots:
            raise InputError(
                f"{self.batch}: fewer tokens an iteration than the {self.slots} requests that may "
                "generate at once",
                argument="batch",
            )

    @property
    def order(self) -> int:
        """Whose tokens come first: llama-server goes through its slots, vLLM through arrivals."""
        return SLOT_ORDER if self.kind == "llama-server" else ARRIVAL_ORDER


KINDS = ("llama-server", "vllm")
SWA = frozenset(
    (
        "gpt-oss",
        "gemma2",
        "gemma3",
        "gemma3n",
        "cohere2",
        "llama4",
        "olmo2",
        "exaone4",
        "smallthinker",
    )
)
"""Architectures with sliding windows, whose caches llama.cpp cannot roll back."""


def server_of(
    kind: str, slots: int | None = None, batch: int | None = None, ubatch: int | None = None, *,
    kv_tokens: int = 0, max_concurrency: int = 0, warmup: bool = True,
    breaks: tuple[int, ...] | None = None, swa: bool = False,
) -> Server:  # fmt: skip
    """A server of ``kind`` with its program's defaults: llama-server ``-np 1 -b 2048 -ub 512``, vLLM
    256 sequences and 2,048 tokens; prompts of a llama-server break for checkpoints where the model has
    ``swa``. Raises `InputError`."""
    if kind not in KINDS:
        raise InputError(f"{kind}: must be {' or '.join(KINDS)}", argument="server")
    vllm = kind == "vllm"
    batch = 2048 if batch is None else batch
    if vllm and ubatch is not None:
        raise InputError(f"{ubatch}: vLLM has no micro-batches; give `batch`", argument="ubatch")
    ubatch = batch if vllm else min(512, batch) if ubatch is None else ubatch
    ubatch = min(ubatch, batch)
    if breaks is None:
        breaks = (4 + ubatch, 4) if swa and not vllm else ()
    return Server(
        kind, (256 if vllm else 1) if slots is None else slots, batch, ubatch,
        kv_tokens, max_concurrency, warmup, tuple(breaks),
    )  # fmt: skip
