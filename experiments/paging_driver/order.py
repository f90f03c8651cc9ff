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

from replay.paging.touches import NOTHING, PAGES, Touches  # noqa: E402
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


def crowd(name: str, pages: np.ndarray, **about: Any) -> Touches:
    return Touches(name, pages.astype(np.uint32), about={"kind": name, **about})


def crowds(blocks: int, sms: int) -> list[Touches]:
    """Turns in which ``n`` warps want: one page, all the same (64 KiB come); the pages of one block (2
    MiB come, or less); a page each in ``n`` blocks (64 KiB come into each)."""
    made = []
    turns = 60
    first = (np.arange(turns) + 2) * PAGES
    for n in (1, 8, 32, sms, 2 * sms, 4 * sms, 8 * sms, 16 * sms, 32 * sms):
        made.append(crowd("one page", np.tile(first + 5, (n, 1)), n=n))
        w = np.arange(n)[:, None]
        made.append(crowd("one block", first[None, :] + w % PAGES, n=n))
        made.append(crowd("a page of 64 KiB", first[None, :] + 32 * (w % 16), n=n))
    at = np.array([0, 256, 128, 384, 64, 320, 192, 448, 32, 288, 160, 416, 96, 352, 224, 480])
    for n in (1, 2, 4, 8, 16, 32, 64, 100):
        made.append(crowd("a block each", (np.arange(n)[:, None] + 1) * PAGES + at[None, :], n=n))
    wide = np.full((16 * sms, 32), NOTHING, np.int64)
    some = np.random.default_rng(5).permutation(blocks * 32)[: wide.size // 8] * 16
    wide.reshape(-1)[: len(some)] = some
    made.append(crowd("64 KiB each at random", wide, n=len(wide)))
    return made


def do_crowds(out: Path) -> None:
    from replay.paging.counts import batch_rows, counts
    from replay.paging.cuda import CudaPaging

    d = CudaPaging(256 * MIB)
    found: dict[str, Any] = {"about": d.about(), "rows": []}
    try:
        for host in ("huge", "ordered"):
            d.renew(host)
            for t in crowds(d.pages // PAGES, d.sms):
                if host == "ordered" and t.about["n"] not in (1, 32, 8 * d.sms, 16, 64):
                    continue
                times = [d.time(t) for _ in range(4)]
                warm = d.again(t)
                recorded, seen = d.record(t)
                rows = batch_rows(seen)
                kept = {k: v.tolist()[:80] for k, v in rows.items() if k != "batch"}
                found["rows"].append(
                    {"host": host, **t.about, "turns": int(t.pages.shape[1]), "ns": times,
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
        request = {
            "out": str(out), "lib": lib, "run": run.model_dump(), "work": str(work),
        }  # fmt: skip
        llama.CHILD = f"import sys; sys.path.insert(0, {str(HERE)!r}); import order; order.child()"
        try:
            routing = out / f"{run.name}.routing.arrow"
            file = work / f"{run.name}.faults.arrow"
            (work / "request.json").write_text(json.dumps(request))
            sys.path.append(str(work))
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


def child() -> None:
    """What `replay.paging.validation.llama_child` does, with raw entries kept."""
    from replay.paging.validation import llama_child
    from traces.capture.driver_recording import DriverRecording

    work = Path(next(p for p in reversed(sys.path) if (Path(p) / "request.json").exists()))
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
    np.savez_compressed(work / "raw.npz", origin=np.array(origin), **made)


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
