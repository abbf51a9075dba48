"""The description of a figure, which the plotly and the matplotlib renderer draw alike.

A figure has panels. A panel has two axes, marks (lines, points, bands, bars, a heat map) and labels.

Text is plain text: each renderer escapes it, and a line break breaks the line. Only ``hover`` is a template for plotly.
Lengths are pixels. Positions are in the units of the axes, also on logarithmic ones. ``None`` in a line is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import add
from statistics import fmean
from typing import Any, Literal

INK = "#767676"  # readable on white and on JupyterLab's dark grey alike

Values = Sequence[float | None] | Sequence[float]
Limits = tuple[float, float]
Anchor = Literal["left", "center", "right"]
Share = tuple[float, float]  # a part of the figure's width or height, from 0 (left, bottom) to 1


@dataclass(frozen=True)
class Axis:
    """One axis: its title, its limits (reversed if the first is larger) and the texts of its ticks by position.

    If limits or ticks are ``None``, the renderer chooses them. ``names`` makes an axis of categories, numbered from 0.
    An axis of names has no ``grid``, and the live figure widens its margin for the names.
    """

    title: str = ""
    limits: Limits | None = None
    log: bool = False
    ticks: Mapping[float, str] | None = None
    names: Sequence[str] | None = None
    grid: bool = True

    @classmethod
    def of_names(cls, names: Sequence[str], title: str = "", *, reverse: bool = False) -> Axis:
        """Return the axis of a heat map's columns or, with ``reverse``, of its rows from the top down."""
        ends = (-0.5, max(1, len(names)) - 0.5)
        return cls(title, (ends[1], ends[0]) if reverse else ends, names=names, grid=False)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is drawn in a panel: ``name`` stands in the legend, ``hover`` beside the pointer (empty: nothing)."""

    name: str = ""
    hover: str = ""


@dataclass(frozen=True)
class Line(Mark):
    """A line, with a marker at every ``every``-th point if it has a ``symbol``; ``values`` are for its ``hover``."""

    x: Values
    y: Values
    colour: str = INK
    dash: str = "solid"
    width: float = 2.0
    opacity: float = 1.0
    symbol: str = ""
    every: int = 1
    values: Sequence[float] | None = None


@dataclass(frozen=True)
class Band(Mark):
    """The area between two lines over the same ``x``."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    opacity: float = 0.15


@dataclass(frozen=True)
class Points(Mark):
    """Markers, joined by a line if there is a ``dash``; ``whiskers`` are the lower and the upper ends of error bars.

    Colours, symbols and sizes are one for all points or one for each. ``texts`` are for ``hover``.
    """

    x: Values
    y: Values
    colours: str | Sequence[str]
    symbols: str | Sequence[str] = "circle"
    sizes: float | Sequence[float] = 10
    edge: str = ""
    dash: str = ""
    width: float = 1.5
    whiskers: tuple[Sequence[float], Sequence[float]] | None = None
    texts: Sequence[str] | None = None

    def looks(self) -> tuple[list[str], list[str], list[float]]:
        """Return the colours, the symbols and the sizes, one for each point."""
        count, sizes = len(self.x), self.sizes
        colours, symbols = ([v] * count if isinstance(v, str) else list(v) for v in (self.colours, self.symbols))
        return colours, symbols, [sizes] * count if isinstance(sizes, (int, float)) else list(sizes)


@dataclass(frozen=True)
class Bars(Mark):
    """Horizontal bars; those of one panel stand on each other. ``pattern`` is "", "/", ".", "x" or "-"."""

    places: Sequence[float]
    lengths: Sequence[float]
    colours: str | Sequence[str]
    pattern: str = ""
    width: float = 0.6


@dataclass(frozen=True)
class Heatmap(Mark):
    """A heat map of rows (downwards) and columns, NaN being empty, with ``texts`` in its cells and one cell framed.

    ``colours`` is a colour map that both libraries know; the suffix ``_r`` reverses it.
    """

    levels: Any  # a matrix of numbers: lists of rows, or an array
    limits: Limits
    colours: str
    texts: Sequence[Sequence[str]] | None = None
    show_texts: bool = True
    framed: tuple[int, int] | None = None
    gap: float = 0.0


