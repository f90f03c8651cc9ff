"""Calibrate, predict, measure: everything this folder holds, in one go, in under ten minutes.

python experiments/h100_validation/run.py --out DIR [--gpt-oss T.arrow --gpt-oss-profile P.arrow]

Each stage is a process of its own with a time limit; one that fails is recorded in DIR/run.json and
the others go on (all but `calibrate` need its profile). ``--backend host --quick`` runs the same path
without a GPU, on small sizes: to see that it works, for its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

PROFILE = "calibration.toml"
LIMITS = {"calibrate": 170, "grid": 330, "modes": 120, "uvm": 200, "ufm": 150, "ufm_torch": 100}
"""Seconds each stage may take."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for results")
    parser.add_argument("--gpt-oss", type=Path, help="routing trace of gpt-oss-20b")
    parser.add_argument("--gpt-oss-profile", type=Path, help="another one, for policies that learn")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything together")
    parser.add_argument("--only", help="stages, separated by commas")
    parser.add_argument("--rewrite", action="store_true", help="reports again from saved results")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the stages one after the other, or (``--stage``) one of them here."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage:
        STAGES[args.stage](args)
        return
    if args.rewrite:
        rewrite(args.out)
        return
    begin, record = time.monotonic(), {}
    wanted = args.only.split(",") if args.only else list(STAGES)
    for name in wanted:
        left = 60 * args.minutes - (time.monotonic() - begin)
        record[name] = run_stage(name, min(LIMITS[name], left)) if left > 5 else "no time left"
        write(
            args.out / "run.json", {"stages": record, "seconds": round(time.monotonic() - begin, 1)}
        )
    from summary import summarise

    text = summarise(args.out, record)
    (args.out / "summary.md").write_text(text)
    print(text)
    bad = {k: v for k, v in record.items() if v != "ok"}
    print(f"finished in {time.monotonic() - begin:.0f} s" + (f"; not ok: {bad}" if bad else ""))
    sys.exit(1 if bad else 0)


def rewrite(out: Path) -> None:
    """The reports and the summary in ``out``, from what was measured; needs no GPU."""
    from summary import summarise

    from replay.validate.validation import REPORT
    from replay.validate.validation import rewrite as again

    for part in ("grid", "modes", "uvm"):
        if (out / part / REPORT).exists():
            again(out / part, out / PROFILE)
    try:
        record = json.loads((out / "run.json").read_text())["stages"]
    except (OSError, ValueError, KeyError):
        record = {}
    (out / "summary.md").write_text(summarise(out, record))


def run_stage(name: str, limit: float) -> str:
    """``ok``, or what happened; its output goes to ours."""
    print(f"== {name} (at most {limit:.0f} s)", flush=True)
    begin = time.monotonic()
    command = [sys.executable, "-u", str(HERE / "run.py"), *sys.argv[1:], "--stage", name]
    try:
        done = subprocess.run(command, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    print(f"== {name}: {time.monotonic() - begin:.0f} s, exit {done.returncode}", flush=True)
    return "ok" if done.returncode == 0 else f"exit {done.returncode}"


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def write(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


# ---- stages ------------------------------------------------------------------------------------


def calibrate(args: argparse.Namespace) -> None:
    from replay.calibrate.calibration import calibrate as measure
    from replay.calibrate.calibration import write as write_profile

    found = measure(args.backend, quick=args.quick or None, say=say)
    write_profile(found, args.out / PROFILE, "h100")


def validation(config: str) -> Callable[[argparse.Namespace], None]:
    """The stage that runs one of the configs beside this file."""

    def stage(args: argparse.Namespace) -> None:
        from replay.records import write_report
        from replay.validate.config import load
        from replay.validate.report import headline, to_markdown
        from replay.validate.validation import validate

        loaded = load(HERE / f"{config}.toml")
        for entry in loaded.trace:
            if entry.name == "gpt-oss-20b":
                entry.path = str(args.gpt_oss or "gpt-oss-20b.arrow")
                entry.profile = str(args.gpt_oss_profile) if args.gpt_oss_profile else entry.path
            if args.quick:
                entry.expert_size, entry.model, entry.dtype = "64KiB", None, "fp32"
                entry.limit = 770 if entry.path == "bundled" else 8
        if args.quick:
            loaded.repetitions = 1
        folder = args.out / config
        report = validate(
            loaded, folder, backend=args.backend, hardware=str(args.out / PROFILE), say=say
        )
        try:
            from replay.validate.plot import draw

            draw(report, str(folder / "report.png"))
            report["plot"] = "report.png"
            write_report(folder, report, to_markdown(report))
        except ImportError:
            say("no matplotlib: no plot")
        say(headline(report))
        sys.exit(0 if report["overall"]["passed"] else 1)

    return stage


def ufm(args: argparse.Namespace) -> None:
    from ufm_engine import study

    write(args.out / "ufm.json", study(args.backend, args.out / PROFILE, args.quick, say))


def ufm_torch(args: argparse.Namespace) -> None:
    from ufm_torch import study

    write(args.out / "ufm_torch.json", study(args.quick, say))


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "calibrate": calibrate,
    "grid": validation("grid"),
    "ufm": ufm,
    "ufm_torch": ufm_torch,
    "modes": validation("modes"),
    "uvm": validation("uvm"),
}

if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        if type(error).__name__ != "InputError":  # what the user can mend needs no traceback
            traceback.print_exc()
        sys.exit(f"error: {error}")
