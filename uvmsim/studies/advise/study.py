"""What to run: `uvmsim.advise`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from traces.errors import InputError
from uvmsim.core.units import format_bytes, parse_bytes
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.advise import whatif
from uvmsim.studies.advise.advice import Advice, At, WhatIf
from uvmsim.studies.advise.better import better_policies
from uvmsim.studies.advise.candidate import CPU, GPU, KINDS, LAYERS, UNIFIED, Candidate
from uvmsim.studies.advise.needs import needed
from uvmsim.studies.advise.predict import Predictor
from uvmsim.studies.advise.request import Request, request
from uvmsim.studies.advise.routing import routed, unrouted
from uvmsim.studies.advise.search import COARSE, choices, distinct
from uvmsim.studies.advise.subject import subject, with_kv_type
from uvmsim.studies.resolve import load_trace, machine_of
from uvmsim.studies.scenario import DEFAULT_HARDWARE, Progress, Scenario

CONTEXTS = ("8k",)
PROMPT, GENERATE = 2000, 500
UBATCHES = (512, 2048)
EXPLICIT = tuple(k for k in KINDS if k != UNIFIED)
MOST = 5
"""Configurations shown."""
MOST_TOKENS = 1 << 20


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
    def requests(ubatch: int, brief: bool) -> Request:
        return request(model, routing or unrouted(), prompt, generate, ubatch, brief)

    ubatches = useful(prompt)
    work = len(contexts) + len(machines) + 1
    doing = progress or (lambda done, total, what: None)
    predict = Predictor(model, hw, requests, s.seed)
    at = []
    for i, n in enumerate(contexts):
        doing(i, work, f"context {n:,}")
        found = choices(model, hw, predict, n, kv_type, ubatches, coarse=coarse)
        none = None if found else nothing(model, hw, n, kv_type)
        at.append(At(n, distinct(found, MOST), refusal(model, hw, n, kv_type), none))
    first = at[0].best
    # Paging takes long to simulate, and a larger machine makes it less, not more, of a choice.
    kinds = None if not first or first[0].candidate.kind == UNIFIED else EXPLICIT
    made = []
    for i, (text, machine) in enumerate(machines):
        doing(len(contexts) + i, work, text)
        other = Predictor(model, machine, requests, s.seed)
        found = choices(model, machine, other, contexts[0], kv_type, ubatches, kinds, coarse)
        now = first[0].seconds if first else None
        faster = now / found[0].seconds if now and found else None
        made.append(WhatIf(text, found[0] if found else None, faster))
    doing(work - 1, work, "policies")
    better = better_policies(model, hw, predict, contexts[0], kv_type, ubatches)
    doing(work, work, "")
    return Advice(
        model, file, hw, kv_type, prompt, generate, routing, at, made, better, notes, s.seed
    )


def useful(prompt: int) -> tuple[int, ...]:
    """Micro-batch sizes that differ for a prompt: one that holds it whole is enough."""
    return tuple(n for i, n in enumerate(UBATCHES) if not i or prompt > UBATCHES[i - 1])


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
    vram, host = needed(model, experts, hw).lacks(hw)
    if vram or host:
        text += "; even with all experts on the CPU "
        text += _and([(vram, "of VRAM"), (host, "of RAM")], gib)
    return text


def _and(parts: list[tuple[int, str]], gib: Callable[[int], str]) -> str:
    words = " and ".join(f"{gib(n)} {what}" for n, what in parts if n)
    return f"{words} are missing"


def nothing(model: Model, hw: Hardware, ctx: int, kv_type: str) -> str:
    """Why nothing fits: what everything on the CPU, the least of the card, would take."""
    away = Candidate(CPU, ctx, min(UBATCHES), kv_type, cpu_blocks=model.n_layers + 1)
    need = needed(model, away, hw)
    text = f"everything on the CPU takes {format_bytes(need.ram_bytes, binary=True)} of RAM and "
    text += f"{format_bytes(need.vram_bytes, binary=True)} of VRAM"
    vram, host = need.lacks(hw)
    if vram or host:
        text += "; " + _and(
            [(vram, "of VRAM"), (host, "of RAM")], lambda n: format_bytes(n, binary=True)
        )
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
            f"how much host memory {hw.name} has is not known, so it is not checked; --ram says it"
        )
    return hw