@dataclass(frozen=True)
class Label:
    """Text at a place: to its right ("left" end there), to its left ("right") or on it ("center")."""

    x: float
    y: float
    text: str
    colour: str = INK
    anchor: Anchor = "left"
    bold: bool = False
    shift: float = 5.0  # away from the place

    @property
    def offset(self) -> float:
        """The shift to the right."""
        return {"left": self.shift, "center": 0.0, "right": -self.shift}[self.anchor]


@dataclass(frozen=True)
class Panel:
    """Axes with what stands between them.

    ``across`` and ``up`` are the panel's place. A heading in a colour of its own is bold. ``message`` stands in the
    middle. ``growing`` are marks too; they are the last traces of a live figure. ``follows`` is the index of a panel
    whose x axis is zoomed together with this one. ``legend`` names the marks in the first panel that has one.
    """

    x: Axis
    y: Axis
    marks: Sequence[Mark] = ()
    labels: Sequence[Label] = ()
    heading: str = ""
    heading_colour: str = INK
    across: Share = (0.0, 1.0)
    up: Share = (0.0, 1.0)
    growing: Sequence[Mark] = ()
    follows: int | None = None
    message: str = ""
    legend: Literal["", "inside", "beside", "above"] = ""


@dataclass(frozen=True)
class Figure:
    """Panels, and a heading over the first. A live figure is as wide as its place, and ``width`` is that of the PNG.

    ``margins`` (left, right, top, bottom) are those of the live figure; in the PNG they are what the texts need.
    """

    panels: Sequence[Panel]
    width: float = 960
    height: float = 520
    dpi: int = 100
    margins: tuple[float, float, float, float] = (60, 20, 36, 44)
    heading: str = ""


def log_limits(values: Iterable[float], margin: float) -> Limits:
    """Return the limits of a logarithmic axis: the values' range, with this share of it (or of a decade) around it."""
    logs = [math.log10(v) for v in values if 0 < v < math.inf] or [0.0]
    reach = max(max(logs) - min(logs), 1.0)
    return 10 ** (min(logs) - margin * reach), 10 ** (max(logs) + margin * reach)


def round_ticks(low: float, high: float, most: int = 6) -> dict[float, str]:
    """Return round whole numbers from ``low`` to ``high``, ``most`` steps or fewer, with their names."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if (high - low) / s <= most)
    return {tick: str(tick) for tick in range(step * math.ceil(low / step), math.floor(high) + 1, step)}


def spread(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Move the middles of labels with these sizes apart, as little as needed, so that no two overlap."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    offsets = [0.0, *accumulate((sizes[i] + sizes[j]) / 2 for i, j in pairwise(order))]
    blocks: list[list[float]] = []  # neighbours that touch: without the offsets, they share the mean of their heights
    for i, offset in zip(order, offsets, strict=False):
        blocks.append([heights[i] - offset])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    bottoms = [fmean(block) for block in blocks for _ in block]
    placed = dict(zip(order, map(add, bottoms, offsets), strict=False))
    return [placed[i] for i in range(len(heights))]


def apart(labels: Sequence[Label], limits: Limits, share: float) -> list[Label]:
    """Move labels apart along a logarithmic axis with these limits, inside which they stay while there is room.

    A line of text takes this share of the axis. matplotlib and plotly do not draw a label outside the axes.
    """
    low, high = map(math.log10, limits)
    heights = [min(max(math.log10(label.y), low), high) for label in labels]
    sizes = [share * (high - low) * (label.text.count("\n") + 1) for label in labels]
    placed = spread(heights, sizes)
    order = sorted(range(len(placed)), key=lambda i: placed[i])
    ceiling, floor = high, low
    for i in reversed(order):  # down from the upper end, then up from the lower one
        placed[i] = min(placed[i], ceiling - sizes[i] / 2)
        ceiling = placed[i] - sizes[i] / 2
    for i in order:
        placed[i] = max(placed[i], floor + sizes[i] / 2)
        floor = placed[i] + sizes[i] / 2
    return [replace(label, y=10**height) for label, height in zip(labels, placed, strict=True)]
