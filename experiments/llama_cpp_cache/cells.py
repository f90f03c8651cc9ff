"""Run llama.cpp with its expert cache on the GPU, with and without capture; one JSON file a run.

Everything happens in this process through the capture package, so that the routing and llama.cpp's
own counters come from the same context:

- *alone*: a plain context generates greedily, timed; its tokens are the work of the next part;
- *turns*: a plain and a capturing context run those tokens, taking turns (the cost of capture);
- *mixed*: a capturing context runs four sequences, prompts in micro-batches of 24 tokens (which use
  the cache) and a late prompt of more than 32 (which reads it and changes nothing).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from traces.capture.find_library import find_library, preload_environment

PROMPT = (
    "The cache keeps the experts that were used most recently, and a layer that misses has to wait "
    "until the link has brought what the router asked for; then the slots change hands again."
)
LATE = "A second prompt of more than thirty-two tokens arrives late and passes the cache by."


def greedy(context: Any, i: int, banned: Any) -> int:
    """The likeliest token that does not end the generation."""
    logits = context.logits(i)
    logits[banned] = -float("inf")
    return int(logits.argmax())


def counts_of(library: Any) -> dict[str, Any] | None:
    found = library.take_moe_cache()
    return found.to_json() | {"log": list(found.lines)} if found else None


class Runner:
    """A loaded model and what all runs share."""

    def __init__(self, library: Any, model: Any, path: Path, threads: int) -> None:
        from traces.models.gguf import describe

        self.library, self.model, self.info = library, model, describe(path)
        self.threads = threads
        self.banned = [t for t in range(model.n_vocab) if model.ends_generation(t)]

    def context(self, mib: int, callback: Any = None, **more: Any) -> Any:
        from traces.capture.libllama import LlamaContext

        sizes = {"n_ctx": 2048, "n_batch": 512, "n_ubatch": 512} | more
        return LlamaContext(
            self.model,
            n_threads=self.threads,
            callback=callback,
            moe_cache_bytes=mib << 20,
            **sizes,
        )

    @contextmanager
    def capturing(self, mib: int, trace: Path, **more: Any) -> Iterator[Any]:
        """A context whose routing goes to a file; yields it and its `CaptureRun`."""
        from traces.capture.llama_cpp import CaptureRun
        from traces.capture.options import CaptureOptions, CaptureResult
        from traces.capture.recording import Recording
        from traces.capture.routing_callback import RoutingCallback
        from traces.files.schema import RoutingMeta
        from traces.routing import RoutingWriter

        callback = RoutingCallback(self.library, self.info.moe_layers)
        meta = RoutingMeta(model=self.info, ids_order="ranked")
        options, result = CaptureOptions(n_batch=512), CaptureResult(trace, 1)
        with (
            self.context(mib, callback.pointers, **more) as context,
            Recording(RoutingWriter(trace, meta, weights=True)) as recording,
        ):
            run = CaptureRun(context, callback, recording, self.info, options, result, None)
            yield context, run
            run.finish()

    def alone(self, mib: int, prompt: list[int], n: int) -> dict[str, Any]:
        """Greedy generation without capture: tokens, nanoseconds, counters."""
        with self.context(mib) as context:
            start = time.perf_counter_ns()
            last = len(prompt) - 1
            wanted = [i == last for i in range(len(prompt))]
            context.decode(prompt, range(len(prompt)), [0] * len(prompt), wanted)
            prefill_ns = time.perf_counter_ns() - start
            tokens, decode_ns = [greedy(context, last, self.banned)], []
            while len(decode_ns) < n:
                start = time.perf_counter_ns()
                context.decode([tokens[-1]], [last + len(tokens)], [0], [True])
                decode_ns.append(time.perf_counter_ns() - start)
                tokens.append(greedy(context, 0, self.banned))
        counts = counts_of(self.library)
        return {
            "tokens": tokens[:n], "prefill_ns": prefill_ns, "decode_ns": decode_ns, "counts": counts
        }  # fmt: skip

    def turns(self, mib: int, prompt: list[int], tokens: list[int], trace: Path) -> dict[str, Any]:
        """The same tokens through both contexts; who goes first changes with every token."""
        from traces.capture.row_order import Row
        from traces.files.schema import DECODE, PREFILL

        n = len(prompt)
        work = [[Row(0, i, t, PREFILL, i == n - 1) for i, t in enumerate(prompt)]]
        work += [[Row(0, n + i, t, DECODE, True)] for i, t in enumerate(tokens)]
        plain_ns, captured_ns = [], []
        plain = self.context(mib)
        with self.capturing(mib, trace) as (_, run):

            def one(rows: list[Row]) -> None:
                start = time.perf_counter_ns()
                plain.decode(
                    [r.token for r in rows], [r.pos for r in rows], [0] * len(rows),
                    [r.output for r in rows],
                )  # fmt: skip
                plain_ns.append(time.perf_counter_ns() - start)

            def other(rows: list[Row]) -> None:
                start = time.perf_counter_ns()
                for _ in run.run(rows):
                    pass
                captured_ns.append(time.perf_counter_ns() - start)

            for i, rows in enumerate(work):
                for way in (one, other) if i % 2 else (other, one):
                    way(rows)
            plain.close()
            counts = {"plain": counts_of(self.library)}
        counts["captured"] = counts_of(self.library)
        return {
            "plain_ns": plain_ns[1:], "captured_ns": captured_ns[1:], "counts": counts,
            "trace": trace.name,
        }  # fmt: skip

    def mixed(self, mib: int, prompt: list[int], late: list[int], trace: Path) -> dict[str, Any]:
        """Four sequences, small micro-batches, and a large one in the middle."""
        from traces.capture.row_order import Row
        from traces.files.schema import DECODE, PREFILL

        with self.capturing(mib, trace, n_seq=4, n_ctx=4096, n_ubatch=128) as (context, run):

            def serve(rows: list[Row]) -> list[int]:
                for _ in run.run(rows):
                    pass
                return [greedy(context, i, self.banned) for i, r in enumerate(rows) if r.output]

            now: dict[int, tuple[int, int]] = {}
            for seq in range(3):
                text = prompt[seq:]
                for at in range(0, len(text), 24):
                    rows = [
                        Row(seq, at + i, t, PREFILL, at + i == len(text) - 1)
                        for i, t in enumerate(text[at : at + 24])
                    ]
                    made = serve(rows)
                now[seq] = (len(text), made[0])
            for step in range(120):
                if step == 40:
                    rows = [Row(3, i, t, PREFILL, i == len(late) - 1) for i, t in enumerate(late)]
                    now[3] = (len(late), serve(rows)[0])
                rows = [Row(s, pos, t, DECODE, True) for s, (pos, t) in now.items()]
                made = serve(rows)
                now = {s: (pos + 1, t) for (s, (pos, _)), t in zip(now.items(), made, strict=True)}
        return {"counts": {"captured": counts_of(self.library)}, "trace": trace.name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--lib", required=True, help="folder of a CUDA build of llama.cpp")
    parser.add_argument("--work", type=Path, required=True, help="where results and traces go")
    parser.add_argument("--mib", type=int, nargs="+", default=[300, 600, 1200])
    parser.add_argument("--mixed-mib", type=int, nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--no-mmap", action="store_true")
    parser.add_argument("--resident", action="store_true", help="all experts on the GPU, no cache")
    parser.add_argument("--cpu", action="store_true", help="no GPU and no cache: try the script")
    a = parser.parse_args()
    environment = preload_environment(find_library(a.lib))
    if environment is not None:
        os.execve(sys.executable, sys.orig_argv, environment)

    from traces.capture.libllama import Library, LlamaModel

    library = Library(find_library(a.lib))
    kind = "pinned" if a.no_mmap else "mapped"
    kind = "cpu" if a.cpu else "resident" if a.resident else kind
    layers, on_cpu = 0 if a.cpu else 99, 0 if a.resident else 99
    plain = a.cpu or a.resident
    with LlamaModel(
        library, a.model, n_gpu_layers=layers, n_cpu_moe=on_cpu, no_mmap=a.no_mmap
    ) as model:
        runner = Runner(library, model, a.model, min(os.cpu_count() or 1, 16))
        prompt, late = model.tokenize(PROMPT), model.tokenize(LATE)
        for mib in [0] if a.resident else a.mib:
            name = f"{kind}-{mib}" if mib else kind
            size = 0 if plain else mib
            alone = runner.alone(size, prompt, a.tokens)
            turns = runner.turns(size, prompt, alone["tokens"], a.work / f"{name}.arrow")
            write(a.work, name, kind, mib, library, {"alone": alone, "turns": turns})
        for mib in a.mixed_mib:
            name = f"mixed-{kind}-{mib}"
            size = 0 if plain else mib
            mixed = runner.mixed(size, prompt, late, a.work / f"{name}.arrow")
            write(a.work, name, kind, mib, library, {"mixed": mixed})


def write(work: Path, name: str, kind: str, mib: int, library: Any, found: dict[str, Any]) -> None:
    head = {"name": name, "memory": kind, "mib": mib, "library": library.build}
    (work / f"{name}.json").write_text(json.dumps(head | found))
    print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
