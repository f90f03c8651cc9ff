"""Advice in the terminal: what to run, how fast, why; 80 columns."""

from __future__ import annotations

import re
import shlex
import textwrap

from rich.console import Console
from rich.text import Text

from uvmsim.core.units import format_bytes
from uvmsim.report.progress import wide
from uvmsim.studies.advise.advice import Advice, At
from uvmsim.studies.advise.candidate import (
    CACHE,
    CPU,
    GPU,
    LAYERS,
    NCMOE,
    TENSORS,
    UNIFIED,
    Candidate,
)
from uvmsim.studies.advise.emit import UNIFIED_MEMORY
from uvmsim.studies.advise.intervals import row_for
from uvmsim.studies.advise.predict import ENGINE_POLICY
from uvmsim.studies.advise.search import Choice
from uvmsim.studies.advise.timed import BOUNDS

WIDTH = 80
GIB = 2**30
SHORT = {
    GPU: "all on the GPU", NCMOE: "-ncmoe", TENSORS: "-ot, in part", CACHE: "expert cache",
    UNIFIED: "unified memory", LAYERS: "whole layers", CPU: "all on the CPU",
}  # fmt: skip
WAITS = {
    "kernels": "GPU", "launches": "launches", "link": "link", "ram": "RAM", "cpu": "CPU",
    "faults": "faults",
}  # fmt: skip
LONG = {
    "kernels": "GPU kernels", "launches": "launches and waits", "link": "copies over the link",
    "ram": "the CPU reading RAM", "cpu": "the CPU computing", "faults": "page faults",
}  # fmt: skip


def print_advice(a: Advice, console: Console | None = None) -> None:
    """Each context's best, the command to paste, what bounds it, what else would help."""
    out = console or wide()
    _head(a, out)
    for at in a.contexts:
        _context(a, at, out)
    if a.best is not None:
        _why(a, a.best, out)
    _what_ifs(a, out)
    _better(a, out)
    _sure(a, out)


