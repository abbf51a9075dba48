"""Inside a run: the singular values of the update, the norms of its factors and of their gradients; a map of layers.

A hue and a dash is a method, as everywhere; a marker is a factor, named where its line ends. All axes of
values are logarithmic, and what is zero stands on a level of its own below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from operator import add
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from nlora_lab.core.formatting import format_rate
from nlora_lab.methods.table import METHODS
from nlora_lab.models.weights import split_name
from nlora_lab.plots.approximations import rank_ticks
from nlora_lab.plots.style import INK, MPL_DASH, axis, blank_layout, new_figure, png_bytes, title
from nlora_lab.training.recorder import Snapshot, series

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig

MARKERS = {"A": ("circle", "o"), "N": ("square", "s"), "B": ("diamond", "D"), "m": ("triangle-up", "^"),
           "W": ("x", "x")}  # fmt: skip
MARKED = 6  # markers on a line, about
NAMED = 2  # runs whose factors are named at the ends of their lines; of more, the heading says what a marker is
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
SIGNS = {"A": "●", "N": "■", "B": "◆", "m": "▲", "W": "✕"}
DOMAINS = ([0, 0.34], [0.43, 0.67], [0.76, 1])
WIDTHS = (270, 190, 190)  # pixels of the panels where the figure is 900 wide: what the names have to fit in
LETTER = 7.5  # pixels


class InsideRecord(NamedTuple):
    """What :class:`InsideDrawing` draws of one run: a name, the look of its method, what was recorded."""

    name: str
    colour: str
    dash: str
    snapshots: Sequence[Snapshot]


Record = InsideRecord | tuple[str, str, str, Sequence[Snapshot]]


def inside_record(config: RunConfig, snapshots: Sequence[Snapshot], name: str = "") -> InsideRecord:
    """A run in its method's hue and dash, named after it unless told otherwise."""
    method = METHODS[config.method]
    return InsideRecord(name or config.label, method.colour, method.dash, snapshots)


@dataclass(frozen=True)
class _Line:
    """One quantity of one run: its values by step, how it is drawn, what stands at its end."""

    told: str
    colour: str
    dash: str
    marker: str  # a factor, or nothing
    opacity: float
    x: Sequence[int]
    y: Sequence[float]
    label: str

    @property
    def gap(self) -> int:
        """Every how many points a marker stands."""
        return max(1, round(len(self.x) / MARKED))


@dataclass(frozen=True)
class _Panel:
    """Lines on one logarithmic axis that ends at 10^low and 10^high; what is below ``least`` is drawn at ``zero``."""

    heading: str
    lines: Sequence[_Line]
    decades: float  # values smaller than the largest by more than this count as zero
    width: float  # pixels

    @property
    def room(self) -> float:
        """How much longer than the run the x axis is, for the names at the lines' ends."""
        longest = max((len(word) for line in self.lines for word in line.label.split("\n")), default=0)
        return self.width / max(0.5 * self.width, self.width - LETTER * (longest + 2))

    @cached_property
    def _values(self) -> list[float]:
        return [v for line in self.lines for v in line.y if math.isfinite(v)]

    @cached_property
    def least(self) -> float:
        top = max(self._values, default=0.0)
        return min([v for v in self._values if v > top * 10**-self.decades], default=1.0)

    @cached_property
    def _span(self) -> tuple[float, float]:
        low, high = math.log10(self.least), math.log10(max([*self._values, self.least]))
        return min(low, (low + high) / 2 - 0.3), max(high, (low + high) / 2 + 0.3)

    @cached_property
    def zero(self) -> float | None:
        """The level of what is zero, if anything is."""
        low, high = self._span
        return 10 ** (low - 0.14 * (high - low)) if any(v < self.least for v in self._values) else None

    @cached_property
    def range(self) -> tuple[float, float]:
        low, high = self._span
        bottom = low if self.zero is None else math.log10(self.zero)
        return bottom - 0.06 * (high - bottom), high + 0.06 * (high - bottom)

    def drawn(self, line: _Line) -> list[float]:
        """The heights of a line; NaN where there is no finite value."""
        return [math.nan if not math.isfinite(v) else self.zero or self.least if v < self.least else v for v in line.y]

    def ticks(self) -> dict[float, str]:
        if not self._values:
            return {}
        low, high = self._span
        steps: tuple[int, ...] = (1, 2, 5) if high - low < 1.5 else (1,)
        every = max(1, math.ceil((high - low) / 6))
        powers = range(math.floor(low), math.ceil(high) + 1)
        marks = [c * 10.0**e for e in powers for c in steps if e % every == 0]
        found = {
            v: f"{v:g}" if v >= 1e-3 else format_rate(v) for v in marks if low - 1e-9 <= math.log10(v) <= high + 0.1
        }
        if self.zero is not None:
            exact = all(v == 0 for v in self._values if v < self.least)
            found[self.zero] = "0" if exact else "≈ 0"
        return found

    def labels(self) -> list[tuple[_Line, int, float]]:
        """(line, step of its end, log10 of the height of its name): moved apart."""
        low, high = self.range
        ended = []
        for line in self.lines:
            last = next((i for i in reversed(range(len(line.y))) if math.isfinite(line.y[i])), None)
            if line.label and last is not None:
                ended.append((line, line.x[last], math.log10(self.drawn(line)[last])))
        sizes = [0.06 * (high - low) * (line.label.count("\n") + 1) for line, _, _ in ended]
        placed = _apart([height for _, _, height in ended], sizes)
        return [(line, x, y) for (line, x, _), y in zip(ended, placed, strict=True)]


