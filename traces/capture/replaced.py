"""A recorded program that replaces its own process by another (os.exec*).

The recording lives in the process and goes with it. Where the process starts itself anew, command
line and all (as `uvmsim capture llama-cpp` does for a CUDA build), it comes back to the recorder, which
then begins afresh. Any other program would run unrecorded.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traces.errors import InputError


class Replaced(InputError):
    """The recorded program was about to replace its process by one that is not recorded."""


_watching: Callable[[tuple[Any, ...]], None] | None = None
_hooked = False


@contextmanager
def watch_exec(restart: Callable[[], None]) -> Iterator[None]:
    """Inside this block, ``restart`` is called before the process starts itself anew, and any other
    os.exec* raises `Replaced`."""
    global _watching, _hooked
    mine = os.getpid()

    def on_exec(arguments: tuple[Any, ...]) -> None:
        if os.getpid() != mine:  # a child made by fork
            return
        path, words, environment = arguments
        words = [os.fsdecode(w) for w in words]
        if words == sys.orig_argv:
            restart()
            return
        raise Replaced(
            f"the program replaces itself by another one ({_short(path, words)}), which would not "
            f"be recorded; record that one: {_advice(words, environment)}"
        )

    if not _hooked:  # hooks stay until the process ends
        sys.addaudithook(_hook)
        _hooked = True
    before, _watching = _watching, on_exec
    try:
        yield
    finally:
        _watching = before


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.exec" and _watching is not None:
        _watching(arguments)


def _short(path: Any, words: list[str]) -> str:
    text = shlex.join(words) if words else os.fsdecode(path)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _advice(words: list[str], environment: Mapping[Any, Any] | None) -> str:
    changed = {} if environment is None else {_text(k): _text(v) for k, v in environment.items()}
    settings = [f"{k}={v}" for k, v in sorted(changed.items()) if os.environ.get(k) != v]
    python = bool(words) and Path(words[0]).name.startswith("python")
    program = ["python", *words[1:]] if python else ["python", "script.py"]
    return shlex.join([*settings, "uvmsim", "capture", "cupti", "--", *program])


def _text(value: Any) -> str:
    return os.fsdecode(value)
