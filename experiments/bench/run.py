"""Measure replay, timed simulation, curves and start-up; write results with the machine in them.

python experiments/bench/run.py --traces build/bench --out experiments/bench/results.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "peers")]

import gen_traces  # noqa: E402
import rivals  # noqa: E402

import uvmsim  # noqa: E402

POLICIES = ("lru", "fifo", "clock", "sieve", "lfu", "arc", "s3fifo", "belady")
SIZES = {"zipf1_4608": (460, 2304), "moe_36x128_top4": (460, 2304), "zipf08_1m": (100_000, 500_000)}


POLICYLANG_TOKENS = 4000
"""Enough for our own time not to be all start-up; the rival takes seconds."""


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = f()
    return time.perf_counter() - start, result


def alternate(repeats: int, *calls: Callable[[], Any]) -> list[tuple[list[float], Any]]:
    """Each call ``repeats`` times, in turns; their times and last results."""
    times: list[list[float]] = [[] for _ in calls]
    results: list[Any] = [None] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            seconds, results[i] = timed(call)
            times[i].append(seconds)
    return list(zip(times, results, strict=True))


def rate(n: int, times: list[float]) -> dict[str, float]:
    """Median and spread in millions a second."""
    per = sorted(n / t / 1e6 for t in times)
    return {
        "median": round(statistics.median(per), 2),
        "min": round(per[0], 2),
        "max": round(per[-1], 2),
    }


def trace_files(folder: Path, name: str, n: int) -> tuple[np.ndarray, Path, int]:
    """The ids (mapped), their oracleGeneral file, and the size of the catalogue; made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    catalog, make = gen_traces.TRACES[name]
    ids, oracle = folder / f"{name}.{n}.ids.npy", folder / f"{name}.{n}.oracleGeneral.bin"
    if not oracle.exists():
        made = make(n)
        np.save(ids, made)
        gen_traces.oracle_general(made, catalog).tofile(oracle)
    return np.load(ids, mmap_mode="r"), oracle, catalog


def plain_replay(
    folder: Path, n: int, repeats: int, policies: Sequence[str], catalogs: Sequence[str]
) -> list[dict[str, Any]]:
    """`uvmsim.cache_misses` against libCacheSim on the same traces and policies."""
    rows = []
    have = rivals.installed("libcachesim")
    for name in catalogs:
        capacities = SIZES[name]
        ids, oracle, catalog = trace_files(folder, name, n)
        for policy in policies:
            uvmsim.cache_misses(ids[:1000], 10, policy)  # compiled and loaded before the clock runs
            for capacity in capacities:

                def ours(ids=ids, capacity=capacity, policy=policy) -> int:
                    return uvmsim.cache_misses(ids, capacity, policy)

                calls: list[Callable[[], int]] = [ours]
                if have:
                    calls.append(rivals.libcachesim(oracle, n, catalog, capacity, policy))
                measured = alternate(repeats, *calls)
                row: dict[str, Any] = {"trace": name, "capacity": capacity, "policy": policy}
                row |= {"misses": measured[0][1], "uvmsim_m_per_s": rate(n, measured[0][0])}
                if have:
                    theirs = measured[1]
                    row |= {"libcachesim_m_per_s": rate(n, theirs[0])}
                    row["ratio"] = round(
                        row["uvmsim_m_per_s"]["median"] / row["libcachesim_m_per_s"]["median"], 2
                    )
                    row["same_misses"] = theirs[1] == measured[0][1]
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def user_policy(folder: Path, n: int, repeats: int) -> dict[str, Any]:
    """A user's own compiled policy, one access at a time."""
    ids, _, _ = trace_files(folder, "zipf1_4608", n)
    spec = f"{HERE / 'my_lru.py'}:MyLRU"
    uvmsim.cache_misses(ids[:1000], 10, spec)
    ((times, misses),) = alternate(repeats, lambda: uvmsim.cache_misses(ids, 2304, spec))
    return {"misses": misses, "m_per_s": rate(n, times)}


