"""CUDA source of the kernels, and its compilation by NVRTC through CuPy."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

TOKEN_BLOCKS = (1, 2, 4, 8)
"""Tokens one block of threads can take at once: a pair of kernels each."""

WARPS = 8
"""Warps a block of the expert kernels; experts.cu says the same."""


def source(name: str) -> str:
    """The text of ``experts.cu`` or ``memory.cu``."""
    return files("replay.kernels").joinpath(name).read_text(encoding="utf-8")


def options(dtype: str | None = None) -> tuple[str, ...]:
    """Compiler options; ``dtype`` (fp32, fp16, bf16, mxfp4) for the expert kernels."""
    return ("-std=c++17", *((f"-D{dtype.upper()}",) if dtype else ()))


def load(name: str, dtype: str | None = None) -> Any:
    """A compiled `cupy.RawModule`. CuPy caches the result on disk."""
    import cupy

    return cupy.RawModule(code=source(name), options=options(dtype), backend="nvrtc")
