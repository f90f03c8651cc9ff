"""What capture costs on a GPU, and whether what it reads is what the graph used.

Every cell is a process of its own and has four contexts of one model, which run the same tokens:

- *plain*: without capture;
- *graph*: all that `uvmsim capture llama-cpp` does, routing read after each graph;
- *layer*: the same with a stop at every layer (``--stops layer``);
- *reference*: a callback in plain Python that stops after each layer's experts and reads their ids
  and weights there, where CUDA's fused top-k kernel and its graph up to there are as in *plain*.

The first three are timed in turns, token by token. Reported are medians and means (writing is done
for many tokens at once, which shows in the mean alone), whether logits are those of *plain*, and how
many rows differ from *reference* and from *layer*. (A stop at the router takes the fused kernel
apart, which rounds differently: *layer* may differ from *graph* in a near-tie.)

    PYTHONPATH=. python3 experiments/capture_overhead/gpu.py MODEL.gguf --lib BUILD/bin --out DIR

Prints one JSON object; ``DIR`` gets the traces. ``--cpu`` tries all of it without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from traces.capture.find_library import find_library, preload_environment  # noqa: E402

UNIFIED = "GGML_CUDA_ENABLE_UNIFIED_MEMORY"
CELLS: dict[str, dict[str, Any]] = {
    "resident": {},
    "ncmoe": {"n_cpu_moe": 99},
    "cache": {"n_cpu_moe": 99, "cache": True},
    "managed": {"managed": True},
    "managed_faults": {"managed": True, "faults": True},
}
PROMPT, WARM = 64, 12


class AtTheExperts:
    """Ids and weights of every layer, read when its experts have just run."""

    def __init__(self, library: Any) -> None:
        from traces.capture.ggml_tensor import TensorReader
        from traces.capture.libllama import EVAL_CALLBACK

        self._read = TensorReader(library.c).read
        self._callback = EVAL_CALLBACK(self._on_node)
        self.pointers = (ctypes.cast(self._callback, ctypes.c_void_p).value or 0, 0)
        self._biased: set[int] = set()
        self._at: dict[tuple[str, int], int] = {}
        self._now: dict[int, tuple[Any, Any]] = {}
        self.error: BaseException | None = None

    def _on_node(self, address: int, ask: bool, user: int) -> bool:
        try:
            return self._node(address, ask)
        except BaseException as e:
            self.error = e
            return not ask

    def _node(self, address: int, ask: bool) -> bool:
        from traces.capture.ggml_tensor import name_of

        found = re.fullmatch(rb"ffn_moe_([a-z_]+)-(\d+)", name_of(address))
        if not found:
            return False
        what, layer = found[1].decode(), int(found[2])
        if ask:
            if what == "topk":
                self._at["ids", layer] = address
            elif what in ("weights", "weights_softmax", "weights_norm", "weights_scaled"):
                self._at["weights", layer] = address
            if what == "down_biased":  # part of the same kernel
                self._biased.add(layer)
            return what == "down_biased" or (what == "down" and layer not in self._biased)
        ids = self._read(self._at["ids", layer])
        weights = self._read(self._at["weights", layer]).reshape(ids.shape)
        self._now[layer] = ids, weights
        return True

    def take(self) -> dict[int, tuple[Any, Any]]:
        """What the last graph used, by layer."""
        if self.error:
            raise self.error
        now, self._now = self._now, {}
        return now


def recorder(
    way: str, model: Any, library: Any, info: Any, out: Path, settings: Any, stack: ExitStack
) -> Any:
    """A `CaptureRun` into ``out``, and its context and callback."""
    from traces.capture.libllama import LlamaContext
    from traces.capture.llama_cpp import CaptureRun
    from traces.capture.options import CaptureOptions, CaptureResult
    from traces.capture.recording import Recording
    from traces.capture.routing_callback import RoutingCallback
    from traces.files.schema import RoutingMeta
    from traces.routing import RoutingWriter

    callback = RoutingCallback(library, info.moe_layers, stop_at_layers=way == "layer")
    context = stack.enter_context(LlamaContext(model, **settings, callback=callback.pointers))
    meta = RoutingMeta(model=info, ids_order="ranked")
    recording = stack.enter_context(Recording(RoutingWriter(out, meta, weights=True)))
    options, result = CaptureOptions(n_batch=PROMPT), CaptureResult(out, 1)
    run = CaptureRun(context, callback, recording, info, options, result, None)
    stack.callback(run.finish)
    return run, context, callback


def cell(name: str, a: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell in this process."""
    import numpy as np

    from traces.capture import provenance
    from traces.capture.cupti import FaultRecording
    from traces.capture.libllama import Library, LlamaContext, LlamaModel
    from traces.capture.row_order import Row
    from traces.files.schema import DECODE, PREFILL
    from traces.models.gguf import describe

    how, out = CELLS[name], Path(a.out)
    paths = {way: out / f"{name}.{way}.arrow" for way in ("graph", "layer")}
    info = describe(a.model)
    found: dict[str, Any] = {}
    with ExitStack() as outer:
        faults = None
        if how.get("faults"):
            faults = outer.enter_context(FaultRecording(out / f"{name}.faults.arrow"))
        library = Library(find_library(a.lib))
        model = outer.enter_context(
            LlamaModel(
                library,
                a.model,
                n_gpu_layers=0 if a.cpu else 99,
                n_cpu_moe=how.get("n_cpu_moe", 0),
                no_mmap=True,
            )
        )
        found["library"] = library.build
        settings = {"n_ctx": 2048, "n_batch": PROMPT, "n_ubatch": PROMPT // 2}
        settings |= {"n_threads": a.threads}
        if how.get("cache"):
            settings["moe_cache_bytes"] = a.cache_mib << 20
        rng = np.random.default_rng(0)
        ids = rng.integers(0, model.n_vocab, PROMPT + WARM + a.tokens).tolist()
        prompt = [Row(0, i, ids[i], PREFILL, i == PROMPT - 1) for i in range(PROMPT)]
        work = [prompt] + [[Row(0, i, ids[i], DECODE, True)] for i in range(PROMPT, len(ids))]
        with ExitStack() as stack:
            plain = stack.enter_context(LlamaContext(model, **settings))
            graph, graph_context, graph_callback = recorder(
                "graph", model, library, info, paths["graph"], settings, stack
            )
            layer, layer_context, _ = recorder(
                "layer", model, library, info, paths["layer"], settings, stack
            )
            truth = AtTheExperts(library)
            asking = stack.enter_context(LlamaContext(model, **settings, callback=truth.pointers))

            def direct(context: Any) -> Any:
                def run(rows: list[Row]) -> None:
                    context.decode(
                        [r.token for r in rows], [r.pos for r in rows], [0] * len(rows),
                        [r.output for r in rows],
                    )  # fmt: skip

                return run

            def through(capture: Any) -> Any:
                def run(rows: list[Row]) -> None:
                    for _ in capture.run(rows):
                        pass

                return run

            ways = [("plain", direct(plain)), ("graph", through(graph)), ("layer", through(layer))]
            times: dict[str, list[float]] = {way: [] for way, _ in ways}
            used, equal_logits = [], {"graph": 0, "layer": 0, "reference": 0}
            furthest = dict.fromkeys(equal_logits, 0.0)
            for i, rows in enumerate(work):
                for way, run in ways[i % 3 :] + ways[: i % 3]:
                    start = time.perf_counter_ns()
                    run(rows)
                    if i > WARM:
                        times[way].append((time.perf_counter_ns() - start) / 1e6)
                direct(asking)(rows)
                used.append(truth.take())
                last = len(rows) - 1
                theirs = plain.logits(last)
                for way, context in (
                    ("graph", graph_context), ("layer", layer_context), ("reference", asking)
                ):  # fmt: skip
                    ours = context.logits(last)
                    equal_logits[way] += int((ours == theirs).all())
                    furthest[way] = max(furthest[way], float(np.abs(ours - theirs).max()))
        found["kept_memory_mib"] = sum(n for _, n in graph_callback.kept_memory) / 2**20
    if faults is not None:
        found["faults"] = {
            "rows": faults.rows,
            "dropped": faults.dropped,
            "notes": faults.notes,
            "clock_drift_ns": faults.clock.drift_ns,
            "clock_error_ns": faults.clock.error_ns,
        }
    arrays = {way: np.array(t) for way, t in times.items()}
    found["decode_ms"] = {
        way: {
            "median": float(np.median(t)),
            "mean": float(t.mean()),
            "p90": float(np.quantile(t, 0.9)),
        }
        for way, t in arrays.items()
    }
    found["over_plain_ms"] = {
        way: {
            "median_of_differences": float(np.median(arrays[way] - arrays["plain"])),
            "mean_of_differences": float((arrays[way] - arrays["plain"]).mean()),
            "difference_of_medians": float(np.median(arrays[way]) - np.median(arrays["plain"])),
        }
        for way in ("graph", "layer")
    }
    found["tokens"] = a.tokens
    found["batches"] = len(work)
    found["batches_with_plains_logits"] = equal_logits
    found["largest_logit_difference"] = furthest
    found["against_reference"] = compare_with(paths["graph"], used, info)
    found["against_layer"] = compare(paths["graph"], paths["layer"])
    found["machine"] = provenance.machine()
    return found


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Rows of two traces."""
    import numpy as np

    from traces.routing import open_routing

    a, b = open_routing(one), open_routing(other)
    assert a.weights is not None and b.weights is not None
    weights = a.weights.view(np.int32) == b.weights.view(np.int32)
    both = (a.experts == b.experts).all(axis=1)
    gap = np.abs(a.weights - b.weights)[both & (a.experts[:, 0] >= 0)]
    return {
        "rows": a.n_rows,
        "rows_with_other_ids": int((~both).sum()),
        "rows_with_other_sets": int((np.sort(a.experts) != np.sort(b.experts)).any(axis=1).sum()),
        "rows_with_other_weights": int((~weights.all(axis=1)).sum()),
        "largest_weight_difference_of_same_ids": float(gap.max()) if gap.size else 0.0,
    }


def compare_with(path: Path, used: list[dict[int, Any]], info: Any) -> dict[str, Any]:
    """Decode rows of a trace against what the reference saw, step by step."""
    import numpy as np

    from traces.files.schema import DECODE
    from traces.routing import open_routing

    t = open_routing(path)
    decode = t.phase == DECODE
    layers = len(info.moe_layers)
    ids = t.experts[decode].reshape(-1, layers, t.top_k)
    weights = t.weights[decode].reshape(-1, layers, t.top_k)  # type: ignore[index]
    assert len(ids) == len(used) - 1
    wrong_ids = wrong_weights = 0
    for step, seen in enumerate(used[1:]):
        for i, il in enumerate(info.moe_layers):
            theirs, their_weights = seen[il]
            wrong_ids += int((ids[step, i] != theirs[0]).any())
            wrong_weights += int((weights[step, i] != their_weights[0]).any())
    return {
        "decode_rows": int(ids.shape[0] * layers),
        "rows_with_other_ids": wrong_ids,
        "rows_with_other_weights": wrong_weights,
        "missing": int((ids[..., 0] < 0).sum() + np.isnan(weights).sum()),
    }


def both_traces(a: argparse.Namespace) -> dict[str, Any]:
    """The command itself: routing and page faults of one run, on a card made too small for it."""
    out = Path(a.out)
    routing, faults = out / "run.arrow", out / "run.faults.arrow"
    capture = [sys.executable, "-c", "from traces.commands.capture import capture; capture()"]
    check = [sys.executable, "-c", "from traces.commands.trace import trace; trace()"]
    words = [*capture, "llama-cpp", a.model, "--lib", a.lib, "--prompt", "x " * 40]
    words += ["--n-predict", "32", "--n-gpu-layers", "99", "--ignore-eos", "--no-mmap"]
    words += ["--out", str(routing), "--faults", str(faults), "--json"]
    if a.vram_left_mib:
        words += ["--vram-left-mib", str(a.vram_left_mib)]
    found: dict[str, Any] = {}
    for name, command in (
        ("capture", words),
        ("check", [*check, "check", str(routing), "--faults", str(faults), "--json"]),
        ("check_faults", [*check, "check", str(faults), "--json"]),
        ("stats", [*check, "stats", str(faults), "--json"]),
    ):
        done = run_process(command)
        found[name] = parsed(done) | {"code": done.returncode}
    found["files"] = {p.name: p.stat().st_size for p in sorted(out.glob("run.*"))}
    return found


def run_process(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        words,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def parsed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a process printed as JSON, or how it failed."""
    try:
        result = json.loads(done.stdout)
        return result if isinstance(result, dict) else {"result": result}
    except ValueError:
        return {"failed": done.returncode, "said": (done.stdout + done.stderr)[-2000:]}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("--lib", help="folder of a CUDA libllama")
    p.add_argument("--out", required=True, help="folder for traces")
    p.add_argument("--tokens", type=int, default=200)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--cache-mib", type=int, default=600)
    p.add_argument("--vram-left-mib", type=int, default=0, help="for the run with page faults")
    p.add_argument("--cells", default=",".join(CELLS), help="some of them, by commas")
    p.add_argument("--cpu", action="store_true")
    p.add_argument("--cell", help=argparse.SUPPRESS)
    a = p.parse_args()
    Path(a.out).mkdir(parents=True, exist_ok=True)
    if a.cell:
        environment = preload_environment(find_library(a.lib))
        if environment is not None:
            os.execve(sys.executable, sys.orig_argv, environment)
        print(json.dumps(cell(a.cell, a)))
        return
    result: dict[str, Any] = {"model": Path(a.model).name, "cells": {}}
    for name in ["resident", "ncmoe"] if a.cpu else a.cells.split(","):
        managed = {UNIFIED: "1"} if CELLS[name].get("managed") else {}
        done = run_process([sys.executable, *sys.argv, "--cell", name], **managed)
        result["cells"][name] = parsed(done)
        print(
            f"{name}: {result['cells'][name].get('over_plain_ms', done.stderr[-300:])}",
            file=sys.stderr,
        )
    if not a.cpu:
        result["both_traces"] = both_traces(a)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
