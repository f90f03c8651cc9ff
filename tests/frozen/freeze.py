"""Record what the commands of runs.toml print, and compare later results with it, byte for byte.

    python tests/frozen/freeze.py --write [--only PATTERN]
    python tests/frozen/freeze.py --check [--only PATTERN] [--fast]

The uvmsim that runs is the one Python finds (an installed one, or the first of PYTHONPATH). Exit
code 1 where a number differs or a command fails. What is not frozen, and why, is in `NOT_FROZEN`.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gzip
import hashlib
import importlib.util
import io
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = HERE / "runs.toml"
RESULTS = HERE / "results.json.gz"

LINKS = {
    "samples": ROOT / "traces" / "samples",
    "examples": ROOT / "docs" / "examples",
    "tiny-moe.gguf": ROOT / "experiments" / "tiny_moe" / "tiny-moe.gguf",
}
"""Files of the repository, by the names that the commands use. Every run has a folder of its own."""

# ---- what may change ----------------------------------------------------------------------------
# A key is written plainly ("bytes_h2d": wherever it occurs) or with a pattern of names of runs before
# it ("microbench-*/chunks"). All three tables concern keys of JSON objects, at any depth.

RENAMES: dict[str, str] = {"replay-*/uvm_on_demand": "managed_on_demand"}
"""Old key: new key. The frozen side is renamed before it is compared."""

RENAMED_VALUES: dict[str, dict[str, str]] = {"replay-*/mechanism": {"uvm": "managed"}}
"""Key: old word: new word. The replay's live paging is not the simulator's mechanism of that name."""

REMOVED: tuple[str, ...] = ()
"""Keys that a result need not have any more. (A key in both tables is not compared at all.)"""

ADDED: tuple[str, ...] = (
    "sweep-*/program", "sweep-*/ram_bytes_per_s", "sweep-*/reserve_bytes", "sweep-*/ctx",
    "sweep-*/kv_type", "hardware/rtx3060", "hardware/rtx3090", "hardware/rtx4060ti",
    "hardware/rtx5070ti", "hardware/rtx6000ada", "hardware/rtxpro6000", "trace-*/missing",
    "microbench-*/missing", "loops", "sweep-*/policy_time",
)  # fmt: skip
"""Keys that a result may have and the frozen one has not."""

NOT_FROZEN: dict[str, str] = {
    "uvmsim": "the version, which says nothing about numbers",
    "file_bytes": "size of a trace's file: it depends on the Arrow library and on the length of words",
    "trace-export-*/bytes": "the same; the content is frozen instead",
    "replay-*/machine": "the machine it ran on",
    "replay-*/time_s": "measured by a clock, as all that follow",
    "replay-*/tokens_per_s": "measured",
    "replay-*/prefill_tokens_per_s": "measured",
    "replay-*/decode_tokens_per_s": "measured",
    "replay-*/ttft_s": "measured",
    "replay-*/token_latency_ms": "measured",
    "replay-*/host_issue_s": "measured",
    "replay-*/time_split_s": "measured",
    "replay-*/copy_busy_s": "measured",
    "replay-*/link_utilisation": "measured",
    "validate-*/written": "the date",
}
"""Key: why its value is left out. That it is there, and whether it is null, stays frozen."""

LEFT_OUT = "(not frozen)"
VERSION = re.compile(r"uvmsim \d+(\.\d+)+")
"""In words, such as those of a trace that say what made it."""

LONG = 48
"""Lists with more plain values than this are frozen as a hash and their first values."""


# ---- the list -----------------------------------------------------------------------------------


def runs() -> dict[str, dict[str, Any]]:
    """The runs by name. Raises `ValueError` for a key that means nothing."""
    known = {"fast", "first", "run", "hash", "json", "rows", "config", "cache_misses"}
    found = tomllib.loads(RUNS.read_text())
    for name, run in found.items():
        if wrong := set(run) - known:
            raise ValueError(f"{RUNS.name}: {name}: unknown keys {sorted(wrong)}")
    return found


def chosen(only: str | None = None, fast: bool = False) -> list[str]:
    """Names of runs, in the file's order."""
    return [
        name
        for name, run in runs().items()
        if (only is None or fnmatch.fnmatch(name, only)) and (run.get("fast") or not fast)
    ]


