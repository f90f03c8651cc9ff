"""Host memory above a disk in a replay: which RAM slot each copy comes from, and the slots."""

from __future__ import annotations

import numpy as np

from replay.backend.base import DEMAND, PREFETCH, Backend, Memory
from replay.bank import Bank, stride
from replay.decide import CachePolicy, Fetch, Wave
from replay.digest import checksum
from replay.file_bank import FileBank
from replay.places import Slots
from replay.reader import ALIGN, FileRead, Reader
from traces.errors import InputError
from uvmsim.experts.decisions import Decisions, Served
from uvmsim.experts.ram import Ram, check_tier, policy_of
from uvmsim.machine.tier import MMAP
from uvmsim.runs.job import Job
from uvmsim.runs.plan import PREFETCH as AHEAD
from uvmsim.runs.plan import WRITEBACK


class TieredPolicy(CachePolicy):
    """An expert cache's decisions, and host memory's about the copies that follow."""

    def __init__(self, job: Job):
        """Raises `InputError`."""
        assert job.tier is not None
        check_tier(job)
        if job.tier.mode == MMAP:
            raise InputError(
                "mmap: no replay reads a mapped file; say mode=direct or mode=buffered", "tier"
            )
        super().__init__(job)
        if self.uses_cpu:
            raise InputError(
                ": the CPU computes misses from host memory, which may not hold them; leave it out",
                argument="tier",
            )
        self.ram = Ram(job, _stream(job) if "next_use" in policy_of(job).needs else None)

    def _follow(self, served: Served, waves: list[Wave]) -> None:
        before = len(waves)
        super()._follow(served, waves)
        kind = served.copy_kind
        down = np.flatnonzero(kind != WRITEBACK)
        found = self.ram.serve(
            served.copies_before + down, served.copy_expert[down], kind[down] == AHEAD
        )
        asks = np.isin(served.copies_before + down, found.copy)
        rows = zip(
            served.copy_expert[down].tolist(), served.copy_slot[down].tolist(),
            (kind[down] == AHEAD).tolist(), found.copy_slot.tolist(), asks.tolist(), strict=True,
        )  # fmt: skip
        fetches = [Fetch(e, s, PREFETCH if p else DEMAND, r, a) for e, s, p, r, a in rows]
        ends = np.searchsorted(down + served.copies_before, served.wave_copy_hi).tolist()
        at = 0
        for wave, end in zip(waves[before:], ends, strict=True):
            wave.fetches = fetches[at:end]
            at = end


def _stream(job: Job) -> np.ndarray:
    """All experts that will be copied, in order."""
    parts = Decisions(job).serve_all()
    return np.concatenate([p.copy_expert[p.copy_kind != WRITEBACK] for p in parts])


class RamSlots:
    """The slots of host memory, filled by a `Reader`."""

    def __init__(self, backend: Backend, bank: FileBank, ram: Ram, pinned: bool, reader: Reader):
        self.backend, self.bank, self.reader = backend, bank, reader
        self.stride = stride(max(bank.nbytes), ALIGN)
        n = ram.slots
        self.memory: Memory = backend.host(
            n * self.stride + ALIGN, f"{n} expert slots in host memory", pinned
        )
        first = -(-self.memory.ptr // ALIGN) * ALIGN
        self.ptrs = [first + i * self.stride for i in range(n)]
        self.holds = [-1] * n
        """By slot: the expert whose bytes it must hold once all reads are done."""
        self._held = ram.held.tolist()

    def warm(self) -> None:
        """Read what host memory holds before the first token."""
        reads = [self.read(e, slot) for slot, e in enumerate(self._held)]
        for read in reads:
            self.reader.wait(read)
            raise_if_failed(read)

    def read(self, expert: int, slot: int) -> FileRead:
        """Ask for an expert; nothing may still use the slot."""
        self.holds[slot] = expert
        at, nbytes = self.bank.place(expert)
        return self.reader.ask(FileRead(self.ptrs[slot], at, nbytes))

    def problems(self) -> list[str]:
        """Slots whose bytes are not those of the expert that they hold."""
        held = [(s, e) for s, e in enumerate(self.holds) if e >= 0]
        self.bank.learn(np.array([e for _, e in held], np.int64))
        ptrs, sizes = [self.ptrs[s] for s, _ in held], [self.bank.nbytes[e] for _, e in held]
        if self.memory.kind == "pinned":
            got = self.backend.checksums(ptrs, sizes)
        else:
            assert self.memory.array is not None
            base, array = self.memory.ptr, self.memory.array
            sums = [
                checksum(array[p - base : p - base + n]) for p, n in zip(ptrs, sizes, strict=True)
            ]
            got = np.array(sums, np.uint64)
        bad = np.flatnonzero(got != self.bank.sums[self.bank.image_of[[e for _, e in held]]])
        if not len(bad):
            return []
        slot, e = held[int(bad[0])]
        return [
            f"{len(bad)} of {len(held)} slots in host memory hold wrong bytes, first slot {slot} "
            f"(expert {e})"
        ]

    def close(self) -> None:
        """Stop reading, then give the memory back."""
        self.reader.close()
        self.backend.release(self.memory)


class FedSlots(Slots):
    """Slots in device memory that are filled from RAM slots, which go with them."""

    def __init__(self, backend: Backend, bank: Bank, n: int, job: Job, above: RamSlots):
        super().__init__(backend, bank, n, job)
        self.above = above

    def release(self) -> None:
        self.above.close()
        super().release()

    def move_from(self, ptr: int, expert: int, slot: int, stream: int) -> None:
        """Queue a copy of an expert whose bytes are at ``ptr``."""
        self.holds[slot] = expert
        self.backend.copy_in(self.ptrs[slot], ptr, self._nbytes[expert], stream)


def raise_if_failed(read: FileRead) -> None:
    """One line of a read that failed."""
    if read.error:
        raise InputError(read.error)
