"""The replay above a disk: real reads of real files, on the host backend."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routing import cases, generate, settings_for
from test_replay_order import Checked, Race

import uvmsim
from replay.backend.base import DEMAND, PREFETCH
from replay.backend.host import HostBackend
from replay.decide import Fetch
from replay.fetcher import Fetcher
from replay.file_bank import FileBank
from replay.ram import RamSlots
from replay.reader import ALIGN, FileRead, Reader
from replay.results import verified
from replay.session import How, Session
from replay.study import _compare_counters
from traces.errors import InputError
from uvmsim.machine.tier import Tier
from uvmsim.policies.registry import parse

HERE = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("disk")


def how_to(folder: Path, **more) -> How:
    return How(dtype="fp32", tier_file=folder, tier_threads=3, **more)


def tier_of(case, slots: int, text: str = "nvme:1GB/s,3us,qd=2") -> Tier:
    return Tier.parse(text, slots * max(case.expert_bytes))


@pytest.fixture(params=["prompt", "slow"])
def reads(request, monkeypatch):
    """Reads that take their time, so that copies wait and guesses are held back."""
    if request.param == "slow":
        plain = Reader._piece
        rng = np.random.default_rng(0)
        lock = threading.Lock()

        def piece(self, *what):
            with lock:
                late = rng.random() * 3e-4
            time.sleep(late)
            return plain(self, *what)

        monkeypatch.setattr(Reader, "_piece", piece)
    return request.param


def watched(self, expert, slot):
    """`RamSlots.read` that proves that every copy out of the slot was over, by what the host knows."""
    b, ptr, n = self.backend, self.ptrs[slot], self.stride
    for lo, hi, _, stream, tick in getattr(b, "seen", ()):
        if lo < ptr + n and ptr < hi and b.host_clock[stream] < tick:
            raise Race(f"slot {slot} is read into while stream {stream} copies from it")
    return UNWATCHED(self, expert, slot)


UNWATCHED = RamSlots.read


@HERE
@given(data=st.data())
def test_any_run_is_the_simulators_and_never_races(data, folder, reads):
    case = data.draw(cases(max_decode=6))
    how = data.draw(settings_for(case, units=("event",))) | {"write_back": False}
    policy = data.draw(st.sampled_from(("lru", "lru+previous-token", "mru+next-layer", "random")))
    slots = data.draw(st.integers(1, len(case.layers) * case.n_experts))
    below = data.draw(st.sampled_from(("lru", "belady", "gdsf", "lfu")))
    mode = data.draw(st.sampled_from(("direct", "buffered")))
    start = data.draw(st.sampled_from(("warm", "cold")))
    depth = data.draw(st.integers(1, 3))
    tier = tier_of(case, slots, f"nvme:1GB/s,3us,qd={depth},mode={mode},start={start}")
    job = case.job(policy, tier=tier, tier_policy=parse(below), **how)
    pace = how_to(folder, detail=data.draw(st.booleans()))
    RamSlots.read = watched
    try:
        with Session(Checked(shuffle=data.draw(st.sampled_from((None, 3)))), pace) as session:
            run = session.run(job)
    finally:
        RamSlots.read = UNWATCHED
    _compare_counters(run)
    assert run.problems == [] and verified(run)
    row = run.to_json()
    assert row["ram"]["disk_reads"] + row["ram"]["hits"] == row["ram"]["lookups"]


def test_the_file_is_written_once(folder):
    case = generate(3, decode=6)
    job = case.job("lru", slots=6, tier=tier_of(case, 4))
    with Session(HostBackend(), how_to(folder)) as session:
        session.run(job)
        (bank,) = session._banks.values()
        assert isinstance(bank, FileBank)
        before = bank.path.stat().st_mtime_ns
    with Session(HostBackend(), how_to(folder)) as session:
        assert verified(session.run(job))
    assert bank.path.stat().st_mtime_ns == before
    assert not list(folder.glob("*.partial"))


def one_line(folder, **more) -> str:
    case = generate(3, decode=6, experts=7)
    job = case.job("lru", slots=6, tier=tier_of(case, 4), seed=5)
    with (
        Session(HostBackend(), how_to(folder, **more)) as session,
        pytest.raises(InputError) as err,
    ):
        session.run(job)
    assert "\n" not in str(err.value)
    assert not list(folder.iterdir())
    return str(err.value)


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert "0 B free" in one_line(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_writing_that_fails_leaves_nothing(tmp_path, monkeypatch, code):
    def pwrite(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert os.strerror(code) in one_line(tmp_path)


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def pwrite(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", pwrite)
    case = generate(3, decode=6)
    job = case.job("lru", slots=6, tier=tier_of(case, 4), seed=5)
    with pytest.raises(KeyboardInterrupt), Session(HostBackend(), how_to(tmp_path)) as session:
        session.run(job)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused(tmp_path):
    case = generate(3, decode=6)
    job = case.job("lru", slots=6, tier=tier_of(case, 4))
    with Session(HostBackend(), how_to(tmp_path)) as session:
        session.run(job)
    (file,) = tmp_path.iterdir()
    with file.open("r+b") as f:
        f.write(b"\xff" * 64)
    with pytest.raises(InputError, match="remove it"):
        Session(HostBackend(), how_to(tmp_path)).run(job)


@pytest.mark.parametrize("wrong", ["fails", "short", "corrupts"])
def test_a_read_that_goes_wrong_voids_the_run(folder, monkeypatch, wrong):
    plain, calls = os.preadv, []

    def preadv(file, buffers, at):
        got = plain(file, buffers, at)
        if threading.current_thread() is threading.main_thread():
            return got
        calls.append(at)
        if len(calls) == 9:
            if wrong == "fails":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if wrong == "short":
                return 0
            np.frombuffer(buffers[0], np.uint8)[:8] ^= 1
        return got

    case = generate(3, decode=9)
    job = case.job("lru", slots=6, tier=tier_of(case, 4))
    with Session(HostBackend(), how_to(folder)) as session:
        session.run(job)
        monkeypatch.setattr(os, "preadv", preadv)
        if wrong == "corrupts":
            assert session.run(job).problems
        else:
            with pytest.raises(InputError, match=r"Input/output error|ends at byte"):
                session.run(job)


def test_no_direct_reads_is_one_line(folder, monkeypatch):
    plain = os.open

    def no_direct(path, flags, *more, **kw):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain(path, flags, *more, **kw)

    monkeypatch.setattr(os, "open", no_direct)
    case = generate(3, decode=6)
    with Session(HostBackend(), how_to(folder)) as session:
        with pytest.raises(InputError, match="mode=buffered"):
            session.run(case.job("lru", slots=6, tier=tier_of(case, 4)))
        buffered = tier_of(case, 4, "nvme:1GB/s,3us,mode=buffered")
        assert verified(session.run(case.job("lru", slots=6, tier=buffered)))


def test_pieces_come_in_order(tmp_path):
    file = tmp_path / "file"
    data = np.random.default_rng(0).integers(0, 256, 5 << 20, np.uint8)
    file.write_bytes(data.tobytes())
    room = np.zeros(len(data) + ALIGN, np.uint8)
    start = -room.ctypes.data % ALIGN
    with Reader(file, direct=True, threads=4) as reader:
        size = 2 * len(data) // 5 // ALIGN * ALIGN
        read = [
            reader.ask(FileRead(room.ctypes.data + start + at, at, min(size, len(data) - at)))
            for at in range(0, len(data), size)
        ]
        for one in read:
            reader.wait(one)
        assert reader.bytes == len(data) and reader.reads == len(read)
    assert np.array_equal(room[start : start + len(data)], data)


def test_the_study_compares_what_was_read(tmp_path):
    s = uvmsim.Scenario(
        slots="25%", policies=["lru", "layer-lru+next-layer"], limit=12, ram="3MiB",
        tier="nvme:1GB/s,80us,mode=buffered",
    )  # fmt: skip
    result = uvmsim.replay(s, backend="host", how=How(tier_file=str(tmp_path)))
    assert not result.problems
    assert all(row["ram"]["disk_reads"] > 0 for row in result.to_json()["runs"])
    with pytest.raises(InputError, match="DIR"):
        uvmsim.replay(s, backend="host")
    with pytest.raises(InputError, match="mapped file"):
        uvmsim.replay(
            s.with_(tier="nvme:1GB/s,80us,mode=mmap"), backend="host", how=How(tier_file=tmp_path)
        )
    with pytest.raises(InputError, match="is where a `tier` is"):
        uvmsim.replay(s.with_(ram=None, tier=None), backend="host", how=How(tier_file=tmp_path))


class Scripted:
    """RAM slots, device slots and a reader in one, which arrive when the test says so."""

    def __init__(self, lands_after: int):
        self.ptrs, self.reader, self.bank, self.nbytes = [0, 1, 2], self, self, [1] * 9
        self.lands_after, self.asked, self.log = lands_after, [], []

    def read(self, expert, slot):
        self.log.append(f"read {expert}")
        self.asked.append(FileRead(0, 0, 0))
        return self.asked[-1]

    def wait(self, read=None, seconds=None):
        self.lands_after -= 1
        if self.lands_after <= 0 and self.asked:
            self.asked.pop(0).done = True

    def move_from(self, ptr, expert, slot, stream):
        self.log.append(f"copy {expert} to {slot}")


def test_a_miss_follows_a_guess_that_is_held_back_in_its_slot():
    """Expert 7 is guessed into slot 0 and lost before it has been read; 8, in host memory, follows."""
    s, b = Scripted(3), HostBackend()
    fetcher = Fetcher(b, s, s, b.events(4), 2)
    fetcher.ask([Fetch(7, 0, PREFETCH, 0, True)])
    fetcher.pump()
    fetcher.ask([Fetch(8, 0, DEMAND, 1, False), Fetch(6, 1, DEMAND, 2, False)])
    fetcher.demanded()
    assert s.log == ["read 7", "copy 7 to 0", "copy 8 to 0", "copy 6 to 1"]


def test_a_copy_from_memory_passes_one_that_is_read():
    s, b = Scripted(2), HostBackend()
    fetcher = Fetcher(b, s, s, b.events(4), 1)
    fetcher.ask([
        Fetch(5, 2, PREFETCH, 2, True), Fetch(7, 0, DEMAND, 0, True), Fetch(8, 1, DEMAND, 1, False),
    ])  # fmt: skip
    fetcher.demanded()
    fetcher.finish()
    assert s.log == ["copy 8 to 1", "read 7", "read 5", "copy 7 to 0", "copy 5 to 2"] or s.log == [
        "copy 8 to 1", "read 7", "copy 7 to 0", "read 5", "copy 5 to 2",
    ]  # fmt: skip
    assert fetcher.done == 2 and fetcher.disk_ns > 0