def sixteen(folder: Path, n: int) -> dict[str, Any]:
    """8 policies x 2 capacities, all accesses each, on two threads, after load."""
    ids, _, _ = trace_files(folder, "zipf1_4608", n)
    jobs = [(p, c) for p in POLICIES for c in SIZES["zipf1_4608"]]
    for p in POLICIES:
        uvmsim.cache_misses(ids[:1000], 10, p)
    cost = {"belady": 0, "s3fifo": 1, "arc": 2, "lfu": 3}
    jobs.sort(key=lambda job: cost.get(job[0], 9))  # the longest first
    with ThreadPoolExecutor(2) as pool:
        seconds, _ = timed(
            lambda: list(pool.map(lambda j: uvmsim.cache_misses(ids, j[1], j[0]), jobs))
        )
    return {"configurations": len(jobs), "accesses_each": n, "threads": 2, "seconds": seconds}


def against_policylang(routing: str | None, repeats: int) -> dict[str, Any] | None:
    """Top-k LRU, a pool a layer, experts one by one: moe-policylang's `replay_policies` and ours."""
    if not (rivals.installed("moe_policylang") and rivals.installed("torch")):
        return None
    from traces import open_routing
    from traces.samples import BUNDLED

    trace = open_routing(routing or BUNDLED)
    if routing:
        trace = trace.head(POLICYLANG_TOKENS)
    n_layers, k = len(trace.layers), trace.top_k
    decode = trace.phase == 1
    rows = rivals.softmax_rows(trace.experts[decode].reshape(-1, n_layers, k), trace.n_experts)
    ids = rivals.its_top_k(rows, k)
    e, slots = ids.size, trace.n_experts // 4
    layers = [
        np.ascontiguousarray(ids[:, i]).reshape(-1).astype(np.uint32) for i in range(n_layers)
    ]

    def ours() -> int:
        return sum(uvmsim.cache_misses(x, slots, "lru") for x in layers)

    ours()
    measured = alternate(repeats, ours, rivals.moe_policylang(rows, k, 0.25))
    return {
        "tokens": len(ids), "accesses": e,
        "same_misses": measured[0][1] == measured[1][1],
        "uvmsim_m_per_s": rate(e, measured[0][0]),
        "moe_policylang_m_per_s": rate(e, measured[1][0]),
        "ratio": round(
            statistics.median(measured[1][0]) / statistics.median(measured[0][0]), 1
        ),
    }  # fmt: skip


def sample_job(trace: str | None = None) -> Any:
    """The default comparison's job, on the bundled trace or one given."""
    from uvmsim.machine.hardware import Hardware
    from uvmsim.runs.job import Job
    from uvmsim.studies.resolve import load_trace, resolve_model
    from uvmsim.studies.scenario import Scenario
    from uvmsim.workload import build_workload

    options = Scenario(trace=trace)
    t = load_trace(trace, None)
    return Job(build_workload(t), resolve_model(options, t, []), Hardware.load("rtx5090"))


