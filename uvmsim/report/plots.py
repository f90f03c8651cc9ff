"""What all plots share: colours, style, and checks before work begins."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.files.target import check_target as writable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: distinct for colour-blind readers."""


def check_target(path: str) -> None:
    """`InputError` where the plot could not be written at the end."""
    if Path(path).suffix.lower() not in (".png", ".svg"):
        raise InputError(f"--plot {path}: the name must end in .png or .svg")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--plot {path}: no such folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib; pip install 'uvmsim[plot]'")


def figure(width: float, height: float, **kw: Any) -> tuple[Any, Any]:
    """A figure and its axes, in the house style, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
            "axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "uvmsim", "legend.frameon": False,
        }
    )  # fmt: skip
    return plt.subplots(figsize=(width, height), layout="constrained", **kw)


def save(fig: Any, path: str) -> None:
    """Write to a temporary name, then rename."""
    target = writable(path)
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        fig.savefig(partial, dpi=160, metadata={"Date": None} if target.suffix == ".svg" else None)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
