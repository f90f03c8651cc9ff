"""Runs that share a device and an expert bank: pinning memory is slow, so it is done once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from replay.backend.base import BACK, DEMAND, PREFETCH, X_ROWS, Backend
from replay.bank import DEFAULT_LIMIT as DEFAULT_LIMIT
from replay.bank import Bank
from replay.checks import check
from replay.decide import AllResident, CachePolicy, OneByOne, Waves
from replay.dense_reads import DenseReads
from replay.executor import Executor, Pace, most_rows
from replay.file_bank import DEFAULT_BYTES, FileBank
from replay.how import How
from replay.layout import ExpertLayout, dtype_of, layout_for
from replay.modes import mode_named
from replay.on_cpu import OnCpu
from replay.places import Managed, Places, Remote, Slots
from replay.ram import FedSlots, RamSlots, TieredPolicy
from replay.reader import THREADS, Reader
from replay.results import Moved, Replayed, begun
from replay.several import run_joint
from replay.tiered import TieredExecutor
from traces.errors import InputError
from uvmsim.machine.model import Model
from uvmsim.machine.tier import DIRECT
from uvmsim.mechanisms import planned
from uvmsim.mechanisms.hybrid import split_of
from uvmsim.policies.registry import PolicySpec, chooses
from uvmsim.runs.job import DoesNotFit, Job
from uvmsim.runs.outcome import Outcome
from uvmsim.studies.simulate import on_gpus

MANAGED_CAP = 8 << 30
"""Managed bytes that are never exceeded without the explicit word of the user."""


class Session:
    """An open backend with the banks it has filled. Close it, or use ``with``."""

    def __init__(self, backend: Backend, how: How | None = None):
        self.backend, self.how = backend, how or How()
        self._banks: dict[tuple[Any, ...], Bank] = {}
        self._prepared: dict[int, tuple[Any, ...]] = {}
        """By device: what was prepared last."""
        self._x = np.zeros((X_ROWS, 0), np.float32)
        self._others: list[Backend] = []
        """More devices that runs on several have asked for, open."""
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Entered around each run's own work, without what prepares and checks it."""

    def __enter__(self) -> Session:
        self.backend.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release banks, buffers and the device."""
        self._banks.clear()
        for other in self._others:
            other.close()
        self._others = []
        self.backend.close()

    def devices(self, n: int) -> list[Backend]:
        """The session's device and more of the machine. Raises `InputError` where there are fewer."""
        if len(self._others) < n - 1:
            for other in self._others:
                other.close()
            self._others = self.backend.several(n)[1:]
            self._prepared = {k: v for k, v in self._prepared.items() if not k}
        return [self.backend, *self._others[: n - 1]]

    def run(self, job: Job, mode: str = "expert-cache", how: How | None = None) -> Outcome:
        """Replay one job and check it. Raises `InputError` for what the user can mend.

        An outcome with ``problems`` is void; they say why.
        """
        mode = mode_named(mode)
        how = how or self.how
        if how.split < 1:
            raise InputError(f"{how.split}: give a number of parts from 1 up", argument="split")
        try:
            return self._run(job, mode, how)
        except self.backend.errors as err:
            raise InputError(
                f"replay, mode {mode}: the device reports {err}; the run is void"
            ) from err

    def _run(self, job: Job, mode: str, how: How) -> Outcome:
        machine = self.backend.machine()
        result = begun(job, mode, machine)
        try:
            if job.gpus > 1:
                on_gpus(job, mode)
                return run_joint(self, job, how, result)
            _check_fits(job, mode)
            decisions = _decisions(job, mode)
        except DoesNotFit as err:
            result.does_not_fit = err
            return result
        # A policy's hooks are compiled at their first call, which may take seconds: not in the run.
        next(iter(_decisions(job, mode).steps()), None)
        bank = self._file_bank(job, how) if job.tier else self.bank(job, mode, how)
        self.prepare(self.backend, job, bank.layouts)
        used = np.unique(job.workload.ids)
        bank.learn(used)
        dense = DenseReads(self.backend, job, remote=mode == "zero-copy")
        try:
            places = self._places(job, mode, how, bank, decisions)
            on_cpu = OnCpu(self.backend, job, bank, self._x) if decisions.uses_cpu else None
            try:
                if on_cpu:
                    on_cpu.learn(used)
                pace = Pace(how.ahead, how.detail)
                made = TieredExecutor if job.tier else Executor
                executor = made(self.backend, job, bank, places, decisions, dense, pace, on_cpu)
                with self.around():
                    measured = executor.run()
                result.problems = check(self.backend, job, bank, places, used, executor)
            finally:
                places.release()
                if on_cpu:
                    on_cpu.release()
        finally:
            dense.release()
        result.counters = decisions.counters()
        result.slots = decisions.slots if mode != "zero-copy" else 0
        result.notes = decisions.notes
        if bank.shared:
            result.notes.append(
                f"{len(bank.nbytes)} experts share {len(bank.offsets)} images of bytes in host memory"
            )
        layout = bank.layouts[0]
        options = {
            "dtype": layout.dtype, "n_embd": layout.n_embd, "n_ff": layout.n_ff,
            "split": how.split, "ahead": how.ahead, "host_memory": bank.kind,
            "bank_bytes": bank.whole_bytes, "shared_images": bank.shared,
        }  # fmt: skip
        if on_cpu:
            options |= on_cpu.about()
        result.step_ns = measured.step_ns
        cpu_ns = on_cpu.ns if on_cpu else 0
        moved = _moved(job, mode, executor)
        result.trail = Replayed(measured, moved, options, cpu_ns)
        if isinstance(executor, TieredExecutor):
            options["threads"] = how.tier_threads or THREADS
            ram, disk_ns = executor.told(), executor.fetcher.disk_ns
            result.trail = Replayed(measured, moved, options, cpu_ns, ram, disk_ns)
        return result

    # ---- parts ----------------------------------------------------------------------------------

    def bank(self, job: Job, mode: str, how: How) -> Bank:
        """All experts' bytes in host memory, made once for runs that are alike."""
        kind = "managed" if mode == "managed" else "pinned" if job.pinned else "pageable"
        layouts = layouts_of(job.model, how.dtype)
        key = (kind, tuple(layouts), job.workload.n_experts, job.seed, how.bank_limit)
        if key not in self._banks:
            if kind == "managed":
                self._check_managed(job, how)
            # One bank at a time: two of a model's size rarely fit into host memory.
            for old in self._banks.values():
                old.release()
            self._banks = {}
            limit = 1 << 62 if kind == "managed" else how.bank_limit
            self._banks[key] = Bank(
                self.backend, layouts, job.workload.n_experts,
                seed=job.seed, kind=kind, limit=limit,
            )  # fmt: skip
        return self._banks[key]

    def _file_bank(self, job: Job, how: How) -> FileBank:
        if how.tier_file is None:
            raise InputError(": give a folder on that disk, too: `tier_file` DIR", argument="tier")
        if how.split != 1:
            raise InputError(
                f"{how.split}: experts above a disk are copied whole", argument="split"
            )
        layouts, folder = layouts_of(job.model, how.dtype), Path(how.tier_file)
        limit = DEFAULT_BYTES if how.tier_bytes is None else how.tier_bytes
        key = ("file", tuple(layouts), job.workload.n_experts, job.seed, limit, folder)
        if key not in self._banks:
            for old in self._banks.values():
                old.release()
            self._banks = {}
            self._banks[key] = FileBank(
                self.backend, layouts, job.workload.n_experts, folder, seed=job.seed,
                limit=limit,
            )  # fmt: skip
        bank = self._banks[key]
        assert isinstance(bank, FileBank)
        return bank

    def _above_disk(self, job: Job, how: How, bank: Bank, decisions: Waves) -> RamSlots:
        """Host memory's slots, filled with what they hold before the first token."""
        assert isinstance(bank, FileBank) and isinstance(decisions, TieredPolicy)
        assert job.tier is not None
        reader = Reader(bank.path, job.tier.mode == DIRECT, how.tier_threads or THREADS)
        try:
            above = RamSlots(self.backend, bank, decisions.ram, job.pinned, reader)
            above.warm()
        except BaseException:
            reader.close()
            raise
        return above

    def _check_managed(self, job: Job, how: How) -> None:
        needed = sum(job.model.expert_bytes) * job.workload.n_experts
        free, _ = self.backend.memory_info()
        safe = min(free // 2, MANAGED_CAP)
        if needed > safe and not how.managed_at_own_risk:
            raise InputError(
                f"managed: {needed:,} bytes of managed memory are more than the safe {safe:,} (half of "
                "what the card has free, at most 8 GiB); give a smaller `expert_size`, or read "
                "about `managed_at_own_risk`"
            )

    def prepare(
        self, backend: Backend, job: Job, layouts: list[ExpertLayout], device: int = 0
    ) -> None:
        """Kernels, inputs and buffers of a run on ``backend``, the ``device``-th of the session."""
        w = job.workload
        rows, accesses = most_rows(job), max(len(w.ids), X_ROWS)
        key = (tuple(layouts), rows, accesses, job.seed)
        if key != self._prepared.get(device):
            width = max(x.n_embd for x in layouts)
            rng = np.random.default_rng([job.seed, 1])
            self._x = rng.uniform(-1, 1, (X_ROWS, width)).astype(np.float32)
            backend.prepare(list(dict.fromkeys(layouts)), self._x, rows, accesses)
            self._prepared[device] = key

    def _places(self, job: Job, mode: str, how: How, bank: Bank, decisions: Waves) -> Places:
        if mode == "zero-copy":
            return Remote(bank)
        if mode == "managed":
            return Managed(self.backend, bank, how.managed_on_demand, how.advice)
        if job.tier:
            n = decisions.slots + decisions.beside
            return FedSlots(self.backend, bank, n, job, self._above_disk(job, how, bank, decisions))
        slots = Slots(self.backend, bank, decisions.slots + decisions.beside, job, how.split)
        if mode == "resident":
            slots.load_all()
        return slots


def layouts_of(model: Model, dtype: str | None = None) -> list[ExpertLayout]:
    """One layout a MoE layer; ``dtype`` None: as the model is stored, where there is a kernel."""
    kind = dtype or dtype_of(model.quantisation)
    return [layout_for(n, kind, model.n_embd, model.n_ff_expert) for n in model.expert_bytes]


def run(
    job: Job, mode: str = "expert-cache", backend: str | Backend = "cuda", how: How | None = None
) -> Outcome:
    """One replay with everything made for it and released after it."""
    if isinstance(backend, str):
        from replay.backend import backend as named

        backend = named(backend)
    with Session(backend, how) as session:
        return session.run(job, mode)


def _check_fits(job: Job, mode: str) -> None:
    """`DoesNotFit` by the simulator's own rules."""
    if mode == "managed" and isinstance(job.policy, PolicySpec) and chooses(job.policy):
        raise InputError(
            f"managed: the driver brings what a kernel reads, and policy {job.policy.name} would keep "
            "misses out; replay it in mode expert-cache"
        )
    if mode in ("resident", "stream"):
        planned(mode).plan(job)


def _decisions(job: Job, mode: str) -> Waves:
    made: dict[str, Callable[[Job], Waves]] = {
        "expert-cache": lambda j: TieredPolicy(j) if j.tier else CachePolicy(j),
        "hybrid": lambda j: CachePolicy(j, split_of(j)),
        "resident": AllResident,
        "zero-copy": lambda j: AllResident(j, hits=False),
        "stream": OneByOne,
        "managed": lambda j: CachePolicy(j) if j.policy else AllResident(j),
    }
    return made[mode](job)


def _moved(job: Job, mode: str, executor: Executor) -> Moved:
    w, m = job.workload, job.model
    moved = Moved(*(executor.bytes[s] for s in (DEMAND, PREFETCH, BACK)))
    if mode == "zero-copy":
        size = np.asarray(m.expert_bytes, np.int64)
        moved.zero_copy = int(size[w.ids // w.n_experts].sum()) + w.n_steps * m.resident_bytes
    return moved
