"""The figure of `fastrnn bench --plot`: time against the size that varies, beside torch.nn.

One size is the horizontal axis: that of H, B and T with the most values. Another one that varies
makes rows of panels, and a third is held at its middle value, which the figure says. Columns are
cells and modes. Needs matplotlib.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn.bench_cases import BASELINE
from fastrnn.machine import cpu_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastrnn.bench import Row
    from fastrnn.benchmark import Case

SIZES = {"H": "hidden units H", "B": "rows of the batch B", "T": "steps T"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F3C8D")
"""After Okabe and Ito, to be told apart by everybody."""
PANEL = 3.6, 2.7
"""Inches."""
MOST_ROWS = 4


class Layout(NamedTuple):
    """What is drawn where."""

    axis: str
    """The size on the horizontal axis."""
    columns: list[tuple[str, str]]
    """(cell, mode) of each."""
    rows: list[tuple[str, int]]
    """(dtype, the second size) of each."""
    second: str
    """The size that tells rows apart; it may have one value only."""
    held: dict[str, tuple[int, list[int]]]
    """Other sizes that vary: the value that is drawn, and all of them."""


def complaint(path: Path, cases: Sequence[Case]) -> str:
    """Why no figure of these cases can be drawn into a file; empty if it can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "drawing needs matplotlib: pip install 'fastrnn[bench]'"
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        return f"got {str(path)!r}, expected a name that ends in .png, .svg, .pdf or the like"
    if all(len(_values(cases, size)) == 1 for size in SIZES):
        return "got one value of each of H, B and T, expected several of one of them"
    return ""


def layout(cases: Sequence[Case]) -> Layout:
    """Which size is the axis, which makes rows, and which is held."""
    counts = {size: len(_values(cases, size)) for size in SIZES}
    axis, second, third = sorted(SIZES, key=lambda size: -counts[size])
    columns = list(dict.fromkeys((case.cell, case.mode) for case in cases))
    dtypes = list(dict.fromkeys(case.dtype for case in cases))
    held = [third]
    if len(dtypes) * counts[second] > MOST_ROWS:
        held.append(second)
    values = {size: _values(cases, size) for size in held if counts[size] > 1}
    drawn = {size: (all_[len(all_) // 2], all_) for size, all_ in values.items()}
    seconds = [drawn[second][0]] if second in drawn else _values(cases, second)
    rows = list(itertools.product(dtypes, seconds))
    return Layout(axis, columns, rows, second, drawn)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw the times of all implementations, with torch.nn as the baseline and the floor.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row.case for row in rows))
    plan = layout(cases)
    names = dict.fromkeys(row.implementation for row in rows if row.samples)
    colours = dict(zip((n for n in names if n != BASELINE), itertools.cycle(COLOURS), strict=False))
    kinds = list(itertools.product(plan.rows, plan.columns))
    wide = len(plan.columns) if len(plan.rows) > 1 or len(plan.columns) < 4 else 2
    high = math.ceil(len(kinds) / wide)
    width, height = max(PANEL[0] * wide + 1, 7.0), max(PANEL[1] * high + 1.6, 4.5)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    panels = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).flat
    for index, (axes, kind) in enumerate(itertools.zip_longest(panels, kinds)):
        if kind is None:
            axes.set_axis_off()
            continue
        (dtype, second), (cell, mode) = kind
        wanted = {"dtype": dtype, plan.second: second, "cell": cell, "mode": mode}
        wanted |= {size: value for size, (value, _) in plan.held.items()}
        shown = [row for row in rows if wanted.items() <= row.case._asdict().items()]
        _draw(axes, plan.axis, shown, colours)
        axes.set_title(_title(plan, cell, mode, dtype, second), fontsize=11)
        if index >= len(kinds) - wide:
            axes.set_xlabel(SIZES[plan.axis])
        if index % wide == 0:
            axes.set_ylabel("ms per call")
    if names:  # matplotlib has no logarithmic axis without a number
        _scale(panels[0], _values(cases, plan.axis))
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    longest = max((len(name) for name in handles), default=1)
    ncols = max(1, min(len(handles), int(72 * width / (6.5 * longest + 45))))  # in points
    lines, labels = list(handles.values()), list(handles)
    figure.legend(lines, labels, loc="outside lower center", ncols=ncols, frameon=False)
    figure.suptitle(f"{_headline(cases)}\n", fontsize=14, fontweight="bold")
    figure.text(0.5, 1 - 0.42 / height, _caption(plan, rows), ha="center", va="top", fontsize=9.5)
    figure.savefig(path)


