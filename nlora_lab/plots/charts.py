"""Small charts for a notebook: lines by name, one bar per method, and a table of numbers as a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.plots.drawings import Picture
from nlora_lab.plots.figure import Axis, Bars, Figure, Heatmap, Label, Line, Panel, Points, log_limits, round_ticks
from nlora_lab.plots.matplotlib_renderer import DASHES, SYMBOLS

if TYPE_CHECKING:
    import pandas as pd

HUES = ("#0072b2", "#d98c00", "#009e73", "#c0448f", "#56b4e9", "#d55e00")  # Okabe and Ito, darkened a little


def chart(
    lines: Mapping[str, Any], *, xlabel: str = "", ylabel: str = "", log: bool = False, x: Sequence[float] | None = None
) -> Picture:
    """Draw named lines into one chart. Every line has its own hue and dash, and its name stands beside the chart.

    Args:
        lines: the values of each line (a sequence, an array or a 1-D tensor), by its name. The name of a method (see
            ``METHODS``) gives the line the label, hue and dash that this method has in every figure.
        xlabel: the title of the x axis.
        ylabel: the title of the y axis.
        log: make the y axis logarithmic.
        x: the positions of the values, as many as each line has; by default 1, 2, 3, …

    Returns:
        The chart, which a notebook shows as a PNG.

    Raises:
        InputError: a line has no value, or not as many as ``x`` has positions.
    """
    marks = []
    for i, (name, line) in enumerate(lines.items()):
        values = [float(v) for v in (line.tolist() if hasattr(line, "tolist") else line)]
        positions = [float(v) for v in (range(1, len(values) + 1) if x is None else x)]
        if not values or len(positions) != len(values):
            raise InputError(f"{name}: {len(values)} values and {len(positions)} places; give as many of both")
        label, hue, dash = name, HUES[i % len(HUES)], list(DASHES)[i % len(DASHES)]
        if name in METHODS:
            label, hue, dash = METHODS[name].label, METHODS[name].colour, METHODS[name].dash
        marks.append(Line(positions, values, hue, dash, 2.2, name=label, hover="%{x}: %{y:.3g}"))
    places = [v for mark in marks for v in mark.x if v is not None]
    whole = places and all(v.is_integer() for v in places)  # without a tick at layer 0.5
    across = Axis(xlabel, ticks=round_ticks(min(places), max(places), most=9) if whole else None)
    panel = Panel(across, Axis(ylabel, log=log), marks, legend="beside")
    return Picture(Figure([panel], 720, 300), f"{ylabel} against {xlabel}: {', '.join(lines)}")


def scatter(
    frame: pd.DataFrame, x: str, y: str, by: str, *, xlabel: str = "", ylabel: str = "", log: bool = False
) -> Picture:
    """Draw one column of a table against another, one marker per row. Rows of one group share hue and symbol.

    Args:
        frame: the table. Rows with NaN or ∞ in one of the two columns are left out.
        x: the column on the x axis, which is logarithmic.
        y: the column on the y axis.
        by: the column that groups the rows. Its values are the legend.
        xlabel: what ``x`` is.
        ylabel: what ``y`` is.
        log: make the y axis logarithmic.

    Returns:
        The chart, which a notebook shows as a PNG.

    Raises:
        InputError: a column is missing, no row has both numbers, or a number is not above 0 on a logarithmic axis.
    """
    for name in (x, y, by):
        check_choice("column", name, list(frame.columns))
    known = frame[[math.isfinite(a) and math.isfinite(b) for a, b in zip(frame[x], frame[y], strict=True)]]
    if known.empty:
        raise InputError(f"no row has both {x!r} and {y!r}; give at least one")
    if (low := min(known[x].min(), known[y].min() if log else math.inf)) <= 0:
        raise InputError(f"{low:g} has no place on a logarithmic axis; leave out rows that are not above 0")
    marks = []
    for i, (group, rows) in enumerate(known.groupby(by, sort=True)):
        hue, symbol = HUES[i % len(HUES)], list(SYMBOLS)[i % 5]  # the last one is a tick
        points = rows[x].astype(float).tolist(), rows[y].astype(float).tolist()
        marks.append(Points(*points, hue, symbol, name=f"{by} {group}", hover="%{x:.3g}, %{y:.3g}"))
    across = Axis(xlabel, log_limits(known[x], 0.06), log=True)
    panel = Panel(across, Axis(ylabel, log=log), marks, legend="beside")
    return Picture(Figure([panel], 720, 320), f"{ylabel} against {xlabel}, by {by}")


def method_bars(values: Mapping[str, float], *, xlabel: str = "") -> Picture:
    """Draw one number per method as bars in the methods' colours, on a logarithmic axis.

    Args:
        values: the numbers, by the name of a method (see ``METHODS``). A number of 0 has no bar.
        xlabel: what the numbers are.

    Returns:
        The bars, which a notebook shows as a PNG.

    Raises:
        InputError: a name is not one of a method.
    """
    methods, numbers = [get_method(name) for name in values], [float(v) for v in values.values()]
    limits, count = log_limits(numbers, 0.12), len(numbers)
    bars = Bars(range(count), numbers, [m.colour for m in methods], width=0.65, hover="%{x:.3g}")
    labels = [Label(max(v, limits[0]), i, f"{v:.2g}", "black") for i, v in enumerate(numbers)]
    rows = Axis(limits=(count - 0.5, -0.5), ticks=dict(enumerate(m.label for m in methods)), grid=False)
    panel = Panel(Axis(xlabel, limits, log=True), rows, [bars], labels)
    return Picture(Figure([panel], 720, 60 + 30 * count), f"{xlabel}: {', '.join(m.label for m in methods)}")


def heatmap(
    frame: pd.DataFrame, *, title: str = "", xlabel: str = "", ylabel: str = "", form: str = ".3g", log: bool = False,
    high_is_good: bool = False,
) -> Picture:  # fmt: skip
    """Draw a table of numbers as a heat map, each number on its colour; dark is good.

    Args:
        frame: the numbers. NaN is an empty cell, and ∞ is a loss that diverged.
        title: what the numbers are.
        xlabel: what the columns are.
        ylabel: what the rows are.
        form: the format of a number, as for ``format``.
        log: colour by the logarithm.
        high_is_good: make high numbers dark; by default low numbers are.

    Returns:
        The heat map, which a notebook shows as a PNG.

    Raises:
        InputError: the table is empty.
    """
    if frame.empty:
        raise InputError("the table has no number to show; give at least one row and one column")
    columns, rows = [f"{c:g}" if isinstance(c, float) else str(c) for c in frame.columns], list(map(str, frame.index))
    values = frame.to_numpy(dtype=float).tolist()
    levels = [[_level(v, log) for v in row] for row in values]
    finite = [v for row in levels for v in row if not math.isnan(v)] or [0.0]
    texts = [["" if math.isnan(v) else "∞" if math.isinf(v) else format(v, form) for v in row] for row in values]
    colours = "viridis_r" if high_is_good else "viridis"
    cells = Heatmap(levels, (min(finite), max(finite)), colours, texts, hover="%{x}, %{y}: %{text}")
    panel = Panel(Axis.of_names(columns, xlabel), Axis.of_names(rows, ylabel, reverse=True), [cells], heading=title)
    size = 160 + 72 * len(columns), 95 + 34 * len(rows)
    return Picture(Figure([panel], *size), f"{title}, {ylabel} × {xlabel}")


def _level(value: float, log: bool) -> float:
    if not math.isfinite(value) or (log and value <= 0):
        return math.nan
    return math.log(value) if log else value
