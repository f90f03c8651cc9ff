"""A sweep as a picture: tokens/s over device memory and link bandwidth, a panel a policy."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from uvmsim.report.sweep_data import Grid

COLOURS = {
    "lru": "#0072B2", "lfu": "#E69F00", "layer-lru": "#009E73", "lru+next-layer": "#CC79A7",
    "belady": "#555555", "random": "#999999", "resident": "#222222", "stream": "#8C564B",
    "zero-copy": "#D55E00", "cpu-offload": "#56B4E9",
}  # fmt: skip
"""One colour a policy in every picture (Okabe & Ito's, which colour-blind people can tell apart)."""
MORE = ("#56B4E9", "#D55E00", "#B8A600", "#7B5EA7", "#8C564B", "#17A398", "#C44E52", "#6B8E23")
X_NAMES = {
    "slots": "expert slots", "memory": "device memory, GiB",
    "ncmoe": "layers whose experts stay on the CPU (-ncmoe)",
}  # fmt: skip
Y_NAMES = {"link": "link, GB/s", "memory": "device memory, GiB", "ram": "host memory, GB/s"}
Y_TITLES = {"link": "link {:g} GB/s", "memory": "{:g} GiB", "ram": "host memory {:g} GB/s"}
"""Over a panel that is one value of Y."""
Y_KEYS = {"link": "link_gb_per_s", "memory": "memory", "ram": "ram_gb_per_s"}
"""What `draw` calls Y's values."""
SAME = 0.01
"""Policies within this share of the fastest count as equally fast."""
STYLE: Any = {
    "font.size": 13, "axes.titlesize": 15, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 13, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.labelsize": 12, "ytick.labelsize": 12, "svg.hashsalt": "uvmsim", "figure.dpi": 100,
}  # fmt: skip


def check_target(path: str) -> None:
    """`InputError` where a picture cannot be written to ``path`` later."""
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path}: a picture's name ends in .png, .svg or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("drawing needs matplotlib; pip install 'uvmsim[plot]'")


