"""Run tokens through a context as llama-bench does, with as little Python between them as can be."""

from __future__ import annotations

import ctypes as C
import time
from typing import Any

import numpy as np

from replay.llama_cpp.request import Test
from traces.capture.libllama import Batch, LlamaContext
from traces.errors import InputError


class Runner:
    """Runs tokens through a context with as little Python between them as can be."""

    def __init__(self, context: LlamaContext, seed: int) -> None:
        self.context, self.seed = context, seed
        self.c, self.handle = context.model.library.c, context.handle
        c = self.c
        c.llama_get_memory.restype, c.llama_get_memory.argtypes = C.c_void_p, (C.c_void_p,)
        c.llama_memory_clear.restype, c.llama_memory_clear.argtypes = None, (C.c_void_p, C.c_bool)
        c.llama_memory_seq_rm.restype = C.c_bool
        c.llama_memory_seq_rm.argtypes = (C.c_void_p, C.c_int32, C.c_int32, C.c_int32)
        self.memory = c.llama_get_memory(self.handle)

    def tokens(self, n: int, salt: int) -> np.ndarray:
        """int32 [n]: uniformly random token ids."""
        rng = np.random.Generator(np.random.PCG64([self.seed, salt]))
        return rng.integers(0, self.context.model.n_vocab, n, dtype=np.int32)

    def batch(self, tokens: np.ndarray, start: int) -> tuple[Batch, list[np.ndarray]]:
        n = len(tokens)
        keep = [
            tokens, np.arange(start, start + n, dtype=np.int32), np.ones(n, np.int32),
            np.zeros(n, np.int32), np.zeros(n, np.int8),
        ]  # fmt: skip
        keep[4][-1] = 1  # the last token alone asks for logits, as llama_batch_get_one does
        pointers = keep[3].ctypes.data + 4 * np.arange(n, dtype=np.uint64)
        at = [a.ctypes.data for a in keep]
        return Batch(n, at[0], None, at[1], at[2], pointers.ctypes.data, at[4]), [*keep, pointers]

    def decode(self, batch: Batch) -> None:
        code = self.c.llama_decode(self.handle, batch)
        if code:
            why = self.context.model.library.last_error()
            raise InputError(f"llama_decode failed with code {code}: {why}")

    def prompt(self, n: int, salt: int = 0) -> int:
        """Run ``n`` tokens from an empty context, ``n_batch`` at a time; nanoseconds."""
        self.c.llama_memory_clear(self.memory, False)
        tokens, size = self.tokens(n, salt), 2048
        made = [self.batch(tokens[i : i + size].copy(), i) for i in range(0, n, size)]
        begin = time.perf_counter_ns()
        for batch, _ in made:
            self.decode(batch)
        self.c.llama_synchronize(self.handle)
        return time.perf_counter_ns() - begin

    def generate(self, n: int, start: int, salt: int) -> int:
        """Run ``n`` tokens one by one from position ``start``; nanoseconds."""
        tokens = self.tokens(n, salt)
        batch, keep = self.batch(tokens[:1].copy(), start)
        token, pos = keep[0], keep[1]
        begin = time.perf_counter_ns()
        for i in range(n):
            token[0], pos[0] = tokens[i], start + i
            self.decode(batch)
            self.c.llama_synchronize(self.handle)
        return time.perf_counter_ns() - begin

    def test(self, t: Test) -> dict[str, Any]:
        """``ns`` of each repetition, after one that is not timed."""
        ns: list[int] = []
        begin = time.monotonic()
        if t.kind == "tg" and t.depth:
            self.prompt(t.depth)
        for rep in range(-1, t.reps):
            if rep > 0 and t.seconds and time.monotonic() - begin > t.seconds:
                break
            if t.kind == "pp":
                took = self.prompt(t.n, salt=rep + 1)
            else:
                self.c.llama_memory_seq_rm(self.memory, 0, t.depth, -1)
                took = self.generate(t.n if rep >= 0 else min(t.n, 8), t.depth, salt=1000 + rep)
            if rep >= 0:
                ns.append(took)
        return {"name": t.name, "kind": t.kind, "n": t.n, "depth": t.depth, "ns": ns}
