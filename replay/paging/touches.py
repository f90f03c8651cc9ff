"""Touches of managed memory whose pages are known: what one measurement has the GPU do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

PAGE, BIG, BLOCK = 4096, 64 << 10, 2 << 20
PAGES = BLOCK // PAGE
"""4 KiB pages of a 2 MiB VA block."""
NOTHING = 0xFFFFFFFF
"""A warp's turn in which it touches nothing."""


@dataclass(frozen=True)
class Touches:
    """Warps that read one byte each of given pages, in turns."""

    name: str
    pages: np.ndarray
    """uint32 [warps, turns]: page of the arena that a warp reads in a turn, `NOTHING` for none."""
    warps_per_block: int = 1
    """Warps of a thread block. With 1, as many SMs as there are warps (or all) take part."""
    chained: bool = True
    """A warp waits for its page before it asks for the next one; else several are asked for at once."""
    about: dict[str, int | str] = field(default_factory=dict)
    placed: np.ndarray | None = None
    """int64 [n, 2]: runs of pages (first, one past the last) that are on the GPU before."""

    @property
    def distinct(self) -> np.ndarray:
        """Pages touched, ascending."""
        return np.unique(self.pages[self.pages != NOTHING])

    @property
    def blocks(self) -> int:
        """2 MiB blocks touched."""
        return len(np.unique(self.distinct // PAGES))


def patterns(pages: int, sms: int, seed: int = 0) -> list[Touches]:
    """What is measured, in an arena of ``pages`` 4 KiB pages (a multiple of `PAGES`, 64 blocks or more)
    on a card of ``sms`` SMs: one page, chains, crowds, one block, strides, at random, dense, few SMs on
    many blocks and many on one."""
    rng = np.random.default_rng(seed)
    blocks = pages // PAGES
    first = np.arange(blocks, dtype=np.uint32) * PAGES
    made = [
        _one("one page", first[:1] + 5),
        _chain("chain, one page a block", first[:32] + 7),
        _chain("chain, 64 KiB steps in a block", first[1] + 16 * np.arange(32)),
        _chain("chain, all pages of a block", first[2] + np.arange(PAGES)),
    ]
    for n in (2, 4, 8, 16, 32, 64):
        if n <= blocks:
            made.append(_crowd(f"crowd, {n} blocks", first[:n, None] + 9))
    for n in (2, 4, 8, 16, 32):
        at = first[3] + 16 * rng.permutation(32)[:n]
        made.append(_crowd(f"crowd, {n} pages of a block", at[:, None]))
    for n in (1, 2, 4, 8):
        made.append(_holes(min(32, blocks), n))
    for n in (2, 8, 32, sms, 4 * sms):
        made.append(_crowd(f"{n} SMs on one page", np.full((n, 1), first[4] + 3)))
    made.append(_crowd(f"{sms} SMs on one block", _shares(first[5] + np.arange(PAGES), sms)))
    half = np.arange(pages // 2)
    for step, name in ((1, "4 KiB"), (16, "64 KiB"), (64, "256 KiB"), (PAGES, "2 MiB")):
        made.append(_wide(f"stride of {name}, wide", np.arange(0, pages, step)[: len(half)], sms))
    made += turns((32, sms, 4 * sms, 16 * sms), (8, 32, blocks - 2), min(40, blocks - 2))
    some = rng.choice(pages, min(pages // 16, 8192), replace=False)
    made += [
        _wide("one page in 16, at random, wide", some, sms),
        _wide("all pages, at random, wide", rng.permutation(pages), sms),
        _wide("in order, narrow", np.arange(pages // 8), 4),
        Touches(
            "4 warps over all blocks", _shares(first[rng.permutation(blocks)] + 11, 4),
            about={"kind": "few on many"},
        ),
    ]  # fmt: skip
    return made


def turns(shared: Sequence[int], own: Sequence[int], blocks: int) -> list[Touches]:
    """Crowds that go from block to block, ``blocks`` of them, where only their number differs:
    ``shared`` warps all want one page, or the pages of a block, or 16 pages of a block 128 KiB apart;
    or each of ``own`` warps has a block, and 64 KiB come into each at every turn."""
    made = []
    first = (np.arange(blocks) + 2) * PAGES
    for n in shared:
        warp = np.arange(n)[:, None]
        for name, at in (
            ("one page", np.full((n, 1), 5)), ("one block", warp % PAGES),
            ("16 pages of a block", 32 * (warp % 16)),
        ):  # fmt: skip
            made.append(_crowd(f"{n} warps in turns, {name}", first[None, :] + at))
            made[-1].about["turn"] = name
    apart = np.array([0, 256, 128, 384, 64, 320, 192, 448, 32, 288, 160, 416, 96, 352, 224, 480])
    for n in own:
        at = (np.arange(n)[:, None] + 1) * PAGES + apart[None, :]
        made.append(_crowd(f"{n} warps in turns, a block each", at))
        made[-1].about["turn"] = "a block each"
    return made


def _one(name: str, at: np.ndarray) -> Touches:
    return Touches(name, at.astype(np.uint32).reshape(1, 1))


def _chain(name: str, at: np.ndarray) -> Touches:
    return Touches(name, np.asarray(at, np.uint32).reshape(1, -1), about={"kind": "chain"})


def _crowd(name: str, at: np.ndarray) -> Touches:
    return Touches(name, np.asarray(at, np.uint32), about={"kind": "crowd"})


def _holes(blocks: int, n: int) -> Touches:
    """A page a block, where all but the first ``n`` pages of each 64 KiB are there: the tree brings
    what is missing, in copies of ``n`` pages."""
    big = np.arange(blocks * PAGES // 16, dtype=np.int64) * 16
    return Touches(
        f"holes of {4 * n} KiB, {blocks} blocks",
        (np.arange(blocks, dtype=np.uint32) * PAGES)[:, None], about={"kind": "holes"},
        placed=np.column_stack((big + n, big + 16)),
    )  # fmt: skip


def _shares(at: np.ndarray, warps: int) -> np.ndarray:
    """Pages dealt out to ``warps``, each a run of neighbours."""
    turns = -(-len(at) // warps)
    dealt = np.full(warps * turns, NOTHING, np.uint32)
    dealt[: len(at)] = at
    return dealt.reshape(warps, turns)


def _wide(name: str, at: np.ndarray, sms: int) -> Touches:
    """All SMs, 16 warps each, every warp its own run of neighbours in the list."""
    warps = min(16 * sms, max(len(at), 1))
    return Touches(
        name, _shares(np.asarray(at), warps), warps_per_block=16, chained=False,
        about={"kind": "wide"},
    )  # fmt: skip
