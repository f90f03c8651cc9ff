"""Run a Python program in this process, as ``python`` itself would."""

from __future__ import annotations

import runpy
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from traces.capture.replaced import Replaced
from traces.errors import InputError


def check_program(argv: Sequence[str]) -> list[str]:
    """``python script.py args``, ``script.py args`` or ``python -m module args`` without the
    interpreter's name. Raises `InputError` for what cannot be run in this process."""
    words = list(argv)
    if words and Path(words[0]).name.rstrip("0123456789.") == "python":
        words = words[1:]
    if not words:
        raise InputError("no program given; add one: -- python script.py")
    if words[0] == "-m":
        if len(words) < 2:
            raise InputError("-m: no module given; add its name")
        return words
    if words[0].startswith("-"):
        raise InputError(f"{words[0]}: options of Python are not passed on; give a script or -m")
    script = Path(words[0])
    if not script.exists():
        raise InputError(f"{script}: no such script; check the path")
    if script.is_file():
        with script.open("rb") as f:
            if f.read(4) == b"\x7fELF":
                raise InputError(
                    f"{script}: not a Python program; record it with Nsight Systems and bring it "
                    "in with `uvmsim trace import`"
                )
    return words


def run_program(words: Sequence[str]) -> int:
    """Run what `check_program` returned; its exit code, after its threads have ended.

    An exception is printed, as Python does, and is exit code 1. `KeyboardInterrupt` and `Replaced`
    pass.
    """
    old_argv, old_path = sys.argv[:], sys.path[:]
    code = 0
    try:
        if words[0] == "-m":
            sys.argv = [words[1], *words[2:]]
            sys.path.insert(0, "")
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as e:
        code = _exit_code(e)
    except (KeyboardInterrupt, Replaced):
        raise
    except BaseException as e:
        traceback.print_exception(e)
        code = 1
    finally:
        sys.argv, sys.path[:] = old_argv, old_path
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    return code


def _exit_code(e: SystemExit) -> int:
    if e.code is None:
        return 0
    if isinstance(e.code, int):
        return e.code
    print(e.code, file=sys.stderr)
    return 1