def draw(
    dataset: str | Path,
    path: str | Path,
    *,
    keys: Collection[str] | None = None,
    where: Iterable[str] = (),
    title: str | None = None,
) -> dict[str, Any]:
    """Draw a dataset to a file (`uvmsim.report.sweep_data.load` for what is drawn).

    Two dimensions (three sizes and three links or more) become maps with lines of equal speed, the
    region where a policy is the fastest one outlined; fewer become lines, a panel a link (or a size of
    memory, where layers on the CPU vary). Returns
    what was drawn as plain JSON types. Raises `InputError`.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    from uvmsim.report.sweep_data import load

    check_target(str(path))
    grid = load(dataset, keys, where)
    with matplotlib.rc_context(STYLE):
        maps = has_maps(grid)
        figure = _maps(grid) if maps else _lines(grid)
        _heading(figure, grid, title)
        target = Path(path)
        temporary = target.with_name(f".tmp-{target.name}")
        meta = {"Date": None} if target.suffix == ".svg" else None
        figure.savefig(temporary, format=target.suffix[1:], dpi=160, metadata=meta)
        temporary.rename(target)
        plt.close(figure)
    return {
        "kind": "maps" if maps else "lines",
        "policies": list(grid.speed),
        grid.x_is if grid.x_is == "ncmoe" else "memory": grid.x.tolist(),
        Y_KEYS[grid.y_is]: grid.y.tolist(),
        "left_out": grid.left_out,
    }


def has_maps(grid: Grid) -> bool:
    """Whether there is enough in both directions; a few sizes of memory read better as panels."""
    return len(grid.x) >= 3 and len(grid.y) >= (3 if grid.y_is == "link" else 5)


def colours(labels: Iterable[str]) -> dict[str, str]:
    """The colour of each label; names without one of their own take the next free one."""
    free = iter(MORE * 8)
    return {k: COLOURS[k] if k in COLOURS else next(free) for k in labels}


def fastest(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """int [Y, X]: the fastest of ``grid.real`` (-1: none finished), and bool [Y, X] where they are
    all within `SAME` of it."""
    import numpy as np

    stack = np.stack([grid.speed[k] for k in grid.real])
    known = ~np.isnan(stack).all(axis=0)
    filled = np.where(np.isnan(stack), -1.0, stack)
    best = np.where(known, filled.argmax(axis=0), -1)
    top = filled.max(axis=0)
    tie = known & (len(stack) > 1) & (filled.min(axis=0) >= top * (1 - SAME))
    return best, tie


# ---- maps ---------------------------------------------------------------------------------------


def _maps(grid: Grid) -> Figure:
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.colors import LogNorm

    labels = list(grid.speed)
    winners = len(grid.real) > 1
    n = len(labels) + winners
    columns = n if n <= 3 else (n + 1) // 2 if n <= 8 else 4
    lines = -(-n // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.3 * columns + 1.2, 3.55 * lines + 1.5), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    everything = np.concatenate([grid.speed[k].ravel() for k in labels])
    positive = everything[everything > 0]
    norm = LogNorm(positive.min(), max(positive.max(), positive.min() * 1.01))
    levels = _round_levels(positive.min(), positive.max())
    best, tie = fastest(grid)
    palette = colours(labels)
    image = None
    for ax, label in zip(axes.flat, labels, strict=False):
        z = np.ma.masked_invalid(grid.speed[label])
        image = ax.pcolormesh(
            grid.x, grid.y, z, norm=norm, cmap="viridis", shading="nearest", rasterized=True
        )
        _isolines(ax, grid, z, levels)
        _too_big(ax, grid, grid.too_big[label])
        if winners and label in grid.real:
            _outline(ax, grid, (best == grid.real.index(label)) & ~tie)
        ax.set_title(label + (" (bound)" if label in grid.bounds else ""),
                     color=palette[label])  # fmt: skip
    if winners:
        _winner_map(axes.flat[len(labels)], grid, best, tie, palette)
    for ax in list(axes.flat)[n:]:
        ax.set_visible(False)
    for ax in list(axes.flat)[:n]:
        _map_axes(ax, grid)
    for ax in axes[:, 0]:
        ax.set_ylabel(Y_NAMES[grid.y_is])
    for i in range(columns):
        lowest = [ax for ax in axes[:, i] if ax.get_visible()][-1:]
        for ax in lowest:
            ax.set_xlabel(_x_name(grid, short=True))
            ax.tick_params(labelbottom=True)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.012, aspect=30, ticks=levels)
    bar.ax.set_yticklabels([f"{v:,g}" for v in levels])
    bar.ax.minorticks_off()
    bar.set_label(_speed_name(grid))
    return figure


def _map_axes(ax: Axes, grid: Grid) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if grid.y[-1] / grid.y[0] > 4:
        ax.set_yscale("log")
        ticks = [v for v in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if grid.y[0] <= v <= grid.y[-1]]
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    # None and all of the layers are as wide as other numbers of them.
    half = 0.5 if grid.x_is == "ncmoe" else 0.0
    ax.set_xlim(grid.x[0] - half, grid.x[-1] + half)
    if half:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(grid.y[0], grid.y[-1])
    if grid.fits_at is not None and grid.fits_at < grid.x[-1]:
        ax.axvline(grid.fits_at, color="white", lw=1.2, ls=(0, (4, 3)))


def _isolines(ax: Axes, grid: Grid, z: Any, levels: list[float]) -> None:
    """Lines of equal speed, labelled; the map's message without the colour bar."""
    inside = [v for v in levels if z.min() < v < z.max()]
    if not inside:
        return
    lines = ax.contour(grid.x, grid.y, z, levels=inside, colors="white", linewidths=0.9, alpha=0.8)
    texts = ax.clabel(lines, fmt=lambda v: f"{v:,g}", fontsize=11, colors="white", inline_spacing=3)
    for text in texts:
        text.set_fontweight("bold")


