"""Pictures of many runs: valleys, intervals, tables as heat maps, and one number against another; PNGs all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.plots.style import INK, MPL_DASH, new_figure, png_bytes, spread
from nlora_lab.runs.index import RatePoint, by_seed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from nlora_lab.analysis.selection import Runs

COLUMNS = 5  # of small plots in a row
TOP = 3.0  # nats: a loss above it, or infinite, is drawn there as a cross
PALE = "#c9c9c9"


class _Picture:
    """What a notebook shows without a kernel."""

    def png(self) -> bytes:
        raise NotImplementedError

    def _repr_png_(self) -> bytes:
        return self.png()


@dataclass(frozen=True)
class Valleys(_Picture):
    """Final loss against the learning rate: a small plot a method, all others in grey behind it."""

    points: Mapping[str, Sequence[RatePoint]]
    best: Mapping[str, float]
    mark: float

    def __repr__(self) -> str:
        return f"final loss against the learning rate: {', '.join(METHODS[m].label for m in self.points)}"

    def png(self) -> bytes:
        """The figure as PNG bytes."""
        rows = -(-len(self.points) // COLUMNS)
        figure = new_figure(10.4, 0.5 + 1.75 * rows, 100)
        grid = figure.subplots(rows, min(COLUMNS, len(self.points)), sharex=True, sharey=True, squeeze=False)
        cells = list(grid.flat)
        for axes, name in zip(cells, self.points, strict=False):
            self._one(axes, name)
        for axes in cells[len(self.points) :]:
            axes.set_axis_off()
        for axes in cells[max(0, len(self.points) - grid.shape[1]) : len(self.points)]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel("learning rate", fontsize=9, color=INK)
        figure.supylabel("final training loss, nats a token", fontsize=9, color=INK)
        return png_bytes(figure)

    def _one(self, axes: Axes, name: str) -> None:
        for other, points in self.points.items():
            if other != name:
                axes.plot([p.lr for p in points], [_cut(p.loss.middle) for p in points], color=PALE, linewidth=0.6)
        points, colour = self.points[name], METHODS[name].colour
        middles = [_cut(p.loss.middle) for p in points]
        ends = [[m - _cut(p.loss.low) for m, p in zip(middles, points, strict=True)],
                [_cut(p.loss.high) - m for m, p in zip(middles, points, strict=True)]]  # fmt: skip
        axes.errorbar([p.lr for p in points], middles, yerr=ends, color=colour, linewidth=1.8, capsize=2)
        for p, y in zip(points, middles, strict=True):
            chosen = self.best.get(name) == p.lr
            sign = "x" if p.loss.middle > TOP else "o"
            edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 1.3} if chosen else {}
            axes.plot([p.lr], [y], sign, color=colour, markersize=8 if chosen else 3.5, **edge)
        axes.axvline(self.mark, color=INK, linestyle=":", linewidth=1)
        axes.set(xscale="log", yscale="log", ylim=(0.003, TOP * 1.15))
        axes.set_title(METHODS[name].label, fontsize=8.5, color=colour, loc="left", weight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, colors=INK)


def valleys(
    recordings: Runs = None, task: str = "word-problems", methods: Sequence[str] | None = None, *, rank: int = 8,
    mark: float = 2e-4,
) -> Valleys:  # fmt: skip
    """:class:`Valleys` of recorded runs (a store, its folder, …).

    A ring marks each method's best rate by validation, a dotted line ``mark``.
    """
    from nlora_lab.analysis.selection import known as known_runs

    recordings = known_runs(recordings)
    names = [get_method(name).name for name in (METHODS if methods is None else methods)]
    points = {name: recordings.valley(task, name, rank) for name in names}
    known = {name: found for name, found in points.items() if found}
    if not known:
        raise InputError(f"there is no recorded run of {', '.join(names)} on {task} at rank {rank}")
    best = {name: p.lr for name in known if (p := recordings.best(task, name, rank)) is not None}
    return Valleys(known, best, mark)


def _cut(value: float) -> float:
    return min(max(value, 1e-4), TOP)


@dataclass(frozen=True)
class Intervals(_Picture):
    """One row a group of runs: every seed as a tick, the median as a dot, its interval as a bar."""

    rows: Mapping[str, tuple[float, float, float]]
    seeds: Mapping[str, Sequence[float]]
    baseline: str
    xlabel: str

    def __repr__(self) -> str:
        return f"{self.xlabel}: {', '.join(map(_named, self.rows))}"

    def png(self) -> bytes:
        """The figure as PNG bytes."""
        figure = new_figure(8.4, 0.75 + 0.3 * len(self.rows), 100)
        axes = figure.add_subplot()
        for i, (name, (middle, low, high)) in enumerate(self.rows.items()):
            colour = METHODS[name].colour if name in METHODS else INK
            axes.plot([low, high], [i, i], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([middle], [i], "o", color=colour, markersize=7)
            axes.plot(list(self.seeds[name]), [i] * len(self.seeds[name]), "|", color=colour, markersize=13)
        if self.baseline in self.rows:
            axes.axvline(self.rows[self.baseline][0], color=INK, linestyle=":", linewidth=1)
        axes.set_yticks(range(len(self.rows)), [f"{_named(n)} ({len(self.seeds[n])})" for n in self.rows])
        axes.set(xlabel=self.xlabel)
        axes.margins(y=0.04)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
        return png_bytes(figure)


def intervals(
    rows: pd.DataFrame, groups: Mapping[str, Sequence[Any]], *, metric: str = "accuracy", baseline: str = "lora"
) -> Intervals:
    """:class:`Intervals` of a table that :func:`nlora_lab.compare` made of these groups, in its order."""
    from nlora_lab.analysis.comparison import METRICS

    check_choice("metric", metric, METRICS)
    chosen = METRICS[metric]
    scale, unit = (100.0, "right answers, %") if metric == "accuracy" else (1.0, f"{metric.replace('_', ' ')}, nats")
    shown = {str(n): tuple(scale * float(row[c]) for c in ("median", "low", "high")) for n, row in rows.iterrows()}
    by_name = {str(name): runs for name, runs in groups.items()}
    seeds = {name: [scale * v for v in by_seed(by_name[name], chosen.of).values()] for name in shown}
    return Intervals(shown, seeds, baseline, unit)  # type: ignore[arg-type]


def _named(name: str) -> str:
    return METHODS[name].label if name in METHODS else name


@dataclass(frozen=True)
class Heatmap(_Picture):
    """A table of numbers, each on its colour; NaN stays empty, and ∞ is a loss that diverged."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    xlabel: str
    ylabel: str
    title: str
    form: str
    log: bool
    high_is_good: bool

    def __repr__(self) -> str:
        return f"{self.title}, {self.ylabel} × {self.xlabel}"

    def png(self) -> bytes:
        """The figure as PNG bytes."""
        import numpy as np

        shown = np.ma.masked_invalid(np.array(self.values, dtype=float))
        scaled = np.ma.log(shown) if self.log else shown
        figure = new_figure(1.6 + 0.72 * len(self.columns), 0.95 + 0.34 * len(self.rows), 100)
        axes = figure.add_subplot()
        axes.imshow(scaled, cmap="viridis" if self.high_is_good else "viridis_r", aspect="auto")
        middle = (float(scaled.min()) + float(scaled.max())) / 2
        for i, row in enumerate(self.values):
            for j, value in enumerate(row):
                if math.isinf(value):
                    axes.text(j, i, "∞", ha="center", va="center", fontsize=11, color=INK)
                if math.isfinite(value):
                    bright = (float(scaled[i, j]) > middle) == self.high_is_good
                    hue = "black" if bright else "white"
                    axes.text(j, i, format(value, self.form), ha="center", va="center", fontsize=8, color=hue)
        axes.set_xticks(range(len(self.columns)), list(self.columns), fontsize=8)
        axes.set_yticks(range(len(self.rows)), list(self.rows), fontsize=8)
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel)
        axes.set_title(self.title, fontsize=9.5, loc="left")
        axes.spines[:].set_visible(False)
        return png_bytes(figure)


