"""Run the cells on llama.cpp itself: one process a model and way of loading it, a context a cell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from replay.llama_cpp.process import run
from replay.llama_cpp.request import Context, Request
from replay.llama_cpp.validation.cells import Cell, Subject
from replay.llama_cpp.validation.config import LlamaValidation
from replay.llama_cpp.validation.predict import Routed, speed
from traces.errors import InputError

_BUFFER = re.compile(r"(\w+) (model|KV|RS|compute) buffer size = +([\d.]+) MiB")
_BANKS = re.compile(r"(\w+) MoE cache size = +([\d.]+) MiB")
LAYERS = 999
"""``-ngl``: all."""


class Machine:
    """The library and how it is used."""

    def __init__(self, config: LlamaValidation, library: str | None, gpu: bool) -> None:
        self.config, self.library, self.gpu = config, library, gpu
        self.build = ""

    def _request(self, subject: Subject, contexts: list[Context], first: Cell) -> Request:
        return Request(
            self.library, subject.path, tuple(contexts), n_gpu_layers=LAYERS if self.gpu else 0,
            n_cpu_moe=first.ncmoe, no_mmap=first.no_mmap, unified=first.unified,
            threads=self.config.threads, seed=self.config.seed,
            environment={"OMP_WAIT_POLICY": "passive"} if self.config.passive else {},
        )  # fmt: skip

    def route(self, subject: Subject, cells: list[Cell], folder: Path) -> dict[Any, Routed]:
        """By micro-batch and tests: the routing of the tokens that cells will run, everything resident.

        Raises `InputError` where the model does not run.
        """
        wanted: dict[tuple[int, tuple[str, ...]], Context] = {}
        for cell in cells:
            for ubatch, c in cell.contexts(self.config.repetitions).items():
                wanted.setdefault((ubatch, tuple(t.name for t in c.tests)), c)
        contexts = [
            Context(c.tests, c.n_ubatch, c.n_batch, trace=str(folder / f"{i}.arrow"))
            for i, c in enumerate(wanted.values())
        ]
        plain = Cell(subject, "resident", "")
        answer = run(self._request(subject, contexts, plain), seconds=self.config.seconds)
        if answer["status"] != "ok":
            raise InputError(f"{subject.path}: llama.cpp does not run it: {answer['why']}")
        self.build = answer.get("build", "")
        found = {}
        for key, c, done in zip(wanted, contexts, answer["contexts"], strict=True):
            found[key] = Routed.read(str(c.trace), done["marks"])
        return found

    def together(self, cells: list[Cell]) -> list[list[Cell]]:
        """Cells of one model that one process can run, since the weights lie alike."""
        groups: dict[Any, list[Cell]] = {}
        for cell in cells:
            alike = (cell.ncmoe, cell.no_mmap, cell.unified)
            groups.setdefault(alike, []).append(cell)
        for group in groups.values():
            group.sort(key=lambda c: c.mode == "preferred-host")  # it moves the weights for good
        return list(groups.values())

    def measure(self, cells: list[Cell]) -> list[dict[str, Any]]:
        """What each of some cells of one process did: as `predict` says it, or ``failed`` and why."""
        contexts: list[Context] = []
        owners: list[tuple[int, int]] = []
        for i, cell in enumerate(cells):
            for ubatch, c in cell.contexts(self.config.repetitions).items():
                contexts.append(c)
                owners.append((i, ubatch))
        answer = run(
            self._request(cells[0].subject, contexts, cells[0]), seconds=self.config.seconds
        )
        self.build = answer.get("build", self.build)
        found: list[dict[str, Any]] = [
            {"status": "ok", "tests": {}, "vram_bytes": {}, "moe_cache": {}} for _ in cells
        ]
        reported = _reported(answer.get("log", []), len(contexts))
        for k, (i, ubatch) in enumerate(owners):
            done = answer["contexts"][k] if k < len(answer["contexts"]) else None
            if done is None:
                found[i] |= {"status": "failed", "why": answer["why"] or "nothing came back"}
                continue
            names = [t for t in cells[i].tests if t.ubatch == ubatch]
            for test, timed in zip(names, done["tests"], strict=True):
                found[i]["tests"][test.name] = speed(test.n, timed["ns"])
            if done.get("moe_cache"):
                c = done["moe_cache"]
                found[i]["moe_cache"][str(ubatch)] = {k: c[k] for k in ("hits", "misses")}
            if k < len(reported):
                found[i]["vram_bytes"][str(ubatch)] = reported[k]
        return found


def _reported(lines: list[str], contexts: int) -> list[int]:
    """Bytes on the device, by context, as llama.cpp logs them; empty without a device."""
    weights = 0.0
    each: list[dict[str, float]] = []
    for line in lines:
        if m := _BUFFER.search(line):
            device = not m[1].startswith(("CPU", "CUDA_Host"))
            if "output" in line or not device:
                continue
            if m[2] == "model":
                weights += float(m[3])
            elif m[2] == "KV":
                if not each or each[-1].get("compute") is not None:
                    each.append({"kv": 0.0, "banks": 0.0})
                each[-1]["kv"] += float(m[3])
            elif m[2] == "compute" and each and "size is" not in line:
                each[-1]["compute"] = float(m[3])
        elif (m := _BANKS.search(line)) and each:
            each[-1]["banks"] += float(m[2])
    whole = [x for x in each if x.get("compute") is not None]
    if len(whole) < contexts:
        return []
    return [round((weights + x["kv"] + x["banks"] + x["compute"]) * (1 << 20)) for x in whole]