def _too_big(ax: Axes, grid: Grid, mask: np.ndarray) -> None:
    import numpy as np

    if mask.any():
        ax.set_facecolor("#eeeeee")
        where = np.ma.masked_where(~mask, np.ones(mask.shape))
        ax.pcolor(grid.x, grid.y, where, hatch="///", alpha=0, shading="nearest")
        row, column = _middle(mask)
        ax.text(
            grid.x[column], grid.y[row], "does not fit", ha="center", va="center", fontsize=12,
            color="#444444", bbox={"fc": "#eeeeee", "ec": "none", "pad": 2},
        )  # fmt: skip


def _outline(ax: Axes, grid: Grid, mask: np.ndarray) -> None:
    """The border of the region where this policy is the fastest."""
    if mask.any() and not mask.all():
        ax.contour(grid.x, grid.y, mask.astype(float), levels=[0.5], colors="white", linewidths=4.5)
        ax.contour(
            grid.x, grid.y, mask.astype(float), levels=[0.5], colors="#E8112D", linewidths=2.2
        )


def _winner_map(
    ax: Axes, grid: Grid, best: np.ndarray, tie: np.ndarray, palette: dict[str, str]
) -> None:
    """Which policy to take: a colour a policy, grey where it does not matter."""
    import numpy as np
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    names = grid.real
    code = np.where(tie, len(names), best)
    shown = np.ma.masked_equal(code, -1)
    cmap = ListedColormap([*(palette[k] for k in names), "#cfcfcf"])
    ax.pcolormesh(grid.x, grid.y, shown, cmap=cmap, vmin=-0.5, vmax=len(names) + 0.5,
                  shading="nearest", rasterized=True)  # fmt: skip
    small = []
    for i, name in enumerate([*names, "no difference"]):
        mask, dark = code == i, i < len(names)
        if not mask.any():
            continue
        share = f"{mask.mean():.0%}"
        if mask.mean() < 0.1:
            small.append((f"{name} {share}", palette[name] if dark else "#cfcfcf"))
            continue
        row, column = _middle(mask)
        text = f"{name}\n{share}" if dark else name.replace(" ", "\n")
        ax.text(
            grid.x[column], grid.y[row], text, ha="center", va="center", fontsize=14,
            fontweight="bold", color="white" if dark else "#333333",
        )  # fmt: skip
    if small:
        # A region too small for its name is named beside a patch of its colour.
        handles = [Patch(color=colour, label=text) for text, colour in small]
        ax.legend(handles=handles, loc="lower left", fontsize=12, framealpha=0.92)
    ax.set_title("fastest policy to take")


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """A cell well inside a region: the one that survives longest when its border is worn away."""
    import numpy as np

    inner = mask
    while True:
        p = np.pad(inner, 1)
        worn = inner & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
        if not worn.any() or (worn == inner).all():
            break
        inner = worn
    at = np.argwhere(inner)
    row, column = at[np.abs(at - at.mean(axis=0)).sum(axis=1).argmin()]
    return int(row), int(column)


def _round_levels(lo: float, hi: float) -> list[float]:
    import numpy as np

    steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 3, 5)]
    if hi / lo < 8:
        steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    if hi / lo < 2:
        return [float(f"{v:.3g}") for v in np.linspace(lo, hi, 5)]
    return [v for v in steps if lo <= v <= hi]


# ---- lines --------------------------------------------------------------------------------------