def heatmap(
    frame: pd.DataFrame, *, title: str = "", xlabel: str = "", ylabel: str = "", form: str = ".3g", log: bool = False,
    high_is_good: bool = False,
) -> Heatmap:  # fmt: skip
    """:class:`Heatmap` of a frame of numbers; ``log`` colours by the logarithm; dark is good."""
    if frame.empty:
        raise InputError("the table has no number to show")
    columns = [f"{c:g}" if isinstance(c, float) else str(c) for c in frame.columns]
    values = frame.to_numpy(dtype=float).tolist()
    return Heatmap([str(i) for i in frame.index], columns, values, xlabel, ylabel, title, form, log, not high_is_good)


@dataclass(frozen=True)
class MethodScatter(_Picture):
    """One number of each method against another, on logarithmic axes, each point named."""

    points: Mapping[str, tuple[float, float]]
    xlabel: str
    ylabel: str
    slope: float | None

    def __repr__(self) -> str:
        return f"{self.ylabel} against {self.xlabel}: {', '.join(map(_named, self.points))}"

    def png(self) -> bytes:
        """The figure as PNG bytes."""
        figure = new_figure(7.6, 4.0, 100)
        axes = figure.add_subplot()
        names = list(self.points)
        logs = [math.log10(self.points[n][1]) for n in names]
        reach = max(logs) - min(logs) or 1.0
        heights = spread(logs, gap=0.045 * reach)
        for name, height in zip(names, heights, strict=True):
            x, y = self.points[name]
            colour, left = METHODS[name].colour, self._crowded(name, 0.06 * reach)
            axes.plot([x], [y], "o", color=colour, markersize=7)
            place = (x / 1.12 if left else x * 1.12, 10**height)
            side = "right" if left else "left"
            axes.annotate(METHODS[name].label, (x, y), place, fontsize=8, va="center", ha=side, color=colour)
        axes.set(xscale="log", yscale="log", xlabel=self.xlabel, ylabel=self.ylabel)
        if self.slope is not None:
            middle = [sum(math.log10(p[k]) for p in self.points.values()) / len(names) for k in (0, 1)]
            ends = [min(p[0] for p in self.points.values()), max(p[0] for p in self.points.values())]
            line = [10 ** (middle[1] + self.slope * (math.log10(x) - middle[0])) for x in ends]
            axes.plot(ends, line, color=INK, linestyle=MPL_DASH["dot"], linewidth=1.2)
        axes.margins(x=0.2, y=0.08)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        return png_bytes(figure)

    def _crowded(self, name: str, near: float) -> bool:
        """Whether another point stands where the name would: right of this one, at about its height."""
        x, y = (math.log10(v) for v in self.points[name])
        others = [(math.log10(a) - x, math.log10(b) - y) for n, (a, b) in self.points.items() if n != name]
        return any(0 < right < 0.45 and abs(up) < near for right, up in others)


def method_scatter(
    x: Mapping[str, float] | pd.Series[float],
    y: Mapping[str, float] | pd.Series[float],
    *,
    xlabel: str = "",
    ylabel: str = "",
    slope: float | None = None,
) -> MethodScatter:
    """:class:`MethodScatter` of two numbers above 0 by method; a dotted line of ``slope`` through their middle."""
    x, y = dict(x), dict(y)  # a pandas Series iterates its values
    points = {get_method(n).name: (float(x[n]), float(y[n])) for n in x if n in y}
    good = {n: p for n, p in points.items() if all(math.isfinite(v) and v > 0 for v in p)}
    if not good:
        raise InputError("no method has both numbers above 0")
    return MethodScatter(good, xlabel, ylabel, slope)
