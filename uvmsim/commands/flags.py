"""Errors of the library in the command line's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from traces.errors import InputError

SETTING = re.compile(r"\w+(\[\w+\])?(\.\w+)*=")
"""What a setting of an eBPF object begins with."""


class Command(click.Command):
    """A command whose options bear the names of the library's arguments: where an error names an
    argument, the user reads the flag."""

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; an `InputError` names flags."""
        try:
            return super().invoke(ctx)
        except InputError as err:
            flags = {
                p.name: p.opts[-1]
                for p in self.params
                if p.name and isinstance(p, click.Option) and p.opts[-1].startswith("--")
            }
            raise err.with_flags(flags) from err.__cause__


_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_WHERE: tuple[_Decorator, ...] = (
    click.option(
        "--hardware", metavar="H", multiple=True,
        help="Preset, maybe with parts (rtx3090+pcie3+ddr4-3200x2), TOML file, or auto; "
        "rtx5090; repeat or separate by commas for several.",
    ),
    click.option("--program", metavar="E", help="Engine profile on it: preset or TOML file."),
    click.option(
        "--vram", metavar="SIZE", help="Device memory, e.g. 16GiB, instead of the preset's."
    ),
    click.option(
        "--link", metavar="RATE", help="Link bandwidth, e.g. 28GB/s, instead of the preset's."
    ),
    click.option(
        "--ram-bandwidth", metavar="RATE",
        help="What the CPU reads weights with, e.g. 60GB/s, instead of the preset's.",
    ),
    click.option(
        "--reserve", metavar="SIZE", help="Device memory that something else uses, e.g. 1GiB."
    ),
)  # fmt: skip
_KV_TYPE = click.option(
    "--kv-type", metavar="f16|q8_0|q4_0", help="Type of the KV cache, as llama.cpp's."
)
_RUN: tuple[_Decorator, ...] = (
    click.option(
        "--ctx", type=click.IntRange(1), metavar="N",
        help="Room for N tokens in the KV cache; what the trace needs.",
    ),
    _KV_TYPE,
    click.option(
        "--ncmoe", metavar="N", multiple=True,
        help="cpu-offload: layers on the CPU; all; repeat or separate by commas.",
    ),
)  # fmt: skip


_MISSES: tuple[_Decorator, ...] = (
    click.option(
        "--scratch", type=click.IntRange(0), metavar="K",
        help="Places beside the pool for misses that get no slot (POLICY:bypass=1); top-k.",
    ),
    click.option(
        "--behind/--no-behind", default=None,
        help="hybrid: copy in behind what the CPU computed, where the link would rest; yes.",
    ),
)  # fmt: skip
_DECODING: tuple[_Decorator, ...] = (
    click.option(
        "--batch", metavar="N", multiple=True,
        help="Sequences of the trace decoded side by side; repeat or separate by commas.",
    ),
    click.option(
        "--draft", metavar="K:P", multiple=True,
        help="Verify K drafted tokens a step, each accepted with P if those before it were: 3:0.8; "
        "0: none; repeat or separate by commas.",
    ),
    click.option(
        "--draft-reject", metavar="true|random",
        help="Whose routing a rejected draft has: its place's own token's, or any one's; true.",
    ),
)  # fmt: skip


def miss_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what becomes of a miss."""
    return _with(_MISSES, command)


def decoding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that put a trace's tokens into other steps."""
    return _with(_DECODING, command)


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where something runs, the same in every command that has them."""
    return _with((*_WHERE, *_RUN), command)


def only_machine_options(hardware: str) -> _Decorator:
    """The same where the command decides itself what is kept where. ``hardware``: what the help says
    of ``--hardware``."""
    named = click.option("--hardware", metavar="H", multiple=True, help=hardware)
    return lambda command: _with((named, *_WHERE[1:], _KV_TYPE), command)


def _with(options: Sequence[_Decorator], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def hardware_list(texts: Sequence[str]) -> tuple[str, ...]:
    """``("rtx3090,rtx4090", "mine.toml")`` as three machines; a file's name keeps its comma."""
    each = [[t] if Path(t).is_file() else t.split(",") for t in texts]
    return tuple(dict.fromkeys(n.strip() for names in each for n in names if n.strip()))


def number_list(argument: str, texts: Sequence[str]) -> tuple[int, ...]:
    """``("16,24", "32")`` as three numbers. Raises `InputError`, which names ``argument``."""
    found = [n.strip() for t in texts for n in t.split(",")]
    for n in found:
        if not n.isdigit():
            raise InputError(f"{n}: give whole numbers, 0 or more, such as 16,24", argument)
    return tuple(dict.fromkeys(int(n) for n in found))


def decoding_lists(given: dict[str, Any]) -> None:
    """``--batch`` and ``--draft`` as several values each; what was not given is left out."""
    batches = number_list("batch", given.pop("batch"))
    drafts = tuple(x.strip() for t in given.pop("draft") for x in t.split(",") if x.strip())
    given |= {k: v for k, v in (("batch", batches), ("draft", drafts)) if v}


def policy_list(texts: Sequence[str]) -> tuple[str, ...]:
    """``("lru,lfu", "belady")`` as ``("lru", "lfu", "belady")``, doubles dropped; what begins with
    ``phase:`` keeps its comma. ``x.bpf.o:a=1,b=2`` is one policy: ``x.bpf.o:a=1:b=2``."""
    names: list[str] = []
    for text in texts:
        for name in [text] if text.startswith("phase:") else text.split(","):
            name = name.strip()
            if names and ".o:" in names[-1] and SETTING.match(name):
                names[-1] += f":{name}"
            elif name:
                names.append(name)
    return tuple(dict.fromkeys(names))
