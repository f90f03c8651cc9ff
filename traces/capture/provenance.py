"""Where a recording comes from, in words: program, machine, prompt. No user or host names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traces.capture.options import Prompt


def tool() -> str:
    """This program and its version."""
    try:
        return f"uvmsim {importlib.metadata.version('uvmsim')}"
    except importlib.metadata.PackageNotFoundError:
        return "uvmsim (run from a source tree)"


def machine(**more: Any) -> dict[str, Any]:
    """CPU, cores and operating system, and whatever else the caller knows."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "os": _os(),
        "python": platform.python_version(),
    } | more


def prompt_source(prompts: Sequence[Prompt]) -> str:
    """Names and sha256 of the prompts, each once."""
    described = []
    for p in prompts:
        content = (p.text or str(p.tokens)).encode("utf-8")
        described.append(f"{p.source} sha256:{hashlib.sha256(content).hexdigest()}")
    return "; ".join(dict.fromkeys(described))


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"