def _draw(axes: Any, axis: str, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Lines of medians with bands of 20..80 %, and the floor, below which nothing can be."""

    def size(row: Row) -> int:
        return int(getattr(row.case, axis))

    floors = sorted({(size(row), 1e3 * row.floor.seconds) for row in rows if row.floor})
    if floors:
        sizes, bounds = zip(*floors, strict=True)
        axes.plot(sizes, bounds, "--", color="0.5", label="floor", zorder=1)
        axes.fill_between(sizes, 0, bounds, color="0.93", zorder=0)
    for name in dict.fromkeys(row.implementation for row in rows if row.samples):
        own = sorted((row for row in rows if row.implementation == name and row.samples), key=size)
        low, middle, high = zip(
            *([1e3 * each for each in row.quantiles() or ()] for row in own), strict=True
        )
        x = [size(row) for row in own]
        is_baseline = name == BASELINE
        colour = "black" if is_baseline else colours[name]
        axes.plot(
            x, middle, "o-", color=colour, label=f"{name} (baseline)" if is_baseline else name,
            linewidth=2.8 if is_baseline else 1.6, markersize=5, zorder=3 if is_baseline else 4,
        )  # fmt: skip
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    chosen = [row for row in rows if row.auto and row.samples]
    axes.plot(
        [size(row) for row in chosen], [1e3 * (row.median or 0.0) for row in chosen], "o",
        markersize=11, markerfacecolor="none", markeredgecolor="0.25", label="what auto chooses",
        zorder=5,
    )  # fmt: skip
    axes.grid(True, which="major", color="0.88", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: Any, values: Sequence[int]) -> None:
    """Logarithmic axes, shared by all panels, labelled in plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    plain: Callable[[float, int], str] = lambda value, _: f"{value:g}"  # noqa: E731
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(FuncFormatter(plain))


def _title(plan: Layout, cell: str, mode: str, dtype: str, second: int) -> str:
    words = [f"{cell}, {mode}"]
    if len({each for each, _ in plan.rows}) > 1:
        words.append(dtype)
    if len({each for _, each in plan.rows}) > 1:
        words.append(f"{plan.second} = {second}")
    return ", ".join(words)


def _headline(cases: Sequence[Case]) -> str:
    """Dtype and device."""
    dtypes = ", ".join(dict.fromkeys(case.dtype for case in cases))
    if cases[0].device == "cpu":
        count = torch.get_num_threads()
        return f"{dtypes} on {cpu_model()}, {count} thread{'s' if count > 1 else ''}"
    return f"{dtypes} on {torch.cuda.get_device_name()}"


def _caption(plan: Layout, rows: Sequence[Row]) -> str:
    """What all panels have in common, and what is not drawn."""
    cases = [row.case for row in rows]
    case = cases[0]
    words = []
    for size in SIZES:
        if size in plan.held:
            value, all_ = plan.held[size]
            words.append(f"{size} = {value} (of {', '.join(map(str, all_))})")
        elif len(_values(cases, size)) == 1:
            words.append(f"{size} = {getattr(case, size)}")
    words.append("I = H" if all(each.I == each.H for each in cases) else f"I = {case.I}")
    words.append(f"{case.layers} layer{'s' if case.layers > 1 else ''}")
    words += ["bidirectional"] if case.bidirectional else []
    words.append("medians and 20..80 %")
    wrong = dict.fromkeys(row.implementation for row in rows if row.status in ("wrong", "failed"))
    words += [f"wrong or failed, and without a time: {', '.join(wrong)}"] if wrong else []
    return ", ".join(words)


def _values(cases: Sequence[Case], size: str) -> list[int]:
    return sorted({getattr(case, size) for case in cases})
