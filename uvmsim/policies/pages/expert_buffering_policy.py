"""Classes of blocks from a table."""

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from traces.errors import InputError
from uvmsim.policies.pages.base import (
    BYPASS,
    DEFAULT,
    PagePolicy,
    choice,
    move_head,
    move_tail,
)

ENTRIES = 65536
MODES = ("protect", "page_lifo", "hot_lifo", "observe")
PROTECT, OBSERVE = 0, 3
UNKNOWN, SHARED, HOT, COLD = 0, 1, 2, 3


class State(NamedTuple):
    kind: np.ndarray  # uint8 [65536]: class of a block
    mode: np.ndarray  # int64 [1]
    uses: np.ndarray  # int64 [4]: accesses by class


class ExpertBufferingPolicy(PagePolicy):
    """Shared and hot blocks to the tail, cold ones to the head, by a table (.npy of uint8)."""

    name: ClassVar[str] = "expert_buffering_policy"
    source: ClassVar[str] = "eunomia-bpf/gpu_ext extension/expert_buffering_policy.bpf.c (2026)"
    mode: str = "protect"
    table: str = ""

    def state(self, ctx):
        kind = np.zeros(ENTRIES, np.uint8)
        if not Path(self.table).is_file():
            raise InputError(
                f"policy {self.name!r}: table={self.table!r}: no such file; it needs a .npy of one "
                "class a block: 0 unknown, 1 shared, 2 hot, 3 cold"
            )
        try:
            given = np.load(self.table, allow_pickle=False)
        except (ValueError, OSError, EOFError) as err:
            raise InputError(f"policy {self.name!r}: table={self.table!r}: {err}") from err
        if given.dtype != np.uint8 or given.ndim != 1 or (given > COLD).any():
            raise InputError(
                f"policy {self.name!r}: table={self.table!r}: expected one dimension of uint8, 0 to 3"
            )
        kind[: len(given)] = given[:ENTRIES]
        mode = choice(self, "mode", MODES)
        return State(kind, np.array([mode], np.int64), np.zeros(4, np.int64))

    @staticmethod
    def block_access(s, d, chunk):
        block = d.block_of[chunk]
        kind = s.kind[block] if block < ENTRIES else UNKNOWN
        s.uses[kind] += 1
        if s.mode[0] == OBSERVE or kind == UNKNOWN or (kind == COLD and s.mode[0] == PROTECT):
            return DEFAULT
        if kind == COLD:
            move_head(d, chunk)
        else:
            move_tail(d, chunk)
        return BYPASS