def timed_simulation(trace: str | None, repeats: int) -> dict[str, Any]:
    """Decisions and clock of a run with and without prefetch, compiled and SimPy."""
    from uvmsim.clocks import des, fast
    from uvmsim.mechanisms.expert_cache import ExpertCache
    from uvmsim.policies.registry import parse

    base = sample_job(trace)
    total = base.workload.n_layers * base.workload.n_experts
    n = len(base.workload.ids)
    out: dict[str, Any] = {"accesses": n}
    for policy in ("lru", "lru+next-layer"):
        job = replace(base, policy=parse(policy), slots=total // 2)
        plan = ExpertCache().plan(job)
        fast.run(plan)

        def whole(job=job) -> None:
            fast.run(ExpertCache().plan(job))

        def clock(plan=plan) -> None:
            fast.run(plan)

        a, b = alternate(repeats, whole, clock)
        (slow, _), same = timed(lambda plan=plan: des.run(plan)), None
        same = des.run(plan).equals(fast.run(plan))
        out[policy] = {
            "plan_and_clock_m_per_s": rate(n, a[0]),
            "clock_m_per_s": rate(n, b[0]),
            "simpy_clock_m_per_s": round(n / slow / 1e6, 3),
            "clock_ratio": round(slow / statistics.median(b[0]), 1),
            "same_times": same,
        }
    return out


def curve(folder: Path, n: int, repeats: int) -> dict[str, Any]:
    """The exact LRU curve for all capacities in one pass."""
    from uvmsim.studies.mrc.stack import stack_histogram

    out = {}
    for name in ("zipf1_4608", "moe_36x128_top4"):
        ids, _, catalog = trace_files(folder, name, n)
        lo = np.arange(n + 1)
        stack_histogram(ids[:100], lo[:101], catalog)
        ((times, (hist, first)),) = alternate(
            repeats, lambda ids=ids, lo=lo, catalog=catalog: stack_histogram(ids, lo, catalog)
        )
        capacity = SIZES[name][0]
        misses = int(first + hist[capacity:].sum())
        out[name] = {
            "m_per_s": rate(n, times),
            "same_as_replay": misses == uvmsim.cache_misses(ids, capacity, "lru"),
        }
    return out


def start_up() -> dict[str, float]:
    """`uvmsim compare` on the bundled trace: the first call ever, and with warm caches."""
    with tempfile.TemporaryDirectory() as cold:
        env = os.environ | {"NUMBA_CACHE_DIR": cold}
        call = [sys.executable, "-c", "from uvmsim.cli import main; main()", "compare", "--json"]

        def run() -> None:
            subprocess.run(call, env=env, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

        first, _ = timed(run)
        warm = min(timed(run)[0] for _ in range(3))
    return {"first_call_s": round(first, 2), "warm_call_s": round(warm, 2)}


def memory(folder: Path, n: int) -> dict[str, Any]:
    """Peak resident memory of one replay in a fresh process, the mapped trace included."""
    # VmHWM, not getrusage: the latter inherits the parent's peak.
    code = (
        "import re, sys, numpy as np, uvmsim;"
        "ids = np.load(sys.argv[1], mmap_mode='r');"
        "uvmsim.cache_misses(ids, int(sys.argv[2]), sys.argv[3]);"
        "print(re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1])"
    )
    out = {}
    for name, capacities in SIZES.items():
        trace_files(folder, name, n)
        path = folder / f"{name}.{n}.ids.npy"
        for policy in ("lru", "s3fifo", "belady"):
            done = subprocess.run(
                [sys.executable, "-c", code, str(path), str(capacities[0]), policy],
                capture_output=True, text=True, check=True, cwd=ROOT,
            )  # fmt: skip
            out[f"{name} {policy}"] = round(int(done.stdout) / 1024)
    return {"peak_mib": out, "trace_mib": round(n * 4 / 2**20)}


def machine() -> dict[str, Any]:
    """What is needed to place the figures."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        cpu = names[0] if names else cpu
    import numba

    return {
        "cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__,
        "uvmsim": uvmsim.__version__, "system": platform.system(),
    }  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--traces", type=Path, default=Path("build/bench"))
    ap.add_argument("--routing", help="routing trace for the timed part; default: the bundled one")
    ap.add_argument("--requests", type=int, default=20_000_000)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--only", nargs="*", help="parts to measure; default: all")
    ap.add_argument("--policies", nargs="*", default=POLICIES, help="of the plain replay")
    ap.add_argument("--catalogs", nargs="*", default=list(SIZES), help="traces of the plain replay")
    ap.add_argument("--out", type=Path)
    a = ap.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "start_up": start_up,
        "user_policy": lambda: user_policy(a.traces, a.requests, a.repeats),
        "sixteen": lambda: sixteen(a.traces, a.requests),
        "moe_policylang": lambda: against_policylang(a.routing, a.repeats),
        "timed_simulation": lambda: timed_simulation(a.routing, a.repeats),
        "lru_curve": lambda: curve(a.traces, a.requests, a.repeats),
        "memory": lambda: memory(a.traces, a.requests),
        "plain_replay": lambda: plain_replay(
            a.traces, a.requests, a.repeats, a.policies, a.catalogs
        ),
    }
    result = {"machine": machine(), "requests": a.requests, "repeats": a.repeats}
    for name, part in parts.items():
        if a.only and name not in a.only:
            continue
        result[name] = part()
        result["load_at_end"] = os.getloadavg()[0]
        print(name, "done", file=sys.stderr, flush=True)
        if a.out:  # what is measured so far survives a run that is cut short
            partial = a.out.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
            partial.replace(a.out)
    if not a.out:
        print(json.dumps(result, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
