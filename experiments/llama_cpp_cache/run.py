"""llama.cpp's own expert cache against the policy `llama-cpp-lru`, on a machine with a GPU.

Called by run.sh, which builds llama.cpp and writes the model. Each part runs in a process of its own;
one that fails is recorded, and the others go on. Results are written after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from cells import PROMPT  # noqa: E402

EVAL = re.compile(r"eval time = .*?([\d.]+) tokens per second")


class Report:
    """results.json and results.md, rewritten as results come in."""

    def __init__(self, out: Path, deadline: float) -> None:
        self.out, self.deadline = out, deadline
        self.data: dict[str, Any] = {"cells": [], "completions": [], "errors": []}

    def write(self) -> None:
        from predict import table

        (self.out / "results.json").write_text(json.dumps(self.data, indent=1) + "\n")
        (self.out / "results.md").write_text(table(self.data["cells"], self.data["completions"]))

    def run(self, what: str, command: list[str], limit: int) -> str | None:
        """The output of a command; None, and a note, where it failed or there is no time left."""
        left = self.deadline - time.monotonic()
        if left < 15:
            self.fail(what, "left out: no time")
            return None
        print(f"== {what}", flush=True)
        start = time.monotonic()
        # The log of llama.cpp is long and ends up in a file of its own, whatever happens.
        log = self.out / "log.txt"
        with log.open("a") as f:
            f.write(f"\n== {what}: {' '.join(command)}\n")
            f.flush()
            at = log.stat().st_size
            try:
                code = subprocess.run(
                    command, stdout=f, stderr=subprocess.STDOUT, timeout=min(limit, left),
                    check=False, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = -1
        text = log.read_bytes()[at:].decode("utf-8", "replace")
        took = time.monotonic() - start
        print(f"   {took:.1f} s, exit {code}", flush=True)
        self.data.setdefault("seconds", {})[what] = round(took, 1)
        if code != 0:
            self.fail(what, f"exit {code}: {' / '.join(text.strip().splitlines()[-3:])[-600:]}")
        return text

    def fail(self, what: str, why: str) -> None:
        print(f"   FAILED {what}: {why}", flush=True)
        self.data["errors"].append({"part": what, "why": why})
        self.write()


def environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return dict(os.environ) | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def collect(report: Report, work: Path, hardware: str, done: set[str]) -> None:
    """Judge every cell that has been written since."""
    from predict import judge

    for path in sorted(work.glob("*.json"), key=lambda p: p.stat().st_mtime):
        if path.name in done:
            continue
        done.add(path.name)
        cell = json.loads(path.read_text())
        try:
            line = judge(cell, work, hardware)
        except Exception as e:
            line = {"name": cell["name"], "failed": f"{type(e).__name__}: {e}", "equal": False}
            report.fail(cell["name"], traceback.format_exc().strip()[-600:])
        report.data["cells"].append(line)
    report.write()


def completion(report: Report, binary: Path, model: Path, mib: int, n: int) -> None:
    """The same prompt and greedy choice in llama.cpp's own program, with its own counters."""
    from traces.capture.moe_cache_log import read_counts

    command = [
        str(binary), "-m", str(model), "-ngl", "99", "-ncmoe", "99", "--load-mode", "none",
        "--moe-cache-mib", str(mib), "-p", PROMPT, "-n", str(n + 1), "--temp", "0", "--ignore-eos",
        "--seed", "0", "--no-warmup", "-no-cnv", "-c", "2048", "-ub", "512", "-t", "16", "-lv", "4",
        "-fit", "off",
    ]  # fmt: skip
    text = report.run(f"llama-completion {mib} MiB", command, 60)
    if text is None or "llama_moe_cache:" not in text:
        return
    counts, speed = read_counts(text.splitlines()), EVAL.findall(text)
    found = {
        "mib": mib,
        "counts": counts.to_json() if counts else None,
        "tokens_per_s": float(speed[-1]) if speed else None,
    }
    report.data["completions"].append(found)
    report.write()