# ---- one run, in a worker -----------------------------------------------------------------------


def perform(name: str, run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run comes to, as it is frozen. Works in ``folder``, which holds the inputs."""
    os.chdir(folder)
    for link, target in LINKS.items():
        Path(link).symlink_to(target)
    if "config" in run:
        Path("config.toml").write_text(run["config"])
    for line in _lines(run.get("first")):
        code, _, err = command(line)
        if code:
            raise RuntimeError(f"uvmsim {line}: exit code {code}: {err.strip()}")
    result: dict[str, Any] = {}
    for line in _lines(run.get("run")):
        code, out, err = command(line)
        if not out.strip():
            raise RuntimeError(f"uvmsim {line}: exit code {code}: {err.strip()}")
        result.setdefault("exit", []).append(code)
        result.setdefault("out", []).append(json.loads(out))
    for file in _lines(run.get("hash")):
        result.setdefault("files", {})[file] = content(Path(file))
    for file in _lines(run.get("json")):
        result.setdefault("json", {})[file] = json.loads(Path(file).read_text())
    if "rows" in run:
        result["rows"] = sweep_rows(Path(run["rows"]))
    if "cache_misses" in run:
        result["cache_misses"] = {p: misses_of(p) for p in run["cache_misses"]}
    # Sweeps write whole paths; these are the names that the commands used.
    text = canonical(result)
    for link, target in LINKS.items():
        text = text.replace(str(target), link)
    text = text.replace(f"{folder}/", "")
    for place in (folder, ROOT, package().parent):
        if str(place) in text:
            raise RuntimeError(f"the result names a folder of this machine, {place}")
    return shortened(without(json.loads(text), name))


def _lines(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def command(line: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `uvmsim LINE`, run in this process."""
    from uvmsim.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["uvmsim", *shlex.split(line)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def content(path: Path) -> dict[str, Any]:
    """What is in a file; of compressed ones, what it unpacks to."""
    import numpy as np

    data = path.read_bytes()
    if path.suffix == ".npz":
        with np.load(io.BytesIO(data)) as arrays:
            return {
                key: {
                    "dtype": str(a.dtype),
                    "shape": list(a.shape),
                    "sha256": hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest(),
                }
                for key, a in arrays.items()
            }
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sweep_rows(path: Path) -> list[dict[str, Any]]:
    """A sweep's rows in a fixed order; nulls are left out (most columns of most rows)."""
    import pyarrow.parquet as pq

    rows = [
        {k: v for k, v in row.items() if v is not None} for row in pq.read_table(path).to_pylist()
    ]
    return sorted(rows, key=lambda row: row["cell"])


def misses_of(policy: str) -> dict[str, int]:
    """`uvmsim.cache_misses` at some sizes, on ids that favour small ones, with two scans."""
    import numpy as np

    import uvmsim

    # Plain integer arithmetic: the sequence is the same whatever the library.
    x, draws = 12345, []
    for _ in range(24_000):
        x = (x * 1_103_515_245 + 12_345) % (1 << 31)
        draws.append((x >> 8) % 600)
    skewed = np.array(draws).reshape(-1, 3).min(axis=1)
    ids = np.concatenate([skewed[:4000], np.arange(700), skewed[4000:], np.arange(300)])
    return {
        str(size): uvmsim.cache_misses(ids.astype(np.uint32), size, policy, seed=5)
        for size in (8, 40, 150, 400)
    }


def without(value: Any, name: str) -> Any:
    """``value`` with what is not frozen taken out."""
    if isinstance(value, dict):
        return {
            k: LEFT_OUT if v is not None and listed(k, name, NOT_FROZEN) else without(v, name)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [without(v, name) for v in value]
    return VERSION.sub("uvmsim (version)", value) if isinstance(value, str) else value


def listed(key: str, name: str, table: Any) -> str | None:
    """The entry of a table of keys that ``key`` of the run ``name`` falls under."""
    for entry in table:
        pattern, slash, plain = entry.rpartition("/")
        if plain == key and (not slash or fnmatch.fnmatch(name, pattern)):
            return entry
    return None


def shortened(value: Any) -> Any:
    """``value`` with long lists of plain values as their hash, length and first values."""
    if isinstance(value, dict):
        return {k: shortened(v) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    plain = list(_plain(value))
    if any(isinstance(v, dict) for v in plain) or len(plain) <= LONG:
        return [shortened(v) for v in value]
    digest = hashlib.sha256(canonical(value).encode()).hexdigest()
    return {"length": len(value), "first": plain[:6], "sha256": digest}


def _plain(value: Any) -> Iterator[Any]:
    for v in value:
        if isinstance(v, list):
            yield from _plain(v)
        else:
            yield v


def canonical(value: Any) -> str:
    """The one text of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# ---- workers ------------------------------------------------------------------------------------


class Worker:
    """A process that performs runs one after another; begun anew where it dies."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def run(self, name: str) -> dict[str, Any]:
        """``{"result": ...}``, or ``{"error": why}``."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "freeze.py"), "--worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": search_path()},
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if answer:
            return json.loads(answer)
        code = self.process.wait()
        self.process = None
        return {"error": f"the process that ran it ended with code {code}"}


def package() -> Path:
    """The folder of the uvmsim that is found here."""
    spec = importlib.util.find_spec("uvmsim")
    if spec is None or spec.origin is None:
        raise SystemExit("error: there is no uvmsim here; install it, or set PYTHONPATH")
    return Path(spec.origin).parent


def search_path() -> str:
    """PYTHONPATH that finds the same uvmsim from any folder."""
    return os.pathsep.join(filter(None, [str(package().parent), os.environ.get("PYTHONPATH")]))


def work() -> None:
    """A worker's life: a name a line comes in, a result a line goes out."""
    import dumps  # beside this file

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints must not come between the answers
    listed_runs = runs()
    for line in sys.stdin:
        name = line.strip()
        with tempfile.TemporaryDirectory(prefix="frozen-") as folder:
            try:
                dumps.write(Path(folder))
                answer = {"result": perform(name, listed_runs[name], Path(folder).resolve())}
            except Exception:
                answer = {"error": traceback.format_exc()}
            os.chdir(HERE)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def perform_all(names: list[str], jobs: int = 2) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Name, answer and seconds of every run, as they finish."""
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, dict[str, Any], float]] = queue.SimpleQueue()
    for name in names:
        todo.put(name)

    def serve() -> None:
        with Worker() as worker:
            while True:
                try:
                    name = todo.get_nowait()
                except queue.Empty:
                    return
                began = time.perf_counter()
                done.put((name, worker.run(name), time.perf_counter() - began))

    for _ in range(min(jobs, len(names))):
        threading.Thread(target=serve, daemon=True).start()
    for _ in names:
        yield done.get()


# ---- comparing ----------------------------------------------------------------------------------


def load() -> dict[str, Any]:
    """The frozen results by name."""
    return json.loads(gzip.decompress(RESULTS.read_bytes())) if RESULTS.exists() else {}


def save(results: dict[str, Any]) -> None:
    """Write all results; the same results are the same bytes."""
    text = "{\n" + ",\n".join(
        f"{json.dumps(name)}:{canonical(results[name])}" for name in sorted(results)
    )  # fmt: skip
    with RESULTS.open("wb") as f, gzip.GzipFile("", "wb", 9, f, mtime=0) as packed:
        packed.write((text + "\n}\n").encode())


def compared(name: str, answer: dict[str, Any], frozen: dict[str, Any]) -> list[str]:
    """What differs between a run's answer and what is frozen, one line each; none where equal."""
    if "error" in answer:
        return [f"failed: {answer['error'].strip()}"]
    if name not in frozen:
        return ["nothing is frozen under this name; record it with --write"]
    want = allowed(frozen[name], name)
    return list(differences(want, answer["result"], name))


def allowed(value: Any, name: str) -> Any:
    """A frozen value with the permitted renames."""
    if isinstance(value, dict):
        new = {}
        for key, v in value.items():
            entry = listed(key, name, RENAMES)
            if isinstance(v, str) and (words := listed(key, name, RENAMED_VALUES)):
                v = RENAMED_VALUES[words].get(v, v)
            new[RENAMES[entry] if entry else key] = allowed(v, name)
        return new
    return [allowed(v, name) for v in value] if isinstance(value, list) else value


def differences(want: Any, got: Any, name: str, path: str = "") -> Iterator[str]:
    """Each place where two JSON values differ: its path, the frozen value and the present one."""
    where = path.lstrip(".") or "(all)"
    if isinstance(want, dict) and isinstance(got, dict):
        for key in sorted(want.keys() | got.keys()):
            if key not in got:
                if not listed(key, name, REMOVED):
                    yield f"{where}.{key}: frozen {_show(want[key])}, now absent"
            elif key not in want:
                if not listed(key, name, ADDED):
                    yield f"{where}.{key}: not frozen, now {_show(got[key])}"
            elif not (listed(key, name, REMOVED) and listed(key, name, ADDED)):
                yield from differences(want[key], got[key], name, f"{path}.{key}")
    elif isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            yield f"{where}: frozen {len(want)} items, now {len(got)}"
        for i, (a, b) in enumerate(zip(want, got, strict=False)):
            yield from differences(a, b, name, f"{path}[{i}]")
    elif canonical(want) != canonical(got):
        yield f"{where}: frozen {_show(want)}, now {_show(got)}"


def _show(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 200 else text[:200] + "..."


def described(found: list[str]) -> str:
    """The first difference, and how many more there are."""
    more = f"\n    (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0]}{more}"


# ---- the command --------------------------------------------------------------------------------


def main() -> int:
    """Parse the command line and do it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="record")
    what.add_argument("--check", action="store_true", help="compare with what is recorded")
    what.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="PATTERN", help="runs whose name matches, as in a shell")
    parser.add_argument("--fast", action="store_true", help="the runs that the test suite does")
    parser.add_argument("--jobs", type=int, default=2, help="processes; 2")
    parser.add_argument("--times", action="store_true", help="say how long each run took")
    given = parser.parse_args()
    if given.worker:
        work()
        return 0
    names = chosen(given.only, given.fast)
    if not names:
        print("error: no run has such a name", file=sys.stderr)
        return 1
    print(f"{len(names)} runs of {package()}", flush=True)
    began, bad = time.perf_counter(), 0
    frozen = load()
    results: dict[str, Any] = {}
    for name, answer, seconds in perform_all(names, given.jobs):
        if given.times:
            print(f"{seconds:7.2f} s  {name}", flush=True)
        if given.write:
            found = [f"failed: {answer['error'].strip()}"] if "error" in answer else []
            results[name] = answer.get("result")
        else:
            found = compared(name, answer, frozen)
        if found:
            bad += 1
            print(f"DIFFERS {name}\n    {described(found)}", flush=True)
    took = f"{time.perf_counter() - began:.0f} s"
    if given.write:
        if bad:
            print(f"{bad} of {len(names)} failed, nothing written ({took})")
            return 1
        kept = {n: r for n, r in frozen.items() if n in runs()} if given.only or given.fast else {}
        save(kept | results)
        print(f"recorded {len(results)} runs in {took}: {RESULTS.stat().st_size:,} bytes")
        return 0
    print(f"{len(names) - bad} of {len(names)} equal ({took})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
