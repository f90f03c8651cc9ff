"""All of it in one go: models, calibration, with runs of the models too, validation, faults.

python experiments/llama_cpp_validation/run.py --lib BUILD/bin --out DIR    # a GPU, some 20 minutes
python experiments/llama_cpp_validation/run.py --cpu --out DIR              # two cores, some 12
python experiments/llama_cpp_validation/run.py ... --only calibrate,validate

What a stage wrote is there when the next one fails. `sample` needs CUPTI and a CUDA build.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

from traces.capture.find_library import find_library

HERE = Path(__file__).resolve().parent
STAGES = ("models", "calibrate", "sharpen", "validate", "sample")
MAIN = "from uvmsim.cli import main; main()"
PROMPT = "The list object has a method that takes an index and gives the item which stands there. "


class Stages:
    def __init__(self, out: Path, lib: str | None, cpu: bool) -> None:
        self.out, self.cpu = out, cpu
        self.lib = ["--lib", str(Path(lib).resolve())] if lib else []
        self.models = out / "models"
        self.profile = out / "machine.toml"
        self.sharpened = out / "sharpened.toml"
        self.log = out / "log.txt"

    def run(self, *command: object, timeout: int = 900) -> int:
        """A command, its output in the log; its exit code."""
        words = [str(x) for x in command]
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n")
            log.flush()
            code = subprocess.run(words, stdout=log, stderr=log, timeout=timeout).returncode
            log.write(f"exit code {code}\n")
        return code

    def uvmsim(self, *command: object) -> int:
        return self.run(sys.executable, "-c", MAIN, *command)

    def config(self, name: str, models: list[str]) -> Path:
        """The validation's config with these models."""
        text = (HERE / ("cpu.toml" if self.cpu else "validation.toml")).read_text()
        kept = [line for line in text.splitlines() if not line.startswith("model = ")]
        body = "\n".join(x for x in kept if not x.startswith(("#", "engine = ")))
        listed = ", ".join(f'"{self.models / m}.gguf"' for m in models)
        path = self.out / f"{name}.toml"
        path.write_text(f'engine = "llama.cpp"\nmodel = [{listed}]\n{body}\n')
        return path

    def names(self) -> list[str]:
        return sorted(p.stem for p in self.models.glob("*.gguf"))

    # ---- stages ------------------------------------------------------------------------------

    def do_models(self) -> int:
        return self.run(
            sys.executable, HERE / "models.py", self.models, *(["--cpu"] if self.cpu else [])
        )

    def do_calibrate(self) -> int:
        return self.uvmsim(
            "calibrate", "--engine", "llama.cpp", *self.lib, "-o", self.profile, "--force"
        )

    def do_sharpen(self) -> int:
        """The calibration, with some runs of each model added to it."""
        base, code = self.profile, 0
        for name in self.names():
            code = code or self.uvmsim(
                "calibrate", "--engine", "llama.cpp", *self.lib, "--base", base, "--model",
                self.models / f"{name}.gguf", "-o", self.sharpened, "--force",
            )  # fmt: skip
            base = self.sharpened
        return code

    def do_validate(self) -> int:
        """Both calibrations against the same runs."""
        config = self.config("validation", self.names())
        also = ["--also", self.sharpened] if self.sharpened.exists() else []
        return self.uvmsim(
            "validate", config, "--hardware", self.profile, *also, *self.lib, "-o",
            self.out / "results",
        )  # fmt: skip

    def do_sample(self) -> int:
        """Routing and faults of one run under unified memory that has room for half the model."""
        model = self.out / "small.gguf"
        make = (
            "import sys; sys.path[:0] = sys.argv[2:]; from tiny_gguf import write_tiny; "
            "from pathlib import Path; write_tiny(Path(sys.argv[1]), 'qwen3moe', layers=8, d=512, "
            "heads=8, experts=32, used=4, ff=512, half=True)"
        )
        code = self.run(
            sys.executable, "-c", make, model, HERE.parents[1], HERE.parents[1] / "tests"
        )
        routing, faults = self.out / "sample.arrow", self.out / "sample.faults.arrow"
        return (
            code
            or self.uvmsim(
                "capture", "llama-cpp", model, *self.lib, "--n-gpu-layers", 99, "--prompt", PROMPT,
                "--n-predict", 16, "--out", routing, "--faults", faults, "--vram-left-mib", 900,
            )
            or self.uvmsim("trace", "check", routing, "--faults", faults)
            or self.uvmsim("trace", "stats", faults)
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lib", help="a libllama or its folder")
    parser.add_argument("--cpu", action="store_true", help="small models, without a GPU")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help=f"of {','.join(STAGES)}")
    given = parser.parse_args()
    wanted = (
        given.only.split(",")
        if given.only
        else [s for s in STAGES if s != "sample" or not given.cpu]
    )
    unknown = set(wanted) - set(STAGES)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    stages = Stages(given.out.resolve(), given.lib, given.cpu)
    record = {
        "library": find_library(given.lib).path.name,
        "python": platform.python_version(),
        "stages": {},
    }
    for name in wanted:
        begin = time.monotonic()
        try:
            code: int | str = getattr(stages, f"do_{name}")()
        except (subprocess.TimeoutExpired, OSError, IndexError) as err:
            code = str(err)
        record["stages"][name] = {"exit_code": code, "seconds": round(time.monotonic() - begin)}
        print(name, record["stages"][name], flush=True)
        (given.out / "run.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