def command_line(
    report: Report, lib: Path, model: Path, work: Path, hardware: str, mib: int
) -> None:
    """`uvmsim capture llama-cpp` itself, which starts itself again with the run-time preloaded."""
    out = work / "cli.arrow"
    words = [
        "llama-cpp", str(model), "--lib", str(lib), "--n-gpu-layers", "99", "--n-cpu-moe", "99",
        "--moe-cache-mib", str(mib), "--no-mmap", "--prompt", PROMPT, "--sequences", "2",
        "--n-predict", "64", "--n-ubatch", "20", "--ignore-eos", "--out", str(out), "--json",
    ]  # fmt: skip
    code = "from traces.commands.capture import capture; capture()"
    text = report.run("uvmsim capture", [sys.executable, "-c", code, *words], 90)
    if not text or not out.is_file():
        return
    from predict import COUNTERS, MUST, replay

    try:
        last = next(x for x in reversed(text.splitlines()) if x.startswith("{"))
        theirs = json.loads(last)["moe_cache"]
        ours = replay(out, theirs["slots"][0], hardware, True)
        found = {
            "llama_cpp": {k: theirs[k] for k in COUNTERS},
            "uvmsim": {k: ours[k] for k in COUNTERS},
        }
        line = {"name": f"uvmsim capture, 2 sequences, {mib} MiB", "mib": mib, "memory": "pinned"}
        line |= found | {"slots_llama_cpp": theirs["slots"][0], "plain_lru": ours["plain_lru"]}
        line["equal"] = all(theirs[k] == ours[k] for k in MUST)
        report.data["cells"].append(line)
    except Exception:
        report.fail("uvmsim capture", traceback.format_exc().strip()[-600:])
    report.write()


def machine(lib: Path) -> dict[str, Any]:
    """GPU, driver, compiler; nothing that names a person or a host."""
    from traces.capture.provenance import machine as described

    def said(*command: str) -> str:
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=20, check=False
            ).stdout.strip()
        except OSError as e:
            return str(e)

    gpu = said(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
    )
    nvcc = said("nvcc", "--version").splitlines()[-1:]
    return described(gpu=gpu, nvcc=nvcc, python=platform.python_version(), library=lib.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--lib", type=Path, required=True, help="folder of the built libllama.so")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--out", type=Path, required=True, help="where results go")
    parser.add_argument("--hardware", default="h100", help="preset or calibrated .toml")
    parser.add_argument("--mib", type=int, nargs="+", default=[300, 600, 1200])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=280, help="time for all of it")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    a.work.mkdir(parents=True, exist_ok=True)
    # The parts run elsewhere, in the root of the repository.
    a.model, a.lib, a.work, a.out = (p.resolve() for p in (a.model, a.lib, a.work, a.out))
    if Path(a.hardware).is_file():
        a.hardware = str(Path(a.hardware).resolve())
    report = Report(a.out, time.monotonic() + a.seconds)
    report.data |= {
        "machine": machine(a.lib),
        "hardware": Path(a.hardware).name,
        "tokens": a.tokens,
    }
    done: set[str] = set()
    sizes = [str(m) for m in a.mib]
    cells = [
        sys.executable, str(HERE / "cells.py"), str(a.model), "--lib", str(a.lib),
        "--work", str(a.work), "--tokens", str(a.tokens), "--mib", *sizes,
    ]  # fmt: skip
    middle = str(a.mib[len(a.mib) // 2])
    mixed = ["--mixed-mib", sizes[0], middle]
    report.run("page-locked host memory", [*cells, "--no-mmap", *mixed], 120)
    collect(report, a.work, a.hardware, done)
    for mib in a.mib:
        completion(report, a.lib / "llama-completion", a.model, mib, a.tokens)
    command_line(report, a.lib, a.model, a.work, a.hardware, int(middle))
    report.run("all resident", [*cells, "--resident"], 60)
    report.run("mapped file", cells, 120)
    collect(report, a.work, a.hardware, done)
    equal = [c["equal"] for c in report.data["cells"] if "equal" in c]
    print((a.out / "results.md").read_text())
    print(
        f"{sum(map(bool, equal))} of {len(equal)} runs equal; {len(report.data['errors'])} errors"
    )
    sys.exit(0 if all(equal) and equal and not report.data["errors"] else 1)


if __name__ == "__main__":
    main()
