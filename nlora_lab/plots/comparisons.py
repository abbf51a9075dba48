"""Figures of several methods: valleys, first steps, intervals, and one number of each method against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.plots.drawings import Picture
from nlora_lab.plots.figure import INK, Axis, Figure, Label, Line, Mark, Panel, Points, apart, log_limits
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.rate_points import RatePoint, by_seed

if TYPE_CHECKING:
    import pandas as pd

    from nlora_lab.analysis.first_step_loss import FirstStepLoss
    from nlora_lab.analysis.selection import Runs

COLUMNS = 5  # panels in a row
TOP = 3.0  # nats: a loss above it, or infinite, is drawn there as a cross
LOSS_LIMITS = (0.003, 1.15 * TOP)
LOSSES = {0.01: "0.01", 0.1: "0.1", 1.0: "1"}  # ticks
RATES = {1e-5: "10⁻⁵", 1e-3: "10⁻³", 1e-1: "10⁻¹"}
PALE = "#c9c9c9"


def valleys(
    recordings: Runs = None, task: str = "word-problems", methods: Sequence[str] | None = None, *, rank: int = 8,
    mark: float = SHARED_RATE,
) -> Picture:  # fmt: skip
    """Draw the final loss of recorded runs against the learning rate, with a panel per method.

    A point is a median over seeds, and its whiskers are their range. The best rate by validation has a ring. All other
    methods stand in grey behind each one.

    Args:
        recordings: the runs: a store, its folder, …; by default those that ship.
        task: the task of the runs.
        methods: the names of the methods; by default all. Methods without a recorded run are left out.
        rank: the rank of the adapters.
        mark: a learning rate to mark with a dotted line.

    Returns:
        The panels, which a notebook shows as a PNG.

    Raises:
        InputError: a method is unknown, or no method has a recorded run.
    """
    from nlora_lab.analysis.selection import recorded_index

    index = recorded_index(recordings)
    names = [get_method(name).name for name in (METHODS if methods is None else methods)]
    points = {name: valley for name in names if (valley := index.valley(task, name, rank))}
    if not points:
        settings = f"{', '.join(names)} with task={task!r} and rank={rank}"
        raise InputError(f"no run was recorded of {settings}; choose others, or record them with nl.sweep")
    columns = min(COLUMNS, len(points))
    rows = -(-len(points) // columns)
    wide, tall = 1 / (columns - 0.08), 1 / (rows - 0.2)
    limits = log_limits([p.lr for valley in points.values() for p in valley] + [mark], 0.06)
    panels = []
    for i, name in enumerate(points):
        first, lowest = i % columns == 0, i + columns >= len(points)
        across, up = i % columns * wide, 1 - i // columns * tall
        place = (across, min(1.0, across + 0.92 * wide)), (max(0.0, up - 0.8 * tall), up)
        # the panels at the left and at the bottom name the ticks of the others too
        rate_ticks, loss_ticks = {v: t * lowest for v, t in RATES.items()}, {v: t * first for v, t in LOSSES.items()}
        rate = Axis("learning rate" * lowest, limits, True, rate_ticks)
        loss = Axis("final loss, nats per token" * first, LOSS_LIMITS, True, loss_ticks)
        others = [valley for other, valley in points.items() if other != name]
        marks: list[Mark] = [Line([p.lr for p in o], _cut(o, "middle"), PALE, width=0.8) for o in others]
        marks += [Line([mark] * 2, LOSS_LIMITS, dash="dot", width=1.2)]
        marks += _valley(name, points[name], index.best(task, name, rank))
        panels.append(Panel(rate, loss, marks, (), METHODS[name].label, METHODS[name].colour, *place))
    text = f"final loss against the learning rate: {', '.join(METHODS[name].label for name in points)}"
    return Picture(Figure(panels, 1040, 50 + 175 * rows), text)


def _valley(name: str, points: Sequence[RatePoint], best: RatePoint | None) -> list[Mark]:
    method, rates, middles = METHODS[name], [p.lr for p in points], _cut(points, "middle")
    symbols, hover = ["x" if p.loss.middle > TOP else "circle" for p in points], "rate %{x}: loss %{y:.3f}"
    look: dict[str, Any] = {"dash": "solid", "width": 2.2, "whiskers": (_cut(points, "low"), _cut(points, "high"))}
    valley = Points(rates, middles, method.colour, symbols, 5, **look, name=method.label, hover=hover)
    rings = [Points([x], [y], method.colour, symbol, 11, "black")
             for x, y, symbol in zip(rates, middles, symbols, strict=True) if best and x == best.lr]  # fmt: skip
    return [valley, *rings]


def _cut(points: Sequence[RatePoint], part: str) -> list[float]:
    return [min(max(getattr(p.loss, part), 1e-4), TOP) for p in points]


def first_step_losses(measured: Sequence[FirstStepLoss]) -> Picture:
    """Draw the loss after one step of Adam against the learning rate, with a line per method.

    A dotted line is the parabola that slope and curvature at the start predict. A circle is the lowest measured loss,
    and a diamond is one step with the best rate that was recorded for a complete training.

    Args:
        measured: what ``nl.analysis.loss_along_first_step`` measured, one per method.

    Returns:
        The chart, which a notebook shows as a PNG.

    Raises:
        InputError: there is nothing to draw.
    """
    if not measured:
        raise InputError("measured=[] has no method; give at least one result of nl.analysis.loss_along_first_step")
    lowest, top = min(min(m.losses) for m in measured), 1.6 * max(m.start for m in measured)
    lines, bends, places = list[Mark](), list[Mark](), list[Mark]()
    for i, m in enumerate(measured):
        method, shown = METHODS[m.config.method], dict(zip(m.rates, m.losses, strict=True))
        hover = "rate %{x}: loss %{y:.3f}"
        lines.append(Line(list(shown), list(shown.values()), method.colour, width=2.2, name=method.label, hover=hover))
        fine = [m.rates[0] * (m.rates[-1] / m.rates[0]) ** (k / 200) for k in range(201)]
        bent = [v if 0 < (v := m.parabola(rate)) < m.start else math.nan for rate in fine]
        bends.append(Line(fine, bent, method.colour, "dot", 1.5, name="" if i else "parabola"))
        for rate, symbol, name in (
            (m.lowest_rate, "circle", "lowest loss"),
            (m.best_rate, "diamond", "best recorded rate"),
        ):
            if rate is not None:
                place = [rate], [min(shown[rate], top)]
                places.append(Points(*place, method.colour, symbol, 10, "black", name="" if i else name))
    marks = [*lines, *bends, *places]
    across = Axis("learning rate of the one step", log_limits([r for m in measured for r in m.rates], 0.02), log=True)
    up = Axis("loss after it, nats per token", (0.8 * lowest, top))
    panel = Panel(across, up, marks, legend="beside")
    names = ", ".join(METHODS[m.config.method].label for m in measured)
    return Picture(Figure([panel], 820, 340), f"loss after one step of Adam against the learning rate: {names}")


def intervals(
    rows: pd.DataFrame, groups: Mapping[str, Sequence[Any]], *, metric: str = "accuracy", baseline: str = "lora"
) -> Picture:
    """Draw a comparison of groups of runs, one row per group: ticks are seeds, a dot is the median, a bar its interval.

    Args:
        rows: the table that ``nl.compare`` made of these groups; its order is that of the figure.
        groups: the runs, by the name of a group.
        metric: the metric that was compared, as in ``nl.compare``.
        baseline: the group whose median is a dotted line.

    Returns:
        The intervals, which a notebook shows as a PNG.

    Raises:
        InputError: the metric is unknown, or no group has the name of the baseline.
    """
    from nlora_lab.analysis.comparison import METRICS

    check_choice("metric", metric, METRICS)
    check_choice("baseline", baseline, map(str, groups))
    scale, unit = (100.0, "right answers, %") if metric == "accuracy" else (1.0, f"{metric.replace('_', ' ')}, nats")
    runs = {str(name): members for name, members in groups.items()}
    names, ticks, marks, bottom = list[str](), dict[float, str](), list[Mark](), len(rows) - 0.4
    for i, (name, row) in enumerate(rows.iterrows()):
        known = METHODS.get(str(name))
        label, colour = (known.label, known.colour) if known else (str(name), INK)
        middle, *ends = (scale * float(row[column]) for column in ("median", "low", "high"))
        seeds = [scale * v for v in by_seed(runs[str(name)], METRICS[metric].of).values()]
        marks.append(Line(ends, [i, i], colour, width=2.8))
        marks.append(Points([middle], [i], colour, name=label, hover="median %{x:.3g}"))
        marks.append(Points(seeds, [i] * len(seeds), colour, "line-ns", 18, name=label, hover="%{x:.3g}"))
        if name == baseline:
            marks.append(Line([middle] * 2, [bottom, -0.6], dash="dot", width=1.2))
        names.append(label)
        ticks[i] = f"{label} ({len(seeds)})"
    panel = Panel(Axis(unit), Axis(limits=(bottom, -0.6), ticks=ticks, grid=False), marks)
    return Picture(Figure([panel], 840, 75 + 30 * len(names)), f"{unit}: {', '.join(names)}")


def method_scatter(
    x: Mapping[str, float] | pd.Series[float],
    y: Mapping[str, float] | pd.Series[float],
    *,
    xlabel: str = "",
    ylabel: str = "",
    slope: float | None = None,
) -> Picture:
    """Draw one number of each method against another, on logarithmic axes, with the method's name at each point.

    Args:
        x: the first number, by the name of a method.
        y: the second number. Methods that do not have both, finite and above 0, are left out.
        xlabel: what the first number is.
        ylabel: what the second number is.
        slope: draw a dotted line of this slope through the middle of the points.

    Returns:
        The points, which a notebook shows as a PNG.

    Raises:
        InputError: a method is unknown, or none has both numbers.
    """
    x, y = dict(x), dict(y)  # a pandas Series iterates its values
    pairs = {get_method(name): (float(x[name]), float(y[name])) for name in x if name in y}
    points = {method: p for method, p in pairs.items() if all(0 < v < math.inf for v in p)}
    if not points:
        raise InputError("no method has both x and y above 0; give both for at least one method")
    first, second = ([p[k] for p in points.values()] for k in (0, 1))
    limits = log_limits(second, 0.08)
    near = 0.05 * math.log10(limits[1] / limits[0])
    marks, labels = list[Mark](), list[Label]()
    for method, (a, b) in points.items():
        marks.append(Points([a], [b], method.colour, name=method.label, hover="%{x:.3g}, %{y:.3g}"))
        # another point stands where the name would, right of this one at about its height: the name goes to the left
        steps = [(math.log10(p[0] / a), math.log10(p[1] / b)) for p in points.values()]
        crowded = any(0 < right < 0.45 and abs(up) < near for right, up in steps)
        labels.append(Label(a, b, method.label, method.colour, "right" if crowded else "left", shift=9))
    if slope is not None:
        middle = [fmean(map(math.log10, values)) for values in (first, second)]
        ends = [min(first), max(first)]
        line = [10 ** (middle[1] + slope * (math.log10(v) - middle[0])) for v in ends]
        marks.append(Line(ends, line, dash="dot", width=1.5))
    axes = Axis(xlabel, log_limits(first, 0.25), log=True), Axis(ylabel, limits, log=True)
    text = f"{ylabel} against {xlabel}: {', '.join(method.label for method in points)}"
    return Picture(Figure([Panel(*axes, marks, apart(labels, limits, 0.04))], 760, 400), text)