@dataclass(frozen=True)
class InsideDrawing:
    """Three panels over the updates of one or more runs (a :class:`~nlora_lab.plots.style.Drawing`).

    Left the first ``top`` singular values of the change of the weight, the fainter the smaller; in the middle the
    norms of the ``factors`` that train; on the right those of their gradients. ``layer`` is a layer's name;
    ``None`` is all layers together, as root mean squares. ``records``: :class:`InsideRecord`, or such tuples.
    """

    records: Sequence[Record]
    layer: str | None = None
    top: int = 4
    factors: str = "ANBmW"

    @cached_property
    def panels(self) -> tuple[_Panel, _Panel, _Panel]:
        """What is drawn, left to right."""
        values = [
            self._line(record, f"sigma_{k}", f"σ{k}".translate(SUBSCRIPTS), "", 0.62 ** (k - 1))
            for record in self.records
            for k in range(1, self.top + 1)
        ]
        norms, gradients = (
            [self._line(record, f"{what} {f}", f, f) for record in self.records for f in self.factors]
            for what in ("norm", "gradient")
        )
        many = f"σ₁ … σ{self.top}".translate(SUBSCRIPTS) if self.top > 1 else "σ₁"
        there = {line.marker for line in norms if line.x}
        key = "" if self._named else ": " + "  ".join(f"{SIGNS[f]} {f}" for f in self.factors if f in there)
        return (
            _Panel(f"singular values of the change: {many}", [line for line in values if line.x], 4, WIDTHS[0]),
            _Panel(f"norms of the factors{key}", [line for line in norms if line.x], 7, WIDTHS[1]),
            _Panel("norms of their gradients", [line for line in gradients if line.x], 7, WIDTHS[2]),
        )

    @property
    def _named(self) -> bool:
        return len(self.records) <= NAMED

    def _line(self, record: Record, quantity: str, sign: str, marker: str, opacity: float = 1) -> _Line:
        name, colour, dash, snapshots = record
        x, y = series(snapshots, quantity, self.layer)
        if marker:
            label = sign if self._named else ""
        elif len(self.records) == 1:  # the heading names it
            label = sign
        else:  # a run is named once, at its largest value
            label = _broken(name) if sign == "σ₁" else ""
        return _Line(f"{name} {sign}", colour, dash, marker, max(opacity, 0.2), x, y, label)

    @property
    def heading(self) -> str:
        """Whose numbers these are."""
        whose = f"{self.records[0][0]}: " if len(self.records) == 1 else ""
        return whose + ("all layers together (root mean square)" if self.layer is None else place_text(self.layer))

    @property
    def _end(self) -> int:
        return max((x for panel in self.panels for line in panel.lines for x in line.x), default=10) or 1

    @property
    def _missing(self) -> str:
        there = any(snapshots for *_, snapshots in self.records)
        return "" if self.panels[0].lines else "no such layer in these runs" if there else "nothing recorded yet"

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """One trace a line, after an empty one a panel."""
        import plotly.graph_objects as go

        traces: list[Any] = []
        layout = {**blank_layout(380), "margin": {"l": 52, "r": 12, "t": 62, "b": 44}}
        notes = [title(f"<b>{self.heading}</b>", "x", "y", lift=28)]
        for i, (panel, domain) in enumerate(zip(self.panels, DOMAINS, strict=True), start=1):
            x, y = (f"{letter}{i if i > 1 else ''}" for letter in "xy")
            place = {"xaxis": x, "yaxis": y, "showlegend": False}
            # plotly draws no axes where there is no trace
            traces.append(go.Scatter(x=[None], y=[None], mode="lines", hoverinfo="skip", **place))
            traces += [go.Scatter(**_plotly_line(panel, line), **place) for line in panel.lines]
            ticks, (low, high) = panel.ticks(), panel.range
            # said outright, because the same live figure may have shown a map before
            plain = {**axis(), "showgrid": True, "autorange": False, "automargin": False, "tickmode": "array"}
            layout[f"xaxis{x[1:]}"] = {
                **plain, "type": "linear", "domain": domain, "range": [0, self._end * panel.room], "anchor": y,
                "tickvals": rank_ticks(self._end), "title": {"text": "updates", "standoff": 6},
            }  # fmt: skip
            layout[f"yaxis{y[1:]}"] = {
                **plain, "type": "log", "range": [low, high], "anchor": x, "tickvals": list(ticks),
                "ticktext": list(ticks.values()),
            }  # fmt: skip
            notes.append(title(panel.heading, x, y))
            notes += [
                {
                    "x": at, "y": height, "text": line.label.replace("\n", "<br>"), "showarrow": False,
                    "xanchor": "left", "align": "left", "xshift": 7, "xref": x, "yref": y,
                    "font": {"color": line.colour, "size": 12},
                }
                for line, at, height in panel.labels()
            ]  # fmt: skip
        if self._missing:
            middle = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": "y domain", "showarrow": False}
            notes.append({**middle, "text": self._missing})
        return traces, {**layout, "annotations": notes}

    def png(self) -> bytes:
        """The same with matplotlib."""
        figure = new_figure(10.4, 3.8)
        figure.suptitle(self.heading, x=0.01, ha="left", fontsize=10, color=INK, fontweight="bold")
        for axes, panel in zip(figure.subplots(1, 3, width_ratios=[1.4, 1, 1]), self.panels, strict=True):
            for line in panel.lines:
                look: dict[str, Any] = {"color": line.colour, "linestyle": MPL_DASH[line.dash], "alpha": line.opacity}
                if line.marker:
                    look |= {"marker": MARKERS[line.marker][1], "markersize": 4, "markevery": line.gap}
                axes.plot(line.x, panel.drawn(line), linewidth=1.8, **look)
            for line, at, height in panel.labels():
                place = (at + 0.03 * self._end * panel.room, 10**height)
                axes.text(*place, line.label, color=line.colour, fontsize=8.5, va="center")
            low, high = panel.range
            axes.set(yscale="log", xlim=(0, self._end * panel.room), ylim=(10**low, 10**high), xlabel="updates")
            axes.set_xticks(rank_ticks(self._end))
            ticks = panel.ticks()
            axes.set_yticks(list(ticks), list(ticks.values()))
            axes.set_yticks([], minor=True)
            axes.set_title(panel.heading, loc="left", fontsize=9, color=INK)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.25, linewidth=0.6)
        if self._missing:
            figure.axes[0].text(0.5, 0.5, self._missing, transform=figure.axes[0].transAxes, ha="center", color=INK)
        return png_bytes(figure)


