"""Where kernels find an expert's bytes, and what moves when it gains or loses its slot: one class a
mode."""

from __future__ import annotations

import numpy as np

from replay.backend.base import ADVICE, BACK, COMPUTE, DEMAND, PREFETCH, Backend
from replay.bank import Bank, stride
from traces.errors import InputError
from uvmsim.runs.job import Job


class Places:
    """Base: nothing ever moves and nothing is written back."""

    moves_out = False
    """Whether `move_out` does anything."""
    writes_back = False
    """Whether a slot may only be filled again when that is done."""

    by_slot: bool
    """Whether `table` goes by slot or by expert."""
    table: np.ndarray
    """uint64: where each is read."""

    def move_in(self, expert: int, slot: int, stream: int) -> None:
        """Queue filling a slot."""

    def move_part(self, expert: int, slot: int, at: int, n: int, stream: int) -> None:
        """Queue filling ``n`` bytes of a slot, from byte ``at``; only where slots are filled by
        copies (`by_slot`)."""
        raise NotImplementedError

    def move_out(self, expert: int, slot: int) -> None:
        """Queue an expert's way out of its slot, on ``BACK``."""

    def release(self) -> None:
        """Give memory back; all work is done."""


class Slots(Places):
    """Plain device memory; experts are copied in and, with write-back, out again."""

    by_slot = True

    def __init__(self, backend: Backend, bank: Bank, n: int, job: Job, split: int = 1):
        self.backend, self.bank, self.split = backend, bank, split
        self.moves_out = self.writes_back = job.write_back
        self.stride = stride(max(bank.nbytes))
        self.memory = backend.device(n * self.stride, f"pool of {n} expert slots")
        self.ptrs = [self.memory.ptr + i * self.stride for i in range(n)]
        self.table = np.array(self.ptrs, np.uint64)
        self._src, self._nbytes = bank.ptrs, bank.nbytes
        self.holds = [-1] * n
        """By slot: the expert whose bytes it must hold once all work is done."""

    def move_in(self, expert: int, slot: int, stream: int) -> None:
        n, dst, src = self._nbytes[expert], self.ptrs[slot], self._src[expert]
        self.holds[slot] = expert
        if self.split == 1:
            self.backend.copy_in(dst, src, n, stream)
            return
        part = stride(-(-n // self.split))
        for at in range(0, n, part):
            self.backend.copy_in(dst + at, src + at, min(part, n - at), stream)

    def move_part(self, expert: int, slot: int, at: int, n: int, stream: int) -> None:
        self.holds[slot] = expert
        self.backend.copy_in(self.ptrs[slot] + at, self._src[expert] + at, n, stream)

    def move_out(self, expert: int, slot: int) -> None:
        self.backend.copy_out(self._src[expert], self.ptrs[slot], self._nbytes[expert], BACK)

    def load_all(self) -> None:
        """Fill slot i with expert i, before the run."""
        for e in range(len(self.ptrs)):
            self.move_in(e, e, DEMAND)
        self.backend.synchronise()

    def release(self) -> None:
        self.backend.release(self.memory)


class Remote(Places):
    """Kernels read the bank in host memory, across the link, every time."""

    by_slot = False

    def __init__(self, bank: Bank):
        if bank.kind == "pageable":
            raise InputError("zero-copy reads pinned host memory; leave out `pageable`")
        self.table = np.array(bank.ptrs, np.uint64)


class Managed(Places):
    """Kernels read managed memory, which the driver pages in on faults.

    The policy acts on it: a prefetch policy by prefetching to the device, the budget by prefetching
    what leaves to the host. ``on_demand``: a miss is prefetched too, instead of faulted.
    """

    by_slot = False
    moves_out = writes_back = True

    def __init__(self, backend: Backend, bank: Bank, on_demand: bool, advice: str | None):
        self.backend, self.on_demand = backend, on_demand
        self._ptrs, self._nbytes = bank.ptrs, bank.nbytes
        self.table = np.array(bank.ptrs, np.uint64)
        whole = bank.memory
        if advice is not None and advice not in ADVICE:
            raise InputError(f"{advice}: must be one of {', '.join(ADVICE)}", argument="advice")
        # The host wrote the bank: its pages are there. Say so, for what was read back meanwhile.
        backend.migrate(whole.ptr, whole.nbytes, False, COMPUTE)
        backend.synchronise()
        if advice is not None:
            backend.advise(whole.ptr, whole.nbytes, advice)

    def move_in(self, expert: int, slot: int, stream: int) -> None:
        if stream == PREFETCH or self.on_demand:
            self.backend.migrate(self._ptrs[expert], self._nbytes[expert], True, stream)

    def move_out(self, expert: int, slot: int) -> None:
        self.backend.migrate(self._ptrs[expert], self._nbytes[expert], False, BACK)
