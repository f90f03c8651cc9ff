"""`uvmsim calibrate --engine llama.cpp`: the machine by plain tests, then llama.cpp on it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from replay.calibrate.calibration import calibrate as measure_machine
from replay.calibrate.policy_rows import TABLE as POLICIES
from replay.calibrate.profile import Measurements, machine_toml, restated, to_toml
from replay.llama_cpp.collect import Collected, collect
from replay.llama_cpp.expected import expected
from replay.llama_cpp.fit import Fit, fit
from replay.llama_cpp.profile import engine_table, floors
from replay.llama_cpp.sharpen import sharpen
from replay.records import write_profile
from traces.capture.find_library import LibraryFile, find_library
from traces.errors import InputError
from traces.models.gguf import describe
from uvmsim.machine.hardware import Hardware

Progress = Callable[[int, int, str], None]
NOT_MEASURED = "none"
"""The "backend" of a machine whose numbers were given."""
_SIDES = {True: "was calibrated with CUDA", False: "was calibrated on the CPU alone"}
SECONDS = 190.0
"""After which no further synthetic model is begun."""


@dataclass
class LlamaCalibration:
    """What one calibration found."""

    machine: Measurements
    collected: Collected
    fit: Fit
    base: str
    sharpened: dict[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""
    """Where the constants are from, if not from these runs."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: every timed run with what it consisted of, and the constants."""
        return {
            "machine": self.machine.to_json(),
            "build": self.collected.build,
            "flash_attention": self.collected.flash,
            "gpu": self.collected.gpu,
            "runs": [
                asdict(e) | {"error": err}
                for e, err in zip(self.collected.equations, self.fit.errors.values(), strict=True)
            ],
            "not_run": self.collected.errors,
            "seconds": self.collected.seconds,
            "ns": self.fit.ns,
            "sharpened": {k: dict(v) for k, v in self.sharpened.items()},
            "source": self.source,
        }


def calibrate(
    library: str | None,
    *,
    model: str | None = None,
    base: str | None = None,
    threads: int | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> LlamaCalibration:
    """Measure the machine and run llama.cpp's synthetic models on it (and ``model``, a GGUF).

    ``base``: the machine's numbers, instead of measuring them. Where it is a calibration of this build
    and there is a ``model``, its constants are kept too, and only the model is run. A library without
    CUDA calibrates the CPU, whose memory is then what the model must fit in. Raises `InputError`.
    """
    from replay.calibrate.report import closest_preset

    begin = time.monotonic()
    file = find_library(library)
    gpu = file.uses_cuda
    name = describe(model).name if model else ""
    machine, hw, base_name = _machine(file, gpu, base, quick, closest_preset)
    kept = hw.engine.terms if base is not None and model is not None else None
    if kept is not None and kept.gpu != gpu:
        raise InputError(
            f"{base}: {_SIDES[kept.gpu]}, and {file.path.name} is not; leave out --base"
        )
    found = collect(
        library, gpu=gpu, threads=threads, quick=quick, model=model, synthetic=kept is None,
        deadline_s=SECONDS, progress=progress,
    )  # fmt: skip
    if kept is None:
        synthetic = [e for e in found.equations if e.name != "model"]
        found_fit = fit(synthetic, floors(hw), expected(hw))
    elif kept.build != found.build:
        raise InputError(
            f"{base}: was calibrated with another build ({kept.build}); leave out --base to calibrate "
            f"this one ({found.build})"
        )
    else:
        found_fit = Fit(dict(kept.ns))
    for e in found.equations:
        found_fit.errors[e.key] = found_fit.predict(e) / e.ns - 1
    factors = sharpen(found_fit, found.equations)
    sharpened = dict(kept.sharpened) if kept else {}
    return LlamaCalibration(
        machine, found, found_fit, base_name, sharpened | ({name: factors} if factors else {}),
        kept.source if kept else "", time.monotonic() - begin,
    )  # fmt: skip


def _machine(
    file: LibraryFile, gpu: bool, base: str | None, quick: bool, closest: Callable[[str], str]
) -> tuple[Measurements, Hardware, str]:
    """Plain tests of the machine; with ``base`` (a preset or file) its numbers and no tests."""
    if base is not None:
        hw = Hardware.load(base)
        today = time.strftime("%Y-%m-%d", time.gmtime())
        return Measurements(NOT_MEASURED, {"gpu": hw.gpu}, today), hw, base
    try:
        found = measure_machine(
            "cuda" if gpu else "host", quick=quick or not gpu, engine=False, without=(POLICIES,)
        )
    except InputError as err:
        raise InputError(
            f"{err}; or give the machine's numbers (--base: a preset, or a file of uvmsim calibrate)"
        ) from None
    name = closest(str(found.machine.get("gpu", "")))
    if not gpu:
        found.machine["gpu"] = "none: llama.cpp on the CPU"
        found.machine["vram_bytes"] = found.machine["host_bytes"]
    return found, _as_hardware(found, name), name


def _as_hardware(found: Measurements, base: str) -> Hardware:
    """The machine that was measured, as the simulator sees it."""
    if found.backend == NOT_MEASURED:
        return Hardware.load(base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine.toml"
        path.write_text(to_toml(found, Hardware.load(base), "machine"), encoding="utf-8")
        return Hardware.load(str(path))


def write(found: LlamaCalibration, path: str | Path) -> tuple[Path, Path]:
    """The profile at ``path`` and its runs beside it, under temporary names first; both paths."""
    target = Path(path)
    machine = _as_hardware(found.machine, found.base)
    if found.machine.backend == NOT_MEASURED:
        head = restated(machine, target.stem)
    else:
        head = machine_toml(found.machine, Hardware.load(found.base), target.stem)
    words = [found.machine.date, str(found.machine.machine.get("gpu", ""))]
    words += [f"driver {d}" for d in [found.machine.machine.get("driver")] if d]
    stamp = "measured " + ", ".join(words)
    engine = engine_table(found.collected, found.fit, machine, stamp, found.sharpened, found.source)
    text = head + "\n".join(engine) + "\n"
    return write_profile(target, text, found.to_json())
