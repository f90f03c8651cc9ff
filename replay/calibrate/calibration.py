"""The whole calibration: every stage in turn, none of which may stop the others."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from replay.calibrate.cpu import cpu_reads
from replay.calibrate.cpu_kernels import TABLE, cpu_expert_rows
from replay.calibrate.disk import DISK, check_folder, disk_rows
from replay.calibrate.engine_fit import engine_runs, fit
from replay.calibrate.kernels import kernel_rows
from replay.calibrate.policy_rows import TABLE as POLICIES
from replay.calibrate.policy_rows import policy_rows
from replay.calibrate.probe import FULL, QUICK, Effort, GiB, MiB, NotHere, Probe
from replay.calibrate.profile import FINDERS, Measurements
from replay.calibrate.uvm_mode import UVM, uvm_runs
from replay.calibrate.uvm_mode import fit as fit_uvm
from replay.paging.stage import DEVICE, OUT, PAGING, open_device, paging_tables
from replay.paging.uvm_table import table
from traces.errors import InputError

BACKENDS = ("cuda", "host")
Progress = Callable[[int, int, str], None]


def open_probe(backend: str, effort: Effort) -> Probe:
    """The probe of that name. Raises `InputError`."""
    if backend == "cuda":
        from replay.calibrate.cuda import CudaProbe

        return CudaProbe(effort)
    if backend == "host":
        from replay.calibrate.host import HostProbe

        return HostProbe(effort)
    raise InputError(f"--backend {backend}: must be {' or '.join(BACKENDS)}")


def calibrate(
    backend: str = "cuda",
    *,
    quick: bool | None = None,
    engine: bool = True,
    without: Collection[str] = (),
    all_policies: bool = False,
    disk: str | Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Measurements:
    """Measure this machine. A stage that fails leaves its reason in `Measurements.errors`.

    ``quick`` (default: with the host backend) takes small sizes and few repetitions; ``engine`` runs
    the replay engine on synthetic routing and fits the constants of the time model to it; ``without``:
    stages that are left out, what they would have found then being the base profile's;
    ``all_policies``: the host time of every policy, not only of the usual ones; ``disk``: a folder on
    a disk to measure.
    Raises `InputError` where there is nothing to measure.
    """
    quick = backend == "host" if quick is None else quick
    effort = QUICK if quick else FULL
    folder = None if disk is None else check_folder(disk, quick)
    probe = open_probe(backend, effort)
    machine = probe.machine()
    machine["vram_bytes"] = probe.vram_bytes()
    machine["host_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = Measurements(backend, machine, today)
    todo = [x for x in stages(probe, effort) if x[0] not in without]
    last = len(todo) + 5 * int(engine) + 2
    try:
        for i, (name, measure) in enumerate(todo):
            if progress:
                progress(i, last, name)
            _stage(found, name, measure, say)
    finally:
        probe.close()
    after: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        ("kernels", lambda: kernel_rows(backend, quick)),
        (TABLE, lambda: cpu_expert_rows(quick)),
        ("engine", lambda: engine_runs(backend, quick)),
        ("uvm_mode", lambda: uvm_runs(backend, quick)),
        ("fault_groups", lambda: _fault_groups(backend)),
    ]
    after = after if engine else []
    after.append((POLICIES, lambda: policy_rows(all_policies)))
    if folder is not None:
        on = folder
        after.append((DISK, lambda: disk_rows(on, quick)))
    after.append((PAGING, lambda: _paging(found, backend, quick, progress, last)))
    after = [x for x in after if x[0] not in without]
    for i, (name, measure) in enumerate(after):
        if progress:
            progress(len(todo) + i, last, name)
        _stage(found, name, measure, say)
    if engine:
        _fit(found)
    _fit_paging(found)
    if progress:
        progress(last, last, "")
    return found


def stages(probe: Probe, effort: Effort) -> list[tuple[str, Callable[[], list[dict[str, Any]]]]]:
    """Name of a table and what fills it, in the order they are run."""
    pair = [("peers", probe.peers)] if probe.devices() > 1 else []
    cpu_bytes = min(effort.big, GiB) // 2 if effort.big > 64 * MiB else effort.big
    return [
        ("copies_h2d", lambda: probe.copies("h2d")),
        ("copies_d2h", lambda: probe.copies("d2h")),
        ("single_h2d", lambda: probe.single_copies("h2d")),
        ("single_d2h", lambda: probe.single_copies("d2h")),
        ("both_ways", probe.both_ways),
        ("pageable_h2d", lambda: probe.copies("h2d", pinned=False)),
        ("pageable_d2h", lambda: probe.copies("d2h", pinned=False)),
        ("launches", probe.launches),
        ("pinned_alloc", probe.pinned_alloc),
        ("reads", probe.reads),
        ("zero_copy", probe.zero_copy),
        ("cpu", lambda: cpu_reads(cpu_bytes, effort.repetitions)),
        ("faults", probe.faults),
        ("migrations", probe.migrations),
        *pair,
    ]


def _stage(
    found: Measurements,
    name: str,
    measure: Callable[[], list[dict[str, Any]]],
    say: Callable[[str], None] | None,
) -> None:
    begin = time.monotonic()
    try:
        found.tables[name] = measure()
    except NotHere as err:
        found.errors[name] = str(err)
    except KeyboardInterrupt:
        raise
    except Exception as err:  # a broken stage is a line in the report, not the end of it
        found.errors[name] = f"{type(err).__name__}: {err}"
    found.seconds[name] = round(time.monotonic() - begin, 3)
    if say:
        outcome = found.errors.get(name) or f"{len(found.tables[name])} rows"
        say(f"{name}: {outcome} ({found.seconds[name]:.1f} s)")


def _fit(found: Measurements) -> None:
    try:
        found.fitted.update(fit(found.tables["engine"], found))
    except (KeyError, ValueError, np.linalg.LinAlgError) as err:
        found.errors["fit"] = f"{type(err).__name__}: {err}"
    if UVM not in found.tables:
        return
    try:
        found.fitted.update(fit_uvm(found.tables[UVM]))
    except (KeyError, ValueError, np.linalg.LinAlgError) as err:
        found.errors[f"{UVM} fit"] = f"{type(err).__name__}: {err}"


def _paging(
    found: Measurements, backend: str, quick: bool, progress: Progress | None, last: int
) -> list[dict[str, Any]]:
    """The rows of known touches; what else the stage finds goes into tables of its own."""

    def shown(done: int, total: int, name: str) -> None:
        if progress:
            progress(last - 1, last, f"{PAGING} {done}/{total}: {name}")

    tables = paging_tables(open_device(backend, quick), quick, shown)
    rows = tables.pop(PAGING)
    found.tables.update(tables)
    return rows


def _fit_paging(found: Measurements) -> None:
    """The page model's constants, as ``uvm.KEY``."""
    if PAGING not in found.tables:
        return
    try:
        rate, _ = FINDERS["d2h_bytes_per_s"](found)
        inward, _ = FINDERS["h2d_bytes_per_s"](found)
        device = found.tables[DEVICE][0]
        made = table(
            found.tables[PAGING], found.tables[OUT], device, float(rate), inward and float(inward)
        )
        found.fitted.update({f"uvm.{k}": v for k, v in made.items()})
    except (KeyError, ValueError, np.linalg.LinAlgError) as err:
        found.errors[f"{PAGING} fit"] = f"{type(err).__name__}: {err}"


def _fault_groups(backend: str) -> list[dict[str, Any]]:
    if backend != "cuda":
        raise NotHere("page faults need a GPU")
    from replay.calibrate.fault_count import count

    found = count({"what": "calibrate"}, 45)
    if not found["windows"]:
        seen = ", ".join(f"{k} {v}" for k, v in found["recording"].items())
        raise NotHere(found["why"] + (f" ({seen})" if seen else ""))
    return [found["windows"][0] | {"recording": found["recording"]}]


def write(found: Measurements, path: str | Path, base: str) -> tuple[Path, Path]:
    """The profile at ``path`` and its raw tables beside it, both under temporary names first.

    Returns both paths. ``base`` names the profile that stands in for what was not measured.
    """
    from replay.calibrate.profile import to_toml
    from replay.records import write_profile
    from uvmsim.machine.hardware import Hardware

    target = Path(path)
    text = to_toml(found, Hardware.load(base), target.stem)
    return write_profile(target, text, found.to_json())