def _say(out: Console, text: str, style: str = "", indent: str = "", more: str = "") -> None:
    """A paragraph, wrapped; ``indent`` of its first line, ``more`` of the others."""
    for line in _wrapped(text, WIDTH, indent, more or indent or "  "):
        out.print(Text(line, style), soft_wrap=True)


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    """Lines; an option and its value stay together: the space between them is no place to break."""
    tied = re.sub(r" (-{1,2}[a-z][\w-]*) (?!-)", " \\1\x00", f" {text}")[1:]
    made = textwrap.wrap(
        tied, width, initial_indent=first, subsequent_indent=others, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\x00", " ") for line in made]


def _gib(n: int) -> str:
    return format_bytes(n, binary=True)


def _head(a: Advice, out: Console) -> None:
    m, hw = a.model, a.hardware
    experts = f", {_gib(m.moe_bytes)} of it experts" if m.moe_layers else ""
    _say(out, f"{m.name}, {_gib(m.total_bytes)}{experts}", "bold")
    ram = "RAM not known" if hw.host_bytes is None else f"{_gib(hw.host_bytes)} of RAM"
    vram = f"{_gib(hw.free_bytes)} of VRAM usable, "
    if hw.engine.terms is not None and not hw.engine.terms.gpu:
        vram = ""
    _say(out, f"on {hw.gpu}: {vram}{ram}; engine {hw.engine.name}")
    _say(
        out, f"for a request of {a.prompt:,} tokens in and {a.generate:,} out, KV cache {a.kv_type}"
    )


def _context(a: Advice, at: At, out: Console) -> None:
    out.print()
    out.print(Text(f"Context {at.ctx:,}", "bold"))
    if at.refused:
        _say(out, f"not all on the GPU: {at.refused}", "dim", "  ")
    if not at.best:
        _say(out, f"nothing fits this machine: {at.nothing}", "red", "  ")
        return
    head = f" #  {'how':<14}{'GiB':>5}{'prompt tokens/s':>20}{'answer tokens/s':>18}"
    out.print(Text(f"{head}{'time':>9}  bound by", "bold"), soft_wrap=True)
    for i, choice in enumerate(at.best):
        c, p = choice.candidate, choice.prediction
        rows = {x: row_for(a.hardware, c.kind, x) for x in ("prefill", "decode")}
        prompt = _speed(p.prefill_tokens_per_s, rows["prefill"].low, rows["prefill"].high)
        answer = _speed(p.decode_tokens_per_s, rows["decode"].low, rows["decode"].high)
        line = f" {i + 1}  {SHORT[c.kind]:<14}{choice.needs.vram_bytes / GIB:>5.1f}"
        line += f"{prompt:>20}{answer:>18}{_seconds(p.seconds):>9}  {WAITS[p.bound]}"
        out.print(Text(line, "" if i else "green"), soft_wrap=True)
        _say(out, _flags(a, c), "dim", "    ")
    out.print()
    for line in broken(a.command(at.best[0].candidate)):
        out.print(Text(line), soft_wrap=True)


def _flags(a: Advice, c: Candidate) -> str:
    words = " ".join(shlex.quote(w) for w in c.flags(a.model.n_layers))
    return f"{UNIFIED_MEMORY} {words}" if c.kind == UNIFIED else words


def broken(command: str) -> list[str]:
    """A command in lines that a shell joins again."""
    lines = _wrapped(command, WIDTH - 4, "", "    ")
    return [f"  {line} \\" for line in lines[:-1]] + [f"  {lines[-1]}"]


def _number(x: float) -> str:
    if x >= 9999.5:
        return f"{x / 1000:,.0f}k" if x >= 99_950 else f"{x / 1000:.1f}k"
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def _speed(x: float | None, low: float, high: float) -> str:
    if x is None:
        return "-"
    return f"{_number(x)} ({_bound(x * low)}-{_bound(x * high)})"


def _bound(x: float) -> str:
    if x >= 9999.5:
        return f"{x / 1000:,.0f}k"
    return f"{x:,.0f}" if x >= 10 else f"{x:.1f}"


def _seconds(s: float) -> str:
    if s < 10:
        return f"{s:.2f} s"
    return f"{s:.1f} s" if s < 100 else f"{s / 60:.1f} min"


def _why(a: Advice, best: Choice, out: Console) -> None:
    out.print()
    out.print(Text("Why so fast and no faster", "bold"), style="")
    p = best.prediction
    for name, split in (("prompt", p.prefill_split), ("answer", p.decode_split)):
        parts = sorted(BOUNDS, key=lambda k: -split[k])
        text = ", ".join(f"{split[k]:.0%} {LONG[k]}" for k in parts if split[k] >= 0.005)
        if text:
            _say(out, f"{name}: {text}", indent="  ")
    if p.hit_rate is not None:
        _say(
            out,
            f"{p.hit_rate:.1%} of what the answer's tokens ask for is in the cache",
            indent="  ",
        )


def _what_ifs(a: Advice, out: Console) -> None:
    if not a.what_ifs:
        return
    out.print()
    out.print(Text(f"What if (context {a.contexts[0].ctx:,})", "bold"))
    for w in a.what_ifs:
        if w.best is None:
            text = "still nothing fits"
        else:
            by = "" if w.faster is None else f"x{w.faster:.2f}  "
            same = a.best is not None and w.best.candidate == a.best.candidate
            text = by + ("the same flags" if same else _flags(a, w.best.candidate))
        _say(out, f"{w.change:<19}{text}", indent="  ", more=" " * 21)


def _better(a: Advice, out: Console) -> None:
    b = a.better
    if b is None or a.best is None or a.best.candidate.kind == GPU:
        return
    out.print()
    out.print(Text("Another policy in the same cache", "bold"))
    of = {k: f"{_number(v.decode_tokens_per_s or 0)} ({v.hit_rate or 0:.1%} hits)"
          for k, v in b.of.items()}  # fmt: skip
    own = of.pop(ENGINE_POLICY)
    rest = "; ".join(f"{k}{', which no policy beats' * (k == 'belady')} {v}" for k, v in of.items())
    _say(
        out,
        f"{b.slots:,} experts cached, answer tokens/s: llama.cpp's LRU {own}; {rest}",
        indent="  ",
    )


_PHASE = {"prefill": "prompt", "decode": "answer"}
_KIND = {"gpu": "all on the GPU", "ncmoe": "-ncmoe", "cache": "expert cache", "cpu": "the CPU"}


def _sure(a: Advice, out: Console) -> None:
    out.print()
    rows = dict.fromkeys(
        row_for(a.hardware, c.candidate.kind, phase)
        for c in a.outcomes for phase in ("prefill", "decode")
    )  # fmt: skip
    for row in rows:
        label = ", ".join(x for x in (_PHASE.get(row.phase), _KIND.get(row.kind)) if x)
        _say(out, f"in brackets{f' ({label})' if label else ''}: {row.words()}", "dim")
    if a.routing is not None:
        _say(out, f"routing: {a.routing.source}", "dim")
    for note in a.notes:
        _say(out, f"note: {note}", "dim")
