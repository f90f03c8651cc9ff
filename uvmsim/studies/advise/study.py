"""What to run: `uvmsim.advise`, and what it answers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from traces.errors import InputError
from uvmsim.core.units import format_bytes, parse_bytes
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.advise import whatif
from uvmsim.studies.advise.better import Better, better_policies
from uvmsim.studies.advise.candidate import GPU, LAYERS, Candidate
from uvmsim.studies.advise.emit import command
from uvmsim.studies.advise.intervals import calibrated, interval, row_for
from uvmsim.studies.advise.needs import needed
from uvmsim.studies.advise.predict import Predictor
from uvmsim.studies.advise.request import Request, request
from uvmsim.studies.advise.routing import Routed, routed
from uvmsim.studies.advise.search import COARSE, Choice, choices, distinct
from uvmsim.studies.advise.subject import subject, with_kv_type
from uvmsim.studies.answer import Answer, flat
from uvmsim.studies.resolve import load_trace, machine_of
from uvmsim.studies.scenario import DEFAULT_HARDWARE, Progress, Scenario
from uvmsim.version import __version__

CONTEXTS = ("8k",)
PROMPT, GENERATE = 2000, 500
UBATCHES = (512, 2048)
MOST = 5
"""Configurations shown."""
MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class At:
    """One context size: the best that fit, and why the plain one does not."""

    ctx: int
    best: list[Choice]
    refused: str | None
    """Why everything on the GPU is not among them; None where it is."""


@dataclass(frozen=True)
class WhatIf:
    """One change of the machine and the best configuration on it, at the first context size."""

    change: str
    best: Choice | None
    faster: float | None
    """Seconds of a request now over seconds then."""


@dataclass(frozen=True, repr=False)
class Advice(Answer):
    """What to run at each context size, how fast it will be, and why."""

    printer: ClassVar[str] = "uvmsim.report.advise_table:print_advice"

    model: Model
    model_file: str
    hardware: Hardware
    kv_type: str
    prompt: int
    generate: int
    routing: Routed | None
    contexts: list[At]
    what_ifs: list[WhatIf]
    better: Better | None
    notes: list[str]
    seed: int = 0

    @property
    def outcomes(self) -> Sequence[Choice]:
        """The configurations, those of the first context size first."""
        return [choice for at in self.contexts for choice in at.best]

    @property
    def best(self) -> Choice | None:
        """What to run at the first context size; None where nothing fits."""
        return self.contexts[0].best[0] if self.contexts[0].best else None

    def command(self, c: Candidate) -> str:
        """A configuration as llama.cpp's command line."""
        return command(c, self.model_file, self.model.n_layers)

    def commands(self) -> list[str]:
        """The best at each context size that has one."""
        return [self.command(at.best[0].candidate) for at in self.contexts if at.best]

    def choice_json(self, c: Choice) -> dict[str, Any]:
        """A configuration, what it takes, how fast it is, how sure that is."""
        kind = c.candidate.kind
        rows = {p: row_for(self.hardware, kind, p) for p in ("prefill", "decode")}
        p = c.prediction
        speeds = {"prefill": p.prefill_tokens_per_s, "decode": p.decode_tokens_per_s}
        return {
            "configuration": c.candidate.to_json(),
            "flags": c.candidate.flags(self.model.n_layers),
            "command": self.command(c.candidate),
            "needs": c.needs.to_json(),
            "prediction": p.to_json(),
            "interval": {k: interval(speeds[k], rows[k]) for k in rows},
            "interval_from": {k: row.model_dump() for k, row in rows.items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a configuration."""
        return [
            {"ctx": at.ctx, "rank": i + 1} | flat(_without_lists(self.choice_json(c)))
            for at in self.contexts
            for i, c in enumerate(at.best)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        hw = self.hardware
        return {
            "uvmsim": __version__,
            "model": {
                "name": self.model.name, "architecture": self.model.architecture,
                "file": self.model_file, "bytes": self.model.total_bytes,
                "expert_bytes": self.model.moe_bytes, "layers": self.model.n_layers,
                "kv_bytes_per_token": self.model.kv_bytes_per_token,
            },
            "hardware": {
                "name": hw.name, "gpu": hw.gpu, "engine": hw.engine.name,
                "vram_bytes": hw.vram_bytes, "ram_bytes": hw.host_bytes,
                "calibrated": calibrated(hw),
            },
            "request": {"prompt": self.prompt, "generate": self.generate, "kv_type": self.kv_type},
            "routing": self.routing and {
                "source": self.routing.source, "recorded": self.routing.recorded,
            },
            "seed": self.seed,
            "contexts": [
                {"ctx": at.ctx, "refused": at.refused,
                 "best": [self.choice_json(c) for c in at.best]}
                for at in self.contexts
            ],
            "what_if": [
                {"change": w.change, "faster": w.faster,
                 "best": w.best and self.choice_json(w.best)}
                for w in self.what_ifs
            ],
            "better_policy": self.better and self.better.to_json(),
            "notes": self.notes,
        }  # fmt: skip


def _without_lists(d: dict[str, Any]) -> dict[str, Any]:
    """Lists joined to one text, for a flat row."""
    out: dict[str, Any] = {}
    for k, v in d.items():
        if isinstance(v, list):
            out[k] = " ".join(map(str, v))
        else:
            out[k] = _without_lists(v) if isinstance(v, dict) else v
    return out


def advise(
    scenario: Any = None,
    *,
    ram: str | int | None = None,
    ctx: str | int | Iterable[str | int] = CONTEXTS,
    prompt: int = PROMPT,
    generate: int = GENERATE,
    kv_type: str = "f16",
    what_if: str | Iterable[str] | None = None,
    coarse: int = COARSE,
    progress: Progress | None = None,
) -> Advice:
    """The fastest configurations of llama.cpp that fit a scenario's machine.

    ``scenario``: a `Scenario`, or a model alone (a preset, a ``.gguf`` or ``.toml`` file). Of a
    scenario: ``model``, ``hardware``, ``program``, ``vram`` (a budget on the card), ``link``, ``trace``
    (recorded routing), ``limit``, ``seed``. ``ram``: host memory. ``ctx``: context sizes (``"8k"``).
    ``prompt`` and ``generate``: tokens of a request, whose whole time decides. ``what_if``: changes of
    the machine (``"vram+8GiB"``), none for an empty one. ``coarse`` 0 tries every number of layers.

    Raises `InputError`.
    """
    s = scenario if isinstance(scenario, Scenario) else Scenario(model=scenario)
    if s.model is None:
        raise InputError(": name the model to run (a preset, a .gguf or a .toml file)", "model")
    notes: list[str] = []
    contexts = [context(x) for x in ([ctx] if isinstance(ctx, str | int) else ctx)]
    _check(contexts, prompt, generate)
    model, file = subject(s.model, notes)
    model = with_kv_type(model, kv_type)
    hw = _machine(s, ram, notes)
    routing = None
    if model.moe_layers:
        trace = load_trace(s.trace, s.limit) if s.trace is not None else None
        routing = routed(model, prompt, s.seed, trace)
    elif s.trace is not None:
        raise InputError(f": {model.name} has no experts, so no routing bears on it", "trace")
    changes = whatif.DEFAULT if what_if is None else _changes(what_if)
    if what_if is None and hw.host_bytes is None:
        changes = tuple(c for c in changes if not c.startswith("ram+"))
    machines = [(text, whatif.changed(hw, text)) for text in changes]

    @functools.cache
    def requests(ubatch: int) -> Request:
        empty = Routed(*(_no_ids(n) for n in (1, 1, 1)), source="", recorded=False)
        return request(model, routing or empty, prompt, generate, ubatch)

    work = len(contexts) + len(machines) + 1
    doing = progress or (lambda done, total, what: None)
    predict = Predictor(model, hw, requests, s.seed)
    at = []
    for i, n in enumerate(contexts):
        doing(i, work, f"context {n:,}")
        found = choices(model, hw, predict, n, kv_type, UBATCHES, coarse=coarse)
        at.append(At(n, distinct(found, MOST), refusal(model, hw, n, kv_type)))
    made = []
    for i, (text, machine) in enumerate(machines):
        doing(len(contexts) + i, work, text)
        other = Predictor(model, machine, requests, s.seed)
        found = choices(model, machine, other, contexts[0], kv_type, UBATCHES, coarse=coarse)
        now = at[0].best[0].seconds if at[0].best else None
        faster = now / found[0].seconds if now and found else None
        made.append(WhatIf(text, found[0] if found else None, faster))
    doing(work - 1, work, "policies")
    better = better_policies(model, hw, predict, contexts[0], kv_type, UBATCHES)
    doing(work, work, "")
    return Advice(
        model, file, hw, kv_type, prompt, generate, routing, at, made, better, notes, s.seed
    )


def _no_ids(n: int) -> Any:
    import numpy as np

    return np.zeros((n, 0, 0), np.int16)


def refusal(model: Model, hw: Hardware, ctx: int, kv_type: str) -> str | None:
    """Why the plain configuration (everything on the GPU) does not fit, and by how much."""
    need = needed(model, Candidate(GPU, ctx, min(UBATCHES), kv_type, mapped=True), hw)
    short, _ = need.lacks(hw)
    if not short:
        return None

    def gib(n: int) -> str:
        return format_bytes(n, binary=True)

    parts = ", ".join(f"{k} {gib(v)}" for k, v in need.vram.items() if v)
    text = f"-ngl all needs {gib(need.vram_bytes)} ({parts}); {gib(short)} too much"
    if not model.moe_layers:
        return text
    experts = Candidate(LAYERS, ctx, min(UBATCHES), kv_type, cpu_experts=model.n_layers)
    bare = needed(model, experts, hw)
    vram, host = bare.lacks(hw)
    if vram:
        text += f"; even with all experts on the CPU {gib(vram)} of VRAM are missing"
    elif host:
        text += f"; with all experts on the CPU {gib(host)} of host memory are missing"
    return text


def context(value: str | int) -> int:
    """Tokens from ``8192`` or ``"8k"`` (1,024 each). Raises `InputError`."""
    text = str(value).strip().lower()
    try:
        n = int(text[:-1]) * 1024 if text.endswith("k") else int(text)
    except ValueError:
        raise InputError(f"{value}: tokens, like 8192 or 8k", argument="ctx") from None
    if not 0 < n <= 16 * MOST_TOKENS:
        raise InputError(f"{value}: a context has 1 to {16 * MOST_TOKENS:,} tokens", argument="ctx")
    return n


def _check(contexts: list[int], prompt: int, generate: int) -> None:
    for name, value in (("prompt", prompt), ("generate", generate)):
        if not 0 <= value <= MOST_TOKENS:
            raise InputError(f"{value}: 0 to {MOST_TOKENS:,} tokens", argument=name)
    if not prompt + generate:
        raise InputError("0: give tokens for `prompt` or `generate`", argument="generate")
    if not contexts:
        raise InputError(": give a context size, like 8k", argument="ctx")
    small = [n for n in contexts if n < prompt + generate]
    if small:
        raise InputError(
            f"{small[0]}: {prompt} prompt and {generate} generated tokens do not fit in it; give a "
            "larger one, or fewer tokens (`prompt`, `generate`)", argument="ctx",
        )  # fmt: skip


def _changes(what_if: str | Iterable[str]) -> tuple[str, ...]:
    texts = [what_if] if isinstance(what_if, str) else what_if
    return tuple(dict.fromkeys(x.strip() for t in texts for x in t.split(",") if x.strip()))


def _machine(s: Scenario, ram: str | int | None, notes: list[str]) -> Hardware:
    """The machine with the budget asked for. Raises `InputError`."""
    whole = machine_of(s.with_(vram=None).or_else(hardware=DEFAULT_HARDWARE))
    hw = machine_of(s.or_else(hardware=DEFAULT_HARDWARE))
    if hw.vram_bytes > whole.vram_bytes:
        raise InputError(
            f"{s.vram}: more than the {format_bytes(whole.vram_bytes, binary=True)} of {whole.name}; "
            f"`what_if` vram={s.vram} tells what more would give", argument="vram",
        )  # fmt: skip
    if ram is not None:
        try:
            host = parse_bytes(ram)
        except InputError as err:
            raise InputError(str(err), argument="ram") from None
        if not host:
            raise InputError(f"{ram}: a machine has some", argument="ram")
        hw = replace(hw, host_bytes=host)
    if hw.host_bytes is None:
        notes.append(
            f"how much host memory {hw.name} has is not known, so it is not checked (`ram` SIZE)"
        )
    return hw
