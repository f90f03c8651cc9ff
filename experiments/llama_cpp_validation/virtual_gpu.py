"""A GPU without cores for a CPU-only libllama (`virtual_gpu.cpp`): compile it and register it."""

from __future__ import annotations

import ctypes as C
import shutil
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("virtual_gpu.cpp")


def compiler() -> str | None:
    """The C++ compiler of the machine, if any."""
    return next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)


def build(folder: Path) -> Path:
    """Compile into ``folder``, unless it is there already; returns the library's path."""
    out = folder / "virtual_gpu.so"
    if not out.exists():
        command = [compiler() or "c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w"]
        subprocess.run([*command, "-o", str(out), str(SOURCE), "-ldl"], check=True)
    return out


class VirtualGpu:
    """Registered with a loaded library before its first model; it lives as long as the process."""

    def __init__(
        self, llama: Any, folder: str, compute_capability: int = 900, vram_bytes: int = 80 << 30
    ) -> None:
        self.c = C.CDLL(str(build(Path(folder))))
        register = self.c.virtual_gpu_register
        register.restype, register.argtypes = None, (C.c_void_p, C.c_int, C.c_size_t)
        register(llama.c._handle, compute_capability, vram_bytes)
