"""All of it on a GPU: is a recording whole, the card's constants, what they predict and what is so.

    python experiments/paging_driver/gpu.py --lib BUILD/bin --out OUT
    python experiments/paging_driver/gpu.py --out OUT --only recording,calibrate,details
    python experiments/paging_driver/gpu.py --lib BUILD/bin --out OUT --short --profile machine.toml
    python experiments/paging_driver/gpu.py --lib BUILD/bin --out OUT --profile OUT/machine.toml \\
        --only models,engine,llama,sample

The first of the halves takes some 5 minutes, the second some 7; ``--short``, under 150 s, asks only
whether recordings by the driver's queue are whole, and validates the engine and two runs of llama.cpp.
Needs CuPy, what `uvmsim` needs, and for llama.cpp a CUDA build of it. Each stage is a process with a
time limit of its own, and what it wrote is there when a later one fails. OUT gets at most 8 files:
run.json (what ran, how long, the end of what it said), recording.json, machine.toml and
machine.measurements.json, details.json, events.npz,
validation.tar.gz (predictions, measurements, reports, routing and fault traces), sample.faults.arrow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MAIN = "from replay.commands.{0} import {0}; {0}()"
"""A command of uvmsim, which need not be installed for it."""
STAGES = {
    "recording": 110, "calibrate": 240, "details": 110, "models": 100, "engine": 150, "llama": 330,
    "sample": 60, "shapes": 330,
}  # fmt: skip
"""Seconds a stage has at most."""
SHORT = ("recording", "engine", "models", "llama")
"""Stages of ``--short``."""
MOST = 15 << 20
"""Bytes of a file that is brought back."""


def _size(file: Path) -> int:
    return file.stat().st_size


class Stages:
    def __init__(self, out: Path, lib: str | None, profile: Path | None, work: Path) -> None:
        self.out, self.work = out, work
        self.lib = ["--lib", str(Path(lib).resolve())] if lib else []
        self.profile = profile or out / "machine.toml"
        self.short = False
        self.models: tuple[str, ...] = ()
        """Those that are written; none named: all."""
        self.said: dict[str, str] = {}
        self.results = work / "validation"

    def run(self, stage: str, *command: object, seconds: float) -> int:
        """A command; its exit code, 124 where it took too long."""
        words = [str(x) for x in command]
        log = self.work / f"{stage}.log"
        with log.open("ab") as f:
            f.write(f"$ {' '.join(words)}\n".encode())
            f.flush()
            process = subprocess.Popen(
                words, stdout=f, stderr=f, cwd=ROOT, start_new_session=True,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(
                        p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p
                    ),
                    "PYTHONUNBUFFERED": "1",
                },
            )  # fmt: skip
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = 124
        self.said[stage] = log.read_text(errors="replace")[-9000:]
        return code

    def uvmsim(self, stage: str, *command: object, seconds: float) -> int:
        name, *options = command
        words = (sys.executable, "-c", MAIN.format(name), *options)
        return self.run(stage, *words, seconds=seconds)

    # ---- stages ------------------------------------------------------------------------------

    def do_recording(self, seconds: float) -> int:
        return self.run(
            "recording", sys.executable, HERE / "recording.py", "--out", self.out / "recording.json",
            *(("--tracer", "driver") if self.short else ()),
            "--seconds", seconds - 25, seconds=seconds,
        )  # fmt: skip

    def do_calibrate(self, seconds: float) -> int:
        return self.uvmsim(
            "calibrate", "calibrate", "-o", self.out / "machine.toml", "--force", seconds=seconds
        )

    def do_details(self, seconds: float) -> int:
        return self.run(
            "details", sys.executable, HERE / "details.py", "--out", self.out / "details.json",
            "--events", self.out / "events.npz", seconds=seconds,
        )  # fmt: skip

    def do_models(self, seconds: float) -> int:
        return self.run(
            "models", sys.executable, HERE / "models.py", self.work / "models", *self.models,
            seconds=seconds,
        )  # fmt: skip

    def do_engine(self, seconds: float) -> int:
        return self.validate("engine", [], seconds)

    def do_llama(self, seconds: float) -> int:
        return self.validate("short" if self.short else "llama", self.lib, seconds)

    def do_shapes(self, seconds: float) -> int:
        return self.validate("shapes", self.lib, seconds)

    def validate(self, name: str, more: list[str], seconds: float) -> int:
        config = self.work / f"{name}.toml"
        text = (HERE / f"{name}.toml").read_text().replace("MODELS", str(self.work / "models"))
        config.write_text(text)
        folder = self.results / name
        code = self.uvmsim(
            name, "validate", config, "--hardware", self.profile, *more, "-o", folder, "--no-plot",
            seconds=seconds,
        )  # fmt: skip
        self.pack()
        return code

    def pack(self) -> None:
        """What was validated so far, in one file, whole or not there."""
        if not self.results.exists():
            return
        partial = self.work / "validation.tar.gz"
        files = sorted((p for p in self.results.rglob("*") if p.is_file()), key=_size)
        while True:
            with tarfile.open(partial, "w:gz", compresslevel=6) as tar:
                for file in files:
                    tar.add(file, "validation/" + "/".join(file.relative_to(self.results).parts))
            if partial.stat().st_size < MOST:
                break
            files.pop()  # the largest
        shutil.copyfile(partial, self.out / "validation.tar.gz")

    def do_sample(self, seconds: float) -> int:
        """The first cold events of the first validated run, as many as can be kept."""
        code = (
            "import sys; from traces.faults import open_faults, FaultTrace; "
            "t = open_faults(sys.argv[1]); n = int(sys.argv[3]); said = t.meta['recording']; "
            "at = int((t.numbers('time_ns') < said['looks'][0]['from_ns']).sum()); "
            "kept = {k: said[k] for k in ('managed', 'tensors') if k in said}; "
            "FaultTrace(t.table.slice(at, n), t.meta | {'recording': kept, "
            "'notes': [str(n) + ' of ' + str(t.n_rows) + ' events, from the first cold one on']})"
            ".save(sys.argv[2])"
        )
        found = sorted(self.results.rglob("*.faults.arrow"))
        if not found:
            self.said["sample"] = "no fault trace was validated"
            return 1
        target = self.out / "sample.faults.arrow"
        for rows in (16000, 8000, 4000):
            target.unlink(missing_ok=True)
            done = self.run(
                "sample", sys.executable, "-c", code, found[0], target, rows, seconds=seconds
            )
            if done or target.stat().st_size <= 1 << 20:
                return done
        return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lib", help="a libllama or its folder, built with CUDA")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--profile", type=Path, help="calibration to predict from; OUT/machine.toml"
    )
    parser.add_argument("--only", help=f"of {','.join(STAGES)}")
    parser.add_argument("--short", action="store_true", help="some of it, in 150 s")
    parser.add_argument("--seconds", type=float, default=520, help="of all stages together; 520")
    parser.add_argument("--work", type=Path, help="folder for models and logs; a temporary one")
    given = parser.parse_args()
    wanted = given.only.split(",") if given.only else list(SHORT if given.short else STAGES)
    if unknown := set(wanted) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    work = given.work or Path(tempfile.mkdtemp(prefix="paging"))
    work.mkdir(parents=True, exist_ok=True)
    profile = given.profile.resolve() if given.profile else None
    stages = Stages(given.out.resolve(), given.lib, profile, work.resolve())
    stages.short = given.short
    if "shapes" in wanted and "llama" not in wanted:
        stages.models = ("f16-24x32", "mxfp4-8x64")
    record: dict[str, Any] = {"python": platform.python_version(), "stages": {}}
    start = time.monotonic()
    for name in wanted:
        left = given.seconds - (time.monotonic() - start)
        begin = time.monotonic()
        if left < 20:
            code: int | str = "no time left"
        else:
            try:
                code = getattr(stages, f"do_{name}")(min(STAGES[name], left - 5))
            except Exception as err:  # the next stage may still do
                code = f"{type(err).__name__}: {err}"
        record["stages"][name] = {
            "exit_code": code, "seconds": round(time.monotonic() - begin),
            "said": stages.said.get(name, ""),
        }  # fmt: skip
        print(f"{name}: {code}, {time.monotonic() - begin:.0f} s", flush=True)
        if code:
            print(stages.said.get(name, "")[-1500:], flush=True)
        (given.out / "run.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
