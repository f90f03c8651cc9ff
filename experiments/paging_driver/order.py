"""In which order faults come and what a crowded batch takes: raw entries of the driver's queue.

    python experiments/paging_driver/order.py --lib BUILD/bin --out OUT [--only crowds,engine,llama]

`crowds`: warps that fault in turns, where only their number differs; `engine`, `llama`: the cold runs
of engine.toml and llama.toml, every entry kept with the unit that faulted and the GPU's own time. Makes
OUT/crowds.json and OUT/NAME.npz (`columns`), OUT/NAME.json (what the recording knew),
NAME.routing.arrow. batches.py reads them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from replay.paging.touches import NOTHING, PAGES, Touches, turns  # noqa: E402
from traces.capture.uvm_queue import only  # noqa: E402

MIB = 1 << 20
KEPT = {
    "gpu_fault": (
        "batch", "time", "time_gpu", "address", "gpc", "client", "client_type", "access", "fault",
    ),
    "replay": ("batch", "time", "time_gpu"),
    "migration": ("address", "bytes", "cause", "src", "begin", "end", "begin_gpu", "end_gpu"),
}  # fmt: skip


def columns(entries: np.ndarray) -> dict[str, np.ndarray]:
    """``kind_field``: of faults, replays and migrations, in the order in which they were noted."""
    made = {}
    for kind, fields in KEPT.items():
        rows = only(entries, kind)
        made |= {f"{kind}_{f}": rows[f].copy() for f in fields}
    return made


# ---- crowds ----------------------------------------------------------------------------------------


SHARED = (1, 8, 32, 132, 264, 528, 1056, 2112, 4224)
OWN = (1, 2, 4, 8, 16, 32, 64, 100)
"""Warps of `replay.paging.touches.turns`."""
BOTH_HOSTS = (1, 16, 32, 64, 1056)
"""Those that are measured on host memory that the CPU touched too."""


def crowds(blocks: int, sms: int) -> list[Touches]:
    """Turns of 1 to 32 warps an SM of 132, and 64 KiB each at random."""
    wide = np.full((16 * sms, 32), NOTHING, np.uint32)
    some = np.random.default_rng(5).permutation(blocks * 32)[: wide.size // 8] * 16
    wide.reshape(-1)[: len(some)] = some
    return [*turns(SHARED, OWN, 60), Touches("64 KiB each at random", wide)]


def do_crowds(out: Path) -> None:
    from replay.paging.counts import batch_rows, counts
    from replay.paging.cuda import CudaPaging

    d = CudaPaging(256 * MIB)
    found: dict[str, Any] = {"about": d.about(), "rows": []}
    try:
        for host in ("huge", "ordered"):
            d.renew(host)
            for t in crowds(d.pages // PAGES, d.sms):
                if host == "ordered" and len(t.pages) not in BOTH_HOSTS:
                    continue
                times = [d.time(t) for _ in range(4)]
                warm = d.again(t)
                recorded, seen = d.record(t)
                rows = batch_rows(seen)
                kept = {k: v.tolist()[:80] for k, v in rows.items() if k != "batch"}
                found["rows"].append(
                    {"host": host, "kind": t.about.get("turn", t.name), "n": len(t.pages),
                     "turns": int(t.pages.shape[1]), "ns": times,
                     "warm_ns": warm, "recorded_ns": recorded,
                     "counts": counts(seen).to_json(), "others": seen.others, "batches": kept}
                )  # fmt: skip
                r = found["rows"][-1]
                print(host, r["kind"], r["n"], f"{np.median(times) / 1e3:.0f} us", r["counts"])
            (out / "crowds.json").write_text(json.dumps(found) + "\n")
    finally:
        d.close()


# ---- runs ------------------------------------------------------------------------------------------


def do_engine(out: Path) -> None:
    from replay.paging.validation import engine
    from replay.paging.validation.config import EngineRun

    raw: list[np.ndarray] = []
    whole = engine.Events.entries

    def entries(self: Any) -> np.ndarray:
        found = whole(self)
        raw.append(found)
        return found

    engine.Events.entries = entries  # type: ignore[method-assign]
    config = tomllib.loads((HERE / "engine.toml").read_text())
    for table in config["engine"]:
        run = EngineRun(**table)
        raw.clear()
        made = engine.measure(run, 2)
        made.pop("seen")
        np.savez_compressed(out / f"{run.name}.npz", **columns(raw[-1]))
        (out / f"{run.name}.json").write_text(json.dumps(made | {"config": table}) + "\n")
        print(run.name, [sum(s) / 1e6 for s in made["step_ns"]], len(raw[-1]), flush=True)


def do_llama(out: Path, lib: str, work: Path, names: list[str], config: str) -> None:
    from replay.paging.validation import llama
    from replay.paging.validation.config import LlamaRun

    if not (work / "models").exists():
        subprocess.run([sys.executable, HERE / "models.py", work / "models"], check=True)
    text = (HERE / config).read_text().replace("MODELS", str(work / "models"))
    for table in tomllib.loads(text)["llama"]:
        run = LlamaRun(**table)
        if names and run.name not in names:
            continue
        begin = time.monotonic()
        timed = []
        for i in range(2):
            file = work / f"{run.name}.{i}.arrow"
            llama.run(run, lib, file, managed=True, cold=True)
            timed.append(llama.step_ns(llama.opened(file)).tolist())
        own = f"import sys; sys.path.insert(0, {str(HERE)!r}); import order"
        llama.CHILD = f"{own}; order.child({str(work)!r})"
        try:
            routing = out / f"{run.name}.routing.arrow"
            file = work / f"{run.name}.faults.arrow"
            llama.run(run, lib, routing, managed=True, cold=True, faults=file)
        finally:
            llama.CHILD = "from replay.paging.validation.llama_child import main; main()"
        (work / "raw.npz").rename(out / f"{run.name}.npz")
        from traces.faults import open_faults

        meta = open_faults(file).meta
        recorded = llama.step_ns(llama.opened(routing)).tolist()
        starts = llama.step_starts(llama.opened(routing)).tolist()
        said = {"step_ns": timed, "recorded_step_ns": recorded, "step_starts": starts, "meta": meta}
        (out / f"{run.name}.json").write_text(json.dumps(said))
        print(run.name, [sum(t) / 1e6 for t in timed], sum(recorded) / 1e6,
              f"{time.monotonic() - begin:.0f} s", flush=True)  # fmt: skip


def child(work: str) -> None:
    """What `replay.paging.validation.llama_child` does, with raw entries kept in folder ``work``."""
    from replay.paging.validation import llama_child
    from traces.capture.driver_recording import DriverRecording

    raw: list[np.ndarray] = []
    origin = [0]
    write = DriverRecording._write

    def both(self: DriverRecording, entries: np.ndarray) -> None:
        raw.append(entries)
        origin[0] = self._origin
        write(self, entries)

    DriverRecording._write = both  # type: ignore[method-assign]
    llama_child.main()
    made = columns(np.concatenate(raw))
    np.savez_compressed(Path(work) / "raw.npz", origin=np.array(origin), **made)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--lib")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--work", type=Path)
    p.add_argument("--only", default="crowds,engine,llama")
    p.add_argument("--runs", default="", help="names of llama.cpp's runs; all")
    p.add_argument("--config", default="llama.toml")
    given = p.parse_args()
    work = (given.work or Path(tempfile.mkdtemp())).resolve()
    out = given.out.resolve()
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    for name in given.only.split(","):
        begin = time.monotonic()
        try:
            if name == "llama":
                do_llama(
                    out, given.lib, work, [r for r in given.runs.split(",") if r], given.config
                )
            else:
                {"crowds": do_crowds, "engine": do_engine}[name](out)
        except Exception as err:
            print(f"{name} failed: {type(err).__name__}: {err}", flush=True)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