def _lines(grid: Grid) -> Figure:
    """A line a policy over X, a panel a value of Y; over Y where X has one value."""
    import matplotlib.pyplot as plt
    import numpy as np

    over_link = len(grid.x) == 1 and len(grid.y) > 1
    x = grid.y if over_link else grid.x
    panels = [None] if over_link else list(range(len(grid.y)))
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(max(5.2 * columns, 9.5) + 1.5, 4.6 * lines + 1.3), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    palette = colours(grid.speed)
    top = 1.08 * max(float(np.nanmax(z)) for z in grid.speed.values() if not np.isnan(z).all())
    for ax, panel in zip(axes.flat, panels, strict=False):
        ends = []
        ax.set_ylim(0, top)
        for label, z in grid.speed.items():
            values = z[:, 0] if panel is None else z[panel]
            known = np.flatnonzero(~np.isnan(values))
            if not len(known):
                continue
            bound = label in grid.bounds
            ax.plot(x[known], values[known], color=palette[label], lw=2 if bound else 3,
                    ls="--" if bound else "-", marker="o" if len(x) < 12 else None, ms=6)  # fmt: skip
            last = known[-1]
            mean = float(values[known].mean())
            ends.append((float(values[last]), label, float(x[last]), mean))
        _direct_labels(ax, ends, grid, palette)
        ax.grid(axis="y", color="#dddddd", lw=0.8)
        ax.set_axisbelow(True)
        ax.set_xlabel(Y_NAMES[grid.y_is] if over_link else _x_name(grid, len(panels) > 1))
        if grid.x_is == "ncmoe" and not over_link:
            ax.xaxis.get_major_locator().set_params(integer=True)  # no half layers
        if panel is not None and len(grid.y) > 1:
            ax.set_title(Y_TITLES[grid.y_is].format(grid.y[panel]))
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(_speed_name(grid))
    return figure


def _direct_labels(
    ax: Axes, ends: list[tuple[float, str, float, float]], grid: Grid, palette: dict[str, str]
) -> None:
    """Names at the lines' ends (last value, label, x, mean value), pushed apart where they would
    overlap."""
    top = ax.get_ylim()[1]
    # Lines that end together are named in the order in which they come.
    ends = sorted(ends, key=lambda end: (round(end[0] / top, 2), end[3]))
    heights = _apart([end[0] for end in ends], top)
    offset = 0.02 * (ax.get_xlim()[1] - ax.get_xlim()[0])
    for (_, label, x, _), height in zip(ends, heights, strict=True):
        text = label + (" (bound)" if label in grid.bounds else "")
        ax.text(x + offset, height, text, color=palette[label], fontweight="bold", va="center")


def _apart(heights: list[float], top: float, gap: float = 0.065) -> list[float]:
    """Ascending heights moved as little as it takes to be ``gap`` of ``top`` apart."""
    least, at = gap * top, list(heights)
    for _ in range(200):
        for i in range(len(at) - 1):
            push = (least - (at[i + 1] - at[i])) / 2
            if push > 0:
                at[i] -= push
                at[i + 1] += push
        at = [min(max(h, 0.0), top) for h in at]
    return at


# ---- words --------------------------------------------------------------------------------------


def _heading(figure: Figure, grid: Grid, title: str | None) -> None:
    a = grid.about
    text = title or f"{a['model']} on {a['hardware']}: {_speed_name(grid)}"
    expert = f"an expert {a['expert_bytes'] / 1e6:.1f} MB, {a['experts']:,} of them"
    facts = [f"{Path(a['trace']).name}, {a['tokens']:,} tokens", expert, *grid.left_out]
    if grid.fits_at is not None and len(grid.y) >= 3:
        facts.append("dashed: every expert fits")
    if len(grid.real) > 1 and has_maps(grid):
        facts.append("outlined in red: fastest there")
    if grid.bounds:
        facts.append("bound: knows the future")
    figure.suptitle(text, x=0.01, ha="left", fontsize=20, fontweight="bold")
    figure.supxlabel(" · ".join(facts), x=0.01, ha="left", fontsize=11, color="#555555")


def _x_name(grid: Grid, short: bool = False) -> str:
    """``short``: for a panel among several."""
    return "layers on the CPU (-ncmoe)" if short and grid.x_is == "ncmoe" else X_NAMES[grid.x_is]


def _speed_name(grid: Grid) -> str:
    return "decoded tokens/s" if grid.measure == "decode" else "tokens/s"