def _plotly_line(panel: _Panel, line: _Line) -> dict[str, Any]:
    # every property is set for every line: a live figure keeps what an update does not name
    sizes = [7 if line.marker and i % line.gap == 0 else 0 for i in range(len(line.x))]
    heights = [None if math.isnan(v) else v for v in panel.drawn(line)]
    return {
        "x": list(line.x), "y": heights, "mode": "lines+markers", "name": line.told, "customdata": list(line.y),
        "hovertemplate": "after %{x} updates: %{customdata:.3g}<extra>" + line.told + "</extra>",
        "line": {"color": line.colour, "dash": line.dash, "width": 2.2}, "opacity": line.opacity,
        "marker": {"symbol": MARKERS[line.marker][0] if line.marker else "circle", "size": sizes, "color": line.colour,
                   "opacity": 1, "line": {"width": 0}},
    }  # fmt: skip


def _apart(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """``heights`` of the middles of names moved apart as little as needed; a name is ``sizes`` tall."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    below = list(accumulate((sizes[i] + sizes[j]) / 2 for i, j in pairwise(order)))
    offsets = [0.0, *below]
    blocks: list[list[float]] = []  # neighbours that touch: without the offsets, they share the mean of their heights
    for i, offset in zip(order, offsets, strict=False):
        blocks.append([heights[i] - offset])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    bottoms = [fmean(block) for block in blocks for _ in block]
    placed = dict(zip(order, map(add, bottoms, offsets), strict=False))
    return [placed[i] for i in range(len(heights))]


def _broken(name: str) -> str:
    """A long name in two or three lines."""
    return name if len(name) < 13 else name.replace(", ", ",\n").replace(" · ", "\n· ")


def place_text(layer: str) -> str:
    """``model.layers.2.mlp.up_proj`` → ``layer 2, mlp.up_proj``."""
    number, module = split_name(layer)
    return module if number < 0 else f"layer {number}, {module}"
