"""Slots on one device with other devices' memory behind them: split ``pool`` of several GPUs.

Who leaves to where and who comes back is decided beforehand by `uvmsim.experts.second_tier`, in the
order of the run's copies. A wave's departures are queued before its returns, so behind the pool
there are as many places more as a wave may copy.
"""

from __future__ import annotations

from collections import deque

from replay.backend.base import BACK, PREFETCH, Backend, Memory
from replay.bank import Bank
from replay.places import Slots
from uvmsim.experts.second_tier import DROPPED, PEER, Tiers
from uvmsim.runs.job import Job
from uvmsim.runs.plan import WRITEBACK


class Tiered(Slots):
    """A miss comes from the host, or from the device that its expert left to."""

    def __init__(
        self, backend: Backend, bank: Bank, n: int, job: Job, others: list[Backend], tiers: Tiers
    ):
        """``others``: the devices behind; ``tiers``: of the run's copies."""
        super().__init__(backend, bank, n, job)
        self.moves_out = self.writes_back = True
        back = tiers.kind == WRITEBACK
        self._returns = deque((tiers.where[~back] == PEER).tolist())
        self._leaves = deque((tiers.where[back] != DROPPED).tolist())
        self._gone = deque(tiers.gone[back].tolist())
        each = -(-(tiers.places + tiers.widest) // len(others))
        self.behind: list[tuple[Backend, Memory]] = []
        self._free: deque[tuple[Backend, int]] = deque()
        for other in others:
            other.select()
            memory = other.device(each * self.stride, f"{each} expert places behind the pool")
            self.behind.append((other, memory))
            self._free.extend((other, memory.ptr + i * self.stride) for i in range(each))
        backend.select()
        self._read = dict(
            zip([p for _, p in self._free], backend.events(len(self._free)), strict=True)
        )
        """By place: its latest way back has been read."""
        self._at: dict[int, tuple[Backend, int]] = {}
        self.host_bytes, self.ahead_bytes, self.peer_bytes = 0, 0, 0

    def move_in(self, expert: int, slot: int, stream: int) -> None:
        n = self._nbytes[expert]
        if not self._returns.popleft():
            super().move_in(expert, slot, stream)
            self.host_bytes += n
            self.ahead_bytes += n if stream == PREFETCH else 0
            return
        other, place = self._at.pop(expert)
        self.holds[slot] = expert
        self.backend.hop(self.ptrs[slot], place, n, stream, other)
        self.backend.record(self._read[place], stream)
        self._free.append((other, place))
        self.peer_bytes += n

    def move_out(self, expert: int, slot: int) -> None:
        kept, gone = self._leaves.popleft(), self._gone.popleft()
        if gone >= 0:
            self._free.append(self._at.pop(gone))
        if not kept:
            return
        other, place = self._at[expert] = self._free.popleft()
        self.backend.wait(BACK, self._read[place])
        self.backend.push(place, self.ptrs[slot], self._nbytes[expert], BACK, other)
        self.peer_bytes += self._nbytes[expert]

    def release(self) -> None:
        super().release()
        self.backend.forget(list(self._read.values()))
        for other, memory in self.behind:
            other.select()
            other.release(memory)
        self.backend.select()
