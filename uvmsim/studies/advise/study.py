"""What to run: `uvmsim.advise`."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from traces.errors import InputError
from uvmsim.core.units import format_bytes, parse_bytes
from uvmsim.machine.detect import AUTO
from uvmsim.machine.engine import EngineProfile
from uvmsim.machine.hardware import Hardware
from uvmsim.studies.advise import whatif
from uvmsim.studies.advise.advice import Advice, At, WhatIf
from uvmsim.studies.advise.better import better_policies
from uvmsim.studies.advise.candidate import KINDS, UNIFIED, plain
from uvmsim.studies.advise.detailed import Detailed
from uvmsim.studies.advise.needs import Needs
from uvmsim.studies.advise.predict import Predictor
from uvmsim.studies.advise.request import Request, request
from uvmsim.studies.advise.routing import routed, unrouted
from uvmsim.studies.advise.search import COARSE, Search
from uvmsim.studies.advise.subject import Subject, subject
from uvmsim.studies.resolve import load_trace, machine_of
from uvmsim.studies.scenario import Progress, Scenario

CONTEXTS = ("8k",)
PROMPT, GENERATE = 2000, 500
UBATCHES = (512, 2048)
EXPLICIT = tuple(k for k in KINDS if k != UNIFIED)
MOST = 5
"""Configurations shown."""
FINALISTS = 3
"""Configurations of a what-if that are predicted exactly."""
MOST_TOKENS = 1 << 20
WORDS = {
    "weights": "weights", "kv_cache": "KV cache", "compute": "compute buffers", "moe_cache": "cache",
}  # fmt: skip
"""Kinds of bytes, in words."""


def advise(
    scenario: Any = None,
    *,
    ram: str | int | None = None,
    ctx: str | int | Iterable[str | int] | None = None,
    prompt: int = PROMPT,
    generate: int = GENERATE,
    kv_type: str | None = None,
    what_if: str | Iterable[str] | None = None,
    coarse: int = COARSE,
    progress: Progress | None = None,
) -> Advice:
    """The fastest configurations of llama.cpp that fit a scenario's machine.

    ``scenario``: a `Scenario`, or a model alone (a preset, a ``.gguf`` or ``.toml`` file). Of a
    scenario: ``model``, ``hardware`` (this machine where none is named), ``program``, ``vram`` (a
    budget on the card), ``reserve``, ``link``, ``ram_bandwidth``, ``kv_type``, ``trace`` (recorded
    routing), ``limit``, ``seed``. ``ram``: host memory. ``ctx``: context sizes (``"8k"``).
    ``prompt`` and ``generate``: tokens of a request, whose whole time decides. ``what_if``: changes
    of the machine (``"vram+8GiB"``), none for an empty one. ``coarse`` 0 tries every number of layers.

    Raises `InputError`.
    """
    with _no_collection():
        s = scenario if isinstance(scenario, Scenario) else Scenario(model=scenario)
        return _advise(s, ram, ctx, prompt, generate, kv_type, what_if, coarse, progress)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Graphs are many small objects without cycles: looking for cycles takes a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _advise(
    s: Scenario, ram: str | int | None, ctx: str | int | Iterable[str | int] | None, prompt: int,
    generate: int, kv_type: str | None, what_if: str | Iterable[str] | None, coarse: int,
    progress: Progress | None,
) -> Advice:  # fmt: skip
    if s.model is None:
        raise InputError(": name the model to run (a preset, a .gguf or a .toml file)", "model")
    notes: list[str] = []
    asked = ctx if ctx is not None else s.ctx or CONTEXTS
    contexts = [context(x) for x in ([asked] if isinstance(asked, str | int) else asked)]
    _check(contexts, prompt, generate)
    kv = (kv_type or s.kv_type or "f16").lower()
    what = subject(s.model, notes, kv)
    hw = _machine(s, ram, notes)
    routing = None
    if what.model.moe_layers:
        trace = load_trace(s.trace, s.limit) if s.trace is not None else None
        routing = routed(what.model, prompt, s.seed, trace)
    elif s.trace is not None:
        raise InputError(f": {what.model.name} has no experts, so no routing bears on it", "trace")
    changes = whatif.usual(hw) if what_if is None else _changes(what_if)
    machines = [(text, whatif.changed(hw, text)) for text in changes]
    more_ram = [(x, whatif.changed(hw, x)) for x in whatif.WHERE_NOTHING_FITS if hw.host_bytes]

    @functools.cache
    def requests(ubatch: int, brief: bool) -> Request:
        return request(what.model, routing or unrouted(), prompt, generate, ubatch, brief)

    kept: dict[Any, Any] = {}

    def search(machine: Hardware, n: int, predict: Predictor) -> Search:
        return Search(what, machine, predict, n, kv, useful(prompt), coarse)

    work = len(contexts) + len(machines) + 1
    doing = progress or (lambda done, total, what: None)
    predict = predictor(what, hw, requests, s.seed, kept)
    at = []
    for i, n in enumerate(contexts):
        doing(i, work, f"context {n:,}")
        found = search(hw, n, predict).distinct(MOST)
        none = None if found else nothing(what, hw, n, kv)
        at.append(At(n, found, refusal(what, hw, n, kv), none))
    first = at[0].best
    if what_if is None and not first:
        machines += more_ram
        work += len(more_ram)
    # Paging takes long to simulate, and a larger machine makes it less, not more, of a choice.
    kinds = None if not first or first[0].candidate.kind == UNIFIED else EXPLICIT
    made = []
    for i, (text, machine) in enumerate(machines):
        doing(len(contexts) + i, work, text)
        other = predictor(what, machine, requests, s.seed, kept)
        found = search(machine, contexts[0], other).first(FINALISTS, kinds)
        now = first[0].seconds if first else None
        faster = now / found[0].seconds if now and found else None
        made.append(WhatIf(text, found[0] if found else None, faster))
    doing(work - 1, work, "policies")
    better = better_policies(search(hw, contexts[0], predict), first)
    notes += _borrowed(predict)
    doing(work, work, "")
    return Advice(
        what.model, what.file, hw, kv, prompt, generate, routing, at, made, better, notes, s.seed
    )


def predictor(
    what: Subject, hw: Hardware, requests: Callable[[int, bool], Request], seed: int,
    kept: dict[Any, Any],
) -> Predictor:  # fmt: skip
    """Kernel by kernel where the engine has constants for that, else by its coarse ones."""
    if hw.engine.terms is None:
        return Predictor(what, hw, requests, seed)
    return Detailed(what, hw, requests, seed, kept)


def _borrowed(predict: Predictor) -> list[str]:
    """Which types of tensors were taken for which."""
    if not isinstance(predict, Detailed):
        return []
    kinds: dict[str, set[str]] = {}
    for key, other in predict.terms.borrowed.items():
        kind, like = key.rpartition(".")[2], other.rpartition(".")[2]
        if kind != like:  # else it is the same type's in another place
            kinds.setdefault(kind, set()).add(like)
    name = predict.hw.engine.name
    return [
        f"{name} was not calibrated with {kind}: constants of {', '.join(sorted(like))} stand in"
        for kind, like in sorted(kinds.items())
    ]


def useful(prompt: int) -> tuple[int, ...]:
    """Micro-batch sizes that differ for a prompt: one that holds it whole is enough."""
    return tuple(n for i, n in enumerate(UBATCHES) if not i or prompt > UBATCHES[i - 1])


def refusal(what: Subject, hw: Hardware, ctx: int, kv_type: str) -> str | None:
    """Why the plain configuration (everything on the GPU) does not fit, and by how much."""
    whole = plain(hw, ctx, min(UBATCHES), kv_type)
    if not whole.config.gpu:
        return None
    need = what.memory.needs(whole)
    short, _ = need.lacks(hw)
    if not short:
        return None
    parts = ", ".join(f"{WORDS[k]} {_gib(v)}" for k, v in need.vram.items() if v)
    text = f"-ngl all needs {_gib(need.vram_bytes)} ({parts}), and {_gib(need.reserve)} left free; "
    text += f"{_gib(short)} too much"
    if not what.model.moe_layers:
        return text
    experts = whole.experts_away(what.model.n_layers)
    if any(what.memory.needs(experts).lacks(hw)):
        text += "; even with all experts on the CPU " + _missing(what.memory.needs(experts), hw)
    return text


def _missing(need: Needs, hw: Hardware) -> str:
    vram, host = need.lacks(hw)
    words = [f"{_gib(n)} of {kind}" for n, kind in ((vram, "VRAM"), (host, "RAM")) if n]
    return " and ".join(words) + f" {'are' if len(words) > 1 else 'is'} missing"


def nothing(what: Subject, hw: Hardware, ctx: int, kv_type: str) -> str:
    """Why nothing fits: what everything on the CPU, the least of the card, would take."""
    away = plain(hw, ctx, min(UBATCHES), kv_type).all_away(what.llama)
    need = what.memory.needs(away)
    text = f"everything on the CPU takes {_gib(need.ram_bytes)} of RAM"
    if need.vram:
        text += f", and {_gib(need.vram_bytes + need.reserve)} of VRAM for prompts"
    return f"{text}; {_missing(need, hw)}"


def _gib(n: int) -> str:
    return format_bytes(n, binary=True)


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
    """The machine with the budget asked for; this one where none is named. Raises `InputError`."""
    if s.hardware is None:
        s = s.with_(hardware=_this_machine())
    whole = machine_of(s.with_(vram=None, reserve=None))
    if s.program is None and (engine := _llama_cpp_on(whole)):
        s = s.with_(program=engine)
    hw = machine_of(s)
    if hw.vram_bytes > whole.vram_bytes:
        raise InputError(
            f"{s.vram}: more than the {_gib(whole.vram_bytes)} of {whole.name}; "
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


def _llama_cpp_on(hw: Hardware) -> str | None:
    """The shipped llama.cpp engine of a preset machine that names another program."""
    engine = f"llama.cpp-{hw.name}"
    other = not hw.engine.name.startswith("llama.cpp")
    return engine if other and engine in EngineProfile.list_presets() else None


def _this_machine() -> Hardware:
    try:
        return Hardware.load(AUTO)
    except InputError:
        names = [n for n in Hardware.list_presets() if n.startswith("rtx")]
        raise InputError(
            f": no NVIDIA GPU reports itself on this machine; name one, such as {names[0]} or "
            f"{names[-1]} (`uvmsim hardware` lists them), or a file that `uvmsim calibrate` wrote",
            argument="hardware",
        ) from None
